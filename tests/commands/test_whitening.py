"""A whitened cache: whatever reads its latents normalises them as training did."""

import json
from pathlib import Path

import pytest
import torch
from support.tiny import CPU, TINY_DIFFUSION, fails

import ldm
from ldm.checkpoint import load_diffusion
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.evaluation.diagnosis import DiagnosisFile
from ldm.images import to_image
from ldm.latents import mean_of

TRAIN = [*TINY_DIFFUSION, *CPU]
PROGRESSIVE = ["train-diffusion", *(word for word in TRAIN if not word.startswith(("net.", "sampler")))]
PROGRESSIVE += ["objective=progressive", "net=teacher", "teacher=runs/flow", "objective.student.steps=2"]


@pytest.fixture
def whitened(there):
    there("cache-latents", "run=whitened", "whiten=true")
    there("train-diffusion", *TRAIN, "run=flow", "latents=runs/whitened")
    return there


def test_a_model_of_it_draws_decodes_and_rates_what_it_learned(whitened):
    cache, model = LatentCache("runs/whitened", "full"), ldm.load("runs/flow")
    assert load_diffusion("runs/flow").card["stats"] == cache.stats_card
    means = mean_of(CachedMoments(cache, "train").__getitems__([(0, i) for i in range(8)])[0])
    assert not torch.allclose(LatentCache("runs/latents", "size").stats.normalize(means), model.stats.normalize(means))
    decoded = model.decode(model.stats.normalize(means[:2])).int()
    with torch.no_grad():
        assert (decoded - to_image(model.autoencoder.decode(means[:2]))).abs().max() <= 1
    whitened("sample", "model=runs/flow", "num=2")
    whitened("likelihood", "model=runs/flow", "run=bound", "num=4")
    assert json.loads(Path("runs/bound/likelihood.json").read_text())["image_bits_per_dim_at_most"] > 0
    whitened("diagnose", "latents=runs/whitened", "num=256", "device=cpu")
    assert DiagnosisFile.read(Path("runs/diagnosis/diagnosis.json")).eigenvalues == pytest.approx([1] * 4, abs=0.2)


def test_its_pairs_teach_a_student_of_the_same_latents(whitened):
    whitened("cache-pairs", "run=pairs", "teacher=runs/flow", "num=16", "held_out=8", "sampler.steps=2", "guidance=1")
    teacher = load_diffusion("runs/flow").stats.card()
    assert LatentCache("runs/pairs", "full").stats.card() == teacher
    whitened("train-diffusion", *TRAIN, "run=reflow", "objective=reflow", "latents=runs/pairs", "init=runs/flow")
    assert load_diffusion("runs/reflow").stats.card() == teacher


def test_a_student_wants_latents_that_are_normalised_as_its_teachers(whitened):
    said = "was trained on latents normalised otherwise than those of latents=runs/latents"
    assert said in fails(*PROGRESSIVE, *CPU, "run=student")
    whitened(*PROGRESSIVE, *CPU, "run=live", "latents=null", "autoencoder=runs/autoencoder", "data=digits")
    assert load_diffusion("runs/live").stats.card() == load_diffusion("runs/flow").stats.card()


def test_what_it_is_not_for_is_refused(whitened):
    assert "holds shards of another cache (whitened is True, not False)" in fails("cache-latents", "run=whitened")
    assert "codes are never normalised" in fails(
        "cache-latents", "run=x", "autoencoder=runs/autoencoder", "whiten=true", "codes=true"
    )
    exported = ["source=runs/autoencoder", "to=diffusers", "run=vae", "latents=runs/whitened"]
    assert "are whitened, by a matrix for which diffusers' autoencoder has no place" in fails("convert", *exported)
