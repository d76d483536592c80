"""jobs/diffusability.py on a point of a sweep, by the name that Hydra gives it."""

import runpy
import shutil
from pathlib import Path

import pytest
from support.config import CONF


@pytest.mark.slow
def test_a_point_whose_name_holds_brackets_and_commas(there, pipeline):
    there("sample", "num=20", "sampler.steps=1")
    there("evaluate", "features=pixels")
    folder = Path("runs/sweep/autoencoder.channel_mult=[1,2],seed=0")
    shutil.copytree(pipeline / "runs/latents", folder / "latents")
    shutil.copytree("runs/metrics", folder / "metrics")
    job = runpy.run_path(str(CONF.parent / "jobs/diffusability.py"))
    assert job["point"](folder).keys() == {*job["FIGURES"], "psnr", "rfd", "fd"}
