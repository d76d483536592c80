"""Memory layout and compilation change how a network runs, and nothing of what it learns."""

import pytest
import torch
from support.runs import assert_close_weights, weights
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails

from ldm.training.trainer import tune

SGD = ["optimizer._target_=torch.optim.SGD", "~optimizer.fused", "optimizer.lr=0.1"]


def same(one, other, kind):
    assert_close_weights(f"runs/{one}", f"runs/{other}", kind, rtol=1e-4, atol=1e-5)


def layouts(run, kind):
    return {tensor.is_contiguous() for tensor in weights(f"runs/{run}", kind).values() if tensor.dim() == 4}


@pytest.mark.slow
def test_channels_last_trains_the_same_and_a_run_may_change_it(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, *SGD, f"latents={pipeline}/runs/latents"]
    ldm("train-diffusion", *options, "run=nchw", "trainer.channels_last=false")
    ldm("train-diffusion", *options, "run=nhwc", "trainer.channels_last=true")
    same("nchw", "nhwc", "diffusion")
    assert False in layouts("nhwc", "diffusion")
    assert layouts("nchw", "diffusion") == {True}
    ldm("train-diffusion", *options, "run=nhwc", "trainer.channels_last=false", "steps=6")
    ldm("train-diffusion", *options, "run=nchw", "steps=6")
    same("nchw", "nhwc", "diffusion")


def test_stage_one_in_channels_last(ldm):
    # without noise, which torch draws in the order of memory; float64, for the game's kinks
    options = [*TINY_AUTOENCODER, *CPU, "trainer.precision=64-true", "regularizer=none"]
    for run, channels_last in (("nchw", "false"), ("nhwc", "true")):
        ldm("train-autoencoder", *options, f"run={run}", f"trainer.channels_last={channels_last}")
    same("nchw", "nhwc", "autoencoder")


@pytest.mark.long  # the compiler takes minutes on a slow core
@pytest.mark.parametrize("objective", ["flow", "meanflow"])  # the latter's target is of the compiled network, too
def test_compiled_trains_the_same(objective, ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, *SGD, f"latents={pipeline}/runs/latents", f"objective={objective}"]
    ldm("train-diffusion", *options, "run=eager")
    ldm("train-diffusion", *options, "run=compiled", "trainer.compile=true")
    same("eager", "compiled", "diffusion")
    ldm("sample", "model=runs/compiled", "num=4", "sampler.steps=2")


@pytest.mark.parametrize(("option", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_a_mode_of_the_compiler_can_be_chosen(option, mode, monkeypatch):
    net, asked = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(net, "compile", lambda **options: asked.append(options))
    _, (callback,) = tune([net], {"channels_last": False, "compile": option, "strategy": "auto"})
    callback.on_fit_start(None, None)
    assert asked == [{"mode": mode}]


def test_an_unknown_mode_of_the_compiler_is_refused(pipeline, ldm):
    line = fails("train-diffusion", f"latents={pipeline}/runs/latents", "trainer.compile=fast")
    assert "trainer.compile=fast must be true, false or a mode: default, reduce-overhead" in line


def test_stage_one_is_not_compiled(ldm):
    assert "pass trainer.compile=false" in fails("train-autoencoder", *TINY_AUTOENCODER, *CPU, "trainer.compile=true")


def test_shards_are_neither_laid_out_nor_replayed(pipeline, ldm):
    own = [f"latents={pipeline}/runs/latents", "trainer.strategy=fsdp"]
    assert "pass trainer.channels_last=false" in fails("train-diffusion", *own, "trainer.channels_last=true")
    assert "trainer.compile=true" in fails("train-diffusion", *own, "trainer.compile=reduce-overhead")
