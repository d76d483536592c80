"""Options: types, ranges, choices and what must hold across keys, each refusal in one line with the key and the fix."""

from dataclasses import dataclass
from typing import Literal

import pytest
from support.config import parsed

from ldm.runtime.arguments import check_arguments
from ldm.runtime.ranges import Count, Share
from ldm.runtime.wrong import ArgumentError


@pytest.mark.parametrize(
    ("command", "override", "line"),
    [
        ("train-diffusion", "steps=abc", "steps=abc must be a whole number"),
        ("train-diffusion", "steps=0", "steps=0 must be at least 1"),
        ("train-diffusion", "steps=1.5", "steps=1.5 must be a whole number"),
        ("train-diffusion", "steps=true", "steps=true must be a whole number"),
        ("train-diffusion", "steps=inf", "steps=Infinity must be a whole number"),
        ("train-diffusion", "batch_size=[1]", "batch_size=[1] must be a whole number"),
        ("train-diffusion", "batch_size=null", "batch_size=null must be a whole number"),
        ("train-diffusion", "ema_decay=2", "ema_decay=2 must be less than 1"),
        ("train-diffusion", "ema_decay=nan", "ema_decay=NaN must be a finite number"),
        ("train-diffusion", "label_dropout=-0.1", "label_dropout=-0.1 must be at least 0"),
        ("train-diffusion", "verify=often", "verify=often must be once, full or size"),
        ("train-diffusion", "optimizer.lr=abc", "optimizer.lr=abc must be a number"),
        ("train-diffusion", "optimizer.lr=-1", "optimizer.lr=-1 must be a finite number of more than 0"),
        ("train-diffusion", "optimizer.lr=inf", "optimizer.lr=Infinity must be a finite number"),
        ("train-diffusion", "+optimizer.rate=1", "optimizer.rate is no option of AdamW, which has "),
        ("train-diffusion", "net.channel_mult=2", "net.channel_mult=2 must be a list"),
        ("train-diffusion", "net.model_channels=wide", "net.model_channels=wide must be a whole number"),
        ("train-diffusion", "net._target_=nowhere.Net", "net._target_=nowhere.Net can't be imported"),
        (
            "train-diffusion",
            "objective.parameterization=u",
            "objective.parameterization=u must be x0, eps, v or velocity",
        ),
        ("train-diffusion", "+objective.path.sigma_min=x", "objective.path.sigma_min=x must be a number"),
        ("train-diffusion", "schedule.decay=step", "schedule.decay=step must be constant or cosine"),
        ("train-diffusion", "trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 must be at least 1"),
        ("train-diffusion", "+trainer.epochs=3", "trainer.epochs is no option of Trainer, which has "),
        ("train-autoencoder", "+autoencoder.foo=1", "autoencoder.foo is no option of Autoencoder, which has "),
        ("train-autoencoder", "autoencoder.channels=0.5", "autoencoder.channels=0.5 must be a whole number"),
        ("train-autoencoder", "loss.disc_loss=wgan", "loss.disc_loss=wgan must be hinge or vanilla"),
        ("train-autoencoder", "trained=encoder", "trained=encoder must be all or decoder"),
        ("train-autoencoder", "accumulate=3", "batch_size=16 can't be divided into accumulate=3 equal parts"),
        ("train-autoencoder", "trained=decoder", "trained=decoder needs an encoder that is trained already"),
        ("train-autoencoder", "trainer.precision=bf16-true", "trainer.precision=bf16-true must be 32-true"),
        ("train-autoencoder", "regularizer.weight=heavy", "regularizer.weight=heavy must be a number"),
        ("sample", "guidance=-1", "guidance=-1 must be at least 0"),
        ("sample", "guidance=nan", "guidance=NaN must be a finite number"),
        ("sample", "guidance=inf", "guidance=Infinity must be a finite number"),
        ("sample", "guidance_interval=[0.1]", "guidance_interval=[0.1] has too few values"),
        ("sample", "weights=best", "weights=best must be ema or raw"),
        ("sample", "sampler.steps=0", "sampler.steps=0 must be at least 1"),
        ("sample", "classes=1.5", "classes=1.5 must be a list or text or a whole number"),
        ("evaluate", "neighbours=3", "neighbours=3 must be a group of keys"),
        ("evaluate", "keep=3", "keep=3 must be more than neighbours=5"),
        (
            "evaluate",
            "samples=null classifier=svc",
            "samples=null scores an autoencoder alone: classifier needs samples",
        ),
        ("likelihood", "likelihood.divergence=guess", "likelihood.divergence=guess must be exact or hutchinson"),
        ("summarize", "best=most", "best=most must be min or max"),
        ("cache-latents", "num_workers=0", "num_workers=0 must be at least 1"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_key(command, override, line):
    with pytest.raises(ValueError, match=r"must|no option|needs|imported|scores|divided|missing|few") as info:
        parsed(command, *override.split())
    assert line in str(info.value)
    assert "\n" not in str(info.value)


def test_whole_numbers_may_be_written_as_floats():
    options = parsed("train-diffusion", "steps=1e5", "every=2e4", "schedule.warmup=1e3")
    assert (options.steps, options.every, options.schedule["warmup"]) == (100_000, 20_000, 1000)
    assert all(isinstance(number, int) for number in (options.steps, options.schedule["warmup"]))


@pytest.mark.parametrize(("given", "kept"), [("1.0", 1.0), ("1", 1), ("2.0", 2), ("0.5", 0.5)])
def test_all_batches_are_not_one_batch(given, kept):  # where a share and a number both belong, both stay what they are
    limit = parsed("train-diffusion", f"trainer.limit_val_batches={given}").trainer.arguments()["limit_val_batches"]
    assert (limit, type(limit)) == (kept, type(kept))
    assert isinstance(parsed("train-diffusion").trainer.limit_val_batches, float)
    assert type(check_arguments(Thing, {"size": 1, "limit": float(given)})["limit"]) is float


def test_options_are_frozen_and_keep_the_config_as_it_was_given():
    options = parsed("train-diffusion", "steps=960", "every=160")
    with pytest.raises(ValueError, match="frozen"):
        options.steps = 3
    assert options.plain()["steps"] == 960
    assert options.plain()["objective"]["path"] == {"_target_": "ldm.diffusion.path.LinearPath"}


@dataclass(frozen=True, kw_only=True)
class Thing:
    size: Count
    share: Share = 0.5
    kind: Literal["a", "b"] = "a"
    inner: object = None
    limit: int | float | None = None


def test_a_signature_is_the_schema():
    assert check_arguments(Thing, {"size": 2.0}) == {"size": 2}
    nested = {"size": 1, "inner": {"_target_": "ldm.diffusion.path.VPPath", "beta_min": "x"}}
    for given, line in (
        ({"size": 0}, ".size=0 must be at least 1"),
        ({"size": 1, "share": 2}, ".share=2 must be at most 1"),
        ({"size": 1, "kind": "c"}, ".kind=c must be a or b"),
        ({"size": 1, "colour": 1}, ".colour is no option of Thing, which has size, share, kind, inner, limit"),
        ({}, ".size is missing, which Thing needs"),
        (nested, ".inner.beta_min=x must be a number"),
    ):
        with pytest.raises(ArgumentError) as info:
            check_arguments(Thing, given)
        assert str(info.value) == line


def test_what_the_same_run_may_change_is_marked_at_the_option():
    stage1, stage2 = parsed("train-autoencoder").free_keys(), parsed("train-diffusion").free_keys()
    assert {"run", "steps", "trainer", "logger", "health", "probe"} <= stage1
    assert {"steps", "latents", "autoencoder", "net.checkpoint", "objective.sampling", "guidance"} <= stage2
    assert not {"seed", "autoencoder", "loss", "optimizer", "ema_decay"} & stage1
    assert not {"seed", "net", "objective", "optimizer", "label_dropout", "ema_decay"} & stage2
