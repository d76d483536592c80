"""Stage 1 with codes, and stage 2 on the vectors before they are rounded (LDM's way)."""

import pytest
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_training, checkpoint, rows
from support.tiny import CPU, EXACT_AUTOENCODER, TINY_AUTOENCODER, TINY_DIFFUSION, fails

import ldm as package

VQ = ["regularizer=vq", "regularizer.codes=32"]
FSQ = ["regularizer=fsq", "autoencoder.latent_channels=4"]
KINDS = {"vq": VQ, "ema": [*VQ, "regularizer.ema=0.9", "regularizer.restart=0.1"], "fsq": FSQ}


@pytest.mark.parametrize("kind", KINDS)
def test_both_stages_and_what_follows_them(ldm, kind):
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, *KINDS[kind])
    last = rows("runs/autoencoder")[-1]
    assert 0 < float(last["val/codes_used"]) <= 1
    assert float(last["val/perplexity"]) >= 1
    assert any(float(row["train/code_distance"] or 0) > 0 for row in rows("runs/autoencoder"))
    ldm("cache-latents", "shard_size=600")
    ldm("train-diffusion", *TINY_DIFFUSION, *CPU)
    ldm("sample", "num=2", "sampler.steps=1")
    model = package.load("runs/diffusion")
    assert model.sample([1], n=1, steps=1).shape[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_as_if_it_had_not_stopped(ldm, kind):
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, *KINDS[kind], "run=whole")
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, *KINDS[kind], "run=parts", "steps=2")
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, *KINDS[kind], "run=parts")
    assert_same_training("runs/parts", "runs/whole", "autoencoder")


def test_parts_of_a_batch_add_up(ldm):
    exact = [*EXACT_AUTOENCODER, *VQ]
    ldm("train-autoencoder", *exact, "run=one")
    ldm("train-autoencoder", *exact, "run=two", "accumulate=2")
    assert_close_weights("runs/one", "runs/two", "autoencoder", rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["0.0", "0.9"])
def test_ranks_agree_on_the_codebook(ldm, ema):
    exact = [*EXACT_AUTOENCODER, *VQ, f"regularizer.ema={ema}"]
    ldm("train-autoencoder", *exact, "run=one")
    ranks("train-autoencoder", *exact, "batch_size=2", "run=two")
    assert_close_weights("runs/one", "runs/two", "autoencoder", rtol=1e-6, atol=1e-8)
    books = [checkpoint(f"runs/{run}", "autoencoder")["state_dict"]["autoencoder.quantize.embedding.weight"]
             for run in ("one", "two")]  # fmt: skip
    assert books[0].allclose(books[1])


def test_what_does_not_fit_is_said(ldm):
    assert "pass autoencoder.latent_channels=4" in fails("train-autoencoder", *TINY_AUTOENCODER, "regularizer=fsq",
                                                         "autoencoder.latent_channels=3")  # fmt: skip
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, *FSQ, "run=fsq", "steps=2")
    assert "choose regularizer= likewise" in fails("train-autoencoder", *TINY_AUTOENCODER, *VQ, "init=runs/fsq",
                                                   "autoencoder.latent_channels=4")  # fmt: skip
    assert "codes by distance alone" in fails(
        "convert", "source=runs/fsq", "to=diffusers", "run=out", "scaling_factor=1"
    )
