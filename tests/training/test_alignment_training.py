"""Both stages with features beside: what is kept, trained, resumed, and refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_training, checkpoint, rows
from support.tiny import CPU, EXACT_AUTOENCODER, TINY_AUTOENCODER, TINY_DIFFUSION, fails
from torch import nn

from ldm.data.cache_reader import CachedMoments, LatentCache

ALIGNED = [*TINY_DIFFUSION, *CPU, "latents=runs/featured", "align.layer=1", "align.hidden=16"]
SGD = ["optimizer._target_=torch.optim.SGD", "~optimizer.fused", "optimizer.lr=0.01"]


class Corners(nn.Module):
    """Means of parts of an image, and what is brighter than they are: [B, 6, 16, 16]."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.last = last

    def forward(self, image: torch.Tensor, spatial: bool = False) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(image.float() / 255, 16)
        x = self.last(torch.cat([x, (x - 0.5).square()], dim=1))
        return x if spatial else x.mean((2, 3))


def write_corners(last: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's end
        torch.jit.save(torch.jit.script(Corners(last)), "corners.pt")


@pytest.fixture
def featured(there):
    """The pipeline's latents, cached with features, in runs/featured."""
    write_corners(nn.Identity())
    there("cache-latents", "run=featured", "autoencoder=runs/autoencoder", "features=corners.pt")
    return there


def test_the_cache_keeps_features_of_the_latents_size(featured):
    cache, plain = LatentCache("runs/featured", "full"), LatentCache("runs/latents", "size")
    card, side = cache.manifest.features, cache.latent_shape[1]
    assert card is not None
    assert (card.channels, card.height, card.width) == (6, side, side)
    assert card.identity.startswith("corners.pt, sha256 ")
    assert cache.stats_card["mean"] == plain.stats_card["mean"]
    batch = CachedMoments(cache, "train", aligned=True).__getitems__([(0, 0), (1, 0)])
    told = batch.told["features"]
    assert told.dtype == torch.float16
    assert told.shape == (2, 6, side, side)
    assert "features" not in CachedMoments(cache, "train").__getitems__([(0, 0)]).told


def test_a_layer_learns_them_and_samples_need_no_file(featured):
    featured("train-diffusion", *ALIGNED, "run=aligned", "steps=30", "every=30", "optimizer.lr=3e-3")
    likeness = [float(r["train/alignment"]) for r in rows("runs/aligned") if r["train/alignment"]]
    assert np.mean(likeness[-5:]) > np.mean(likeness[:5]) + 0.1
    Path("corners.pt").unlink()
    featured("sample", "model=runs/aligned", "num=2", "sampler.steps=1")
    average, now = checkpoint("runs/aligned", "diffusion")["state_dict"], "alignment.project.0.weight"
    assert torch.equal(average[now], checkpoint("runs/aligned", "diffusion")["current_model_state"][now])


def test_it_goes_on_as_if_it_had_not_stopped(featured):
    featured("train-diffusion", *ALIGNED, "align.until=3", "run=whole")
    featured("train-diffusion", *ALIGNED, "align.until=3", "run=parts", "steps=2")
    featured("train-diffusion", *ALIGNED, "align.until=3", "run=parts")
    assert_same_training("runs/parts", "runs/whole", "diffusion")


def test_parts_of_a_batch_add_up(featured):
    exact = [*ALIGNED, *SGD, "schedule.decay=constant"]
    featured("train-diffusion", *exact, "run=one")
    featured("train-diffusion", *exact, "run=two", "accumulate=2")
    assert_close_weights("runs/one", "runs/two", "diffusion", rtol=1e-4, atol=1e-6)


def test_it_does_not_go_on_towards_other_features(featured):
    aligned = [*TINY_AUTOENCODER, *CPU, "align.features=corners.pt", "run=vf"]
    featured("train-autoencoder", *aligned, "steps=2")
    featured("train-diffusion", *ALIGNED, "run=flow", "steps=2")
    write_corners(torch.nn.Tanh())
    assert "runs/vf was started with aligned=corners.pt, sha256" in fails("train-autoencoder", *aligned)
    featured("cache-latents", "run=others", "autoencoder=runs/autoencoder", "features=corners.pt")
    said = fails("train-diffusion", *ALIGNED, "latents=runs/others", "run=flow")
    assert "runs/flow was started with aligned=corners.pt, sha256" in said


@pytest.mark.slow
def test_ranks_change_nothing_sharded_or_not(featured):
    exact = [*ALIGNED, *SGD, "schedule.decay=constant", "align.until=3"]
    featured("train-diffusion", *exact, "run=one")
    for strategy in ("ddp", "fsdp"):
        ranks("train-diffusion", *exact, "batch_size=4", f"run={strategy}", f"trainer.strategy={strategy}")
        assert_close_weights("runs/one", f"runs/{strategy}", "diffusion", rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_compiled_network_is_aligned_likewise(featured):
    exact = [*ALIGNED, *SGD, "schedule.decay=constant"]
    featured("train-diffusion", *exact, "run=eager")
    featured("train-diffusion", *exact, "run=compiled", "trainer.compile=true")
    assert_close_weights("runs/eager", "runs/compiled", "diffusion", rtol=1e-4, atol=1e-5)


def test_an_autoencoder_s_latents_are_aligned(featured):
    aligned = [*TINY_AUTOENCODER, *CPU, "align.features=corners.pt"]
    featured("train-autoencoder", *aligned, "align.weight=5", "run=vf", "steps=30", "every=30", "loss.disc_start=20")
    likeness = [float(r["train/alignment"]) for r in rows("runs/vf") if r["train/alignment"]]
    assert np.mean(likeness[-5:]) > np.mean(likeness[:5]) + 0.1
    featured("train-autoencoder", *aligned, "run=parts", "steps=2")
    featured("train-autoencoder", *aligned, "run=parts")
    featured("train-autoencoder", *aligned, "run=whole")
    assert_same_training("runs/parts", "runs/whole", "autoencoder")
    Path("corners.pt").unlink()
    featured("cache-latents", "run=again", "autoencoder=runs/vf")


@pytest.mark.slow
def test_ranks_align_an_autoencoder_alike(featured):
    exact = [*EXACT_AUTOENCODER, "align.features=corners.pt"]
    featured("train-autoencoder", *exact, "run=one")
    ranks("train-autoencoder", *exact, "batch_size=2", "run=two")
    assert_close_weights("runs/one", "runs/two", "autoencoder", rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train-diffusion", ["latents=runs/latents", "align.layer=1"], "ldm cache-latents features=FILE"),
        ("train-diffusion", ["latents=runs/featured", "align.layer=99"], "UNet has blocks 0 to"),
        ("train-diffusion", ["latents=runs/featured", "align.layer=1", "objective=meanflow"], "align.layer is of a"),
        ("train-diffusion", ["latents=runs/featured", "align.layer=1", "align.weight=0"], "align.weight=0"),
        ("estimate", ["train-diffusion", "align.layer=1"], "leave align.layer out"),
        ("estimate", ["train-autoencoder", "align.features=corners.pt"], "leave it out"),
        ("estimate", ["cache-latents", "features=corners.pt"], "ldm estimate does not know what features= holds"),
        ("train-autoencoder", ["align.features=none.pt"], "align.features=none.pt does not exist"),
        ("cache-latents", ["run=again", "autoencoder=runs/autoencoder", "features=none.pt"], "features=none.pt does"),
        ("cache-latents", ["run=featured", "autoencoder=runs/autoencoder"], "features is"),
    ],
)
def test_what_does_not_fit_is_said(featured, command, words, said):
    assert said in fails(command, *words)
