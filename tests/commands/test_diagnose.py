"""`ldm diagnose` on the digits' latents."""

from pathlib import Path

import pytest
from PIL import Image
from support.tiny import fails

from ldm.evaluation.diagnosis import DiagnosisFile


def test_it_says_and_draws_what_latents_are_like(there, capsys):
    there("diagnose", "num=256", "device=cpu")
    said = capsys.readouterr().out
    found = DiagnosisFile.read(Path("runs/diagnosis/diagnosis.json"))
    assert found.num == 256
    assert found.latents == 1500
    assert sum(found.power) == pytest.approx(1, abs=0.1)  # of normalised latents
    assert sum(found.eigenvalues) == pytest.approx(len(found.eigenvalues), rel=0.1)
    assert set(found.change_errors) == {"half the size", "a quarter turn", "mirrored"}
    assert 0.12 < found.probe_accuracy <= 1  # of ten digits
    assert f"{found.probe_accuracy:.3f}" in said
    with Image.open("runs/diagnosis/diagnosis.png") as picture:
        assert picture.width > 1000
    again = Path("runs/diagnosis/diagnosis.json").read_text()
    there("diagnose", "num=256", "device=cpu", "batch_size=100")
    assert Path("runs/diagnosis/diagnosis.json").read_text() == again


def test_results_of_other_settings_are_kept(there):
    there("diagnose", "num=64", "device=cpu")
    assert "holds results of num=64 (now 65): choose another run=" in fails("diagnose", "num=65", "device=cpu")


def test_what_is_no_cache_is_said(there):
    assert "holds no manifest.json" in fails("diagnose", "latents=runs/autoencoder")
