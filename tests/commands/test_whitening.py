"""A whitened cache: whatever reads its latents normalises them as training did."""

import json
from pathlib import Path

import pytest
import torch
from support.image_files import write_images
from support.tiny import CPU, TINY_DIFFUSION, fails

import ldm
from ldm.checkpoint import load_diffusion
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.evaluation.diagnosis import DiagnosisFile
from ldm.images import to_image, to_x
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


def test_pictures_that_come_in_are_whitened_and_go_out_as_they_were(whitened):
    """As infilling, upscaling and samples that start from pictures take them."""
    model = ldm.load("runs/flow")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        means = model.autoencoder.encode(to_x(images)).mean
        assert torch.allclose(model.encode(images), model.stats.normalize(means), atol=1e-4)
        back, decoded = model.decode(model.encode(images)), to_image(model.autoencoder.decode(means))
    assert (back.int() - decoded.int()).abs().max() <= 1
    write_images(Path("pictures"), 2, (32, 32))
    whitened("infill", "model=runs/flow", "images=pictures", "box=[0,16,32,16]", "draws=1", "sampler.steps=1")


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


def test_a_run_goes_on_with_no_other_latents(whitened):
    """The same shards give the same means and deviations, with a whitening and without."""
    goes_on = ["train-diffusion", *TRAIN, "steps=6", "latents=runs/whitened"]
    whitened("cache-latents", "run=whitened")
    assert "runs/flow was started with stats.whitening=[[" in fails(*goes_on, "run=flow")
    whitened("train-diffusion", *TRAIN, "run=plain", "latents=runs/whitened")
    whitened("cache-latents", "run=whitened", "whiten=true")
    assert "runs/plain was started with stats.whitening=None (now [[" in fails(*goes_on, "run=plain")
    whitened(*goes_on, "run=flow")
    whitened("train-diffusion", *TRAIN, "run=tuned", "init=runs/plain", "latents=runs/whitened")
    said = "init=runs/plain learned latents that are normalised by channel, and latents=runs/whitened are whitened"
    assert said in Path("runs/tuned/log.txt").read_text()


def test_the_autoencoder_alone_goes_out_with_the_whitening_in_its_weights(whitened):
    whitened("convert", "source=runs/autoencoder", "to=diffusers", "run=vae", "latents=runs/whitened")
    from diffusers import AutoencoderKL

    theirs, ours = AutoencoderKL.from_pretrained("runs/vae"), ldm.load("runs/flow")
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert (to_image(theirs.decode(latents).sample).int() - ours.decode(latents).int()).abs().max() <= 1


def test_what_it_is_not_for_is_refused(whitened):
    assert "codes are never normalised" in fails(
        "cache-latents", "run=x", "autoencoder=runs/autoencoder", "whiten=true", "codes=true"
    )
