"""A DiT goes wherever the U-Net goes: training, resuming, students, sampling, likelihood, estimates."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_training
from support.tiny import CPU, TINY_DIFFUSION, fails

import ldm as package
from ldm.checkpoint import load_diffusion

DIT = [
    *[option for option in TINY_DIFFUSION if not option.startswith("net.")],
    "net=dit_digits", "net.model_channels=24", "net.depth=2", *CPU,
]  # fmt: skip


def test_it_trains_resumes_and_samples_at_other_sizes(there):
    there("train-diffusion", *DIT, "run=whole")
    there("train-diffusion", *DIT, "run=parts", "steps=2")
    there("train-diffusion", *DIT, "run=parts")
    assert_same_training("runs/whole", "runs/parts", "diffusion")
    assert load_diffusion("runs/whole").card["net"]["latent_size"] == [8, 8]
    there("sample", "model=runs/whole", "num=4", "sampler.steps=2", "latent_size=[8,12]")
    assert np.load("runs/samples/samples.npz")["arr_0"].shape == (4, 32, 48, 3)
    assert json.loads(Path("runs/samples/sample.json").read_text())["latent_size"] == [8, 12]
    model = package.load("runs/whole")
    assert model.sample([0], steps=1, latent_size=12).shape == (1, 3, 48, 48)
    with pytest.raises(ValueError, match=r"latent_size=\[4\] must be a side or \[height,width\]"):
        model.sized([4])


def test_its_students_learn(there):
    there("train-diffusion", *DIT, "run=flow")
    there("distill", "teacher=runs/flow", "steps=[2,1]", "guidance=2", f"train=['steps=2','every=2','{CPU[0]}']")
    there("train-diffusion", *DIT, "run=mean", "objective=meanflow", "init=runs/flow", "objective.student.guidance=2")
    there("train-diffusion", *DIT, "run=exact", "objective=meanflow", "objective.student.derivative=exact")
    assert load_diffusion("runs/mean").net.second_embed is not None
    there("sample", "model=runs/mean", "num=4")


def test_its_cost_is_estimated(there):
    there("estimate", "train-diffusion", "net=dit_s_2", "latents=nowhere")
    line = fails("train-diffusion", *DIT, "net.patch=3")
    assert "net.patch=3 does not divide latents of 8 x 8" in line


@pytest.mark.slow
def test_two_ranks_are_one_sharded_or_not(there):
    options = [*DIT, "schedule.decay=constant", "+optimizer.eps=1e-3"]
    there("train-diffusion", *options, "run=one")
    ranks("train-diffusion", *options, "batch_size=4", "run=ddp")
    ranks("train-diffusion", *options, "batch_size=4", "run=fsdp", "trainer.strategy=fsdp")
    for run in ("ddp", "fsdp"):
        assert_close_weights("runs/one", f"runs/{run}", "diffusion", rtol=1e-4, atol=1e-5)


@pytest.mark.long  # the compiler
def test_compiled_it_trains_the_same(there):
    options = [*DIT, "optimizer._target_=torch.optim.SGD", "~optimizer.fused", "optimizer.lr=0.1"]
    there("train-diffusion", *options, "run=eager")
    there("train-diffusion", *options, "run=compiled", "trainer.compile=true")
    assert_close_weights("runs/eager", "runs/compiled", "diffusion", rtol=1e-4, atol=1e-5)


def test_its_likelihood_is_that_of_a_flow(there):
    there("train-diffusion", *DIT, "run=flow")
    said = []
    for run, how in (("exact", "exact"), ("estimated", "hutchinson")):
        options = [f"likelihood.divergence={how}", "likelihood.steps=2", "likelihood.probes=64"]
        there("likelihood", "model=runs/flow", f"run={run}", "num=2", *options)
        said.append(json.loads(Path(f"runs/{run}/likelihood.json").read_text())["latent_bits_per_dim"])
    assert said[0] == pytest.approx(said[1], abs=0.05)
