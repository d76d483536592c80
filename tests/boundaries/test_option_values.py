"""Any value for any option: it is taken as what it is, or refused by its key in one line."""

import math
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from support.config import composed
from support.refusals import time_limit

COMMANDS = (
    "train_autoencoder",
    "train_diffusion",
    "cache_latents",
    "sample",
    "evaluate",
    "likelihood",
    "pack",
    "convert",
)
GIVEN = {  # what has no default
    "sample": {"model": "runs/x"},
    "convert": {"source": "runs/x"},
    "pack": {"data.root": "photos"},
}


@cache
def right(command: str) -> DictConfig:
    return composed(command, *(f"{key}={value}" for key, value in GIVEN.get(command, {}).items()))


def parse(command: str, key: str, value: Any) -> Any:
    config = right(command).copy()
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    return get_type_hints(import_module(f"ldm.commands.{command}").main)["options"].parse(config)


NUMBERS = [-1, 0, 1.5, math.nan, math.inf, True, None, "abc", [1], {"a": 1}, 10**400 if False else -(10**9)]
BAD: dict[tuple[str, str], list[Any]] = {  # values that must be refused, by key
    ("train_diffusion", "steps"): [*NUMBERS, "1"],
    ("train_diffusion", "every"): NUMBERS,
    ("train_diffusion", "keep"): NUMBERS,
    ("train_diffusion", "batch_size"): NUMBERS,
    ("train_diffusion", "num_workers"): [-1, 1.5, math.nan, True, None, "abc", [1], 1000],
    ("train_diffusion", "ema_decay"): [2, -1, math.nan, 1, "abc", None, True, [0.5]],
    ("train_diffusion", "label_dropout"): [2, -0.1, math.nan, "abc", None, True],
    ("train_diffusion", "guidance"): [-1, math.nan, math.inf, "abc", True],
    ("train_diffusion", "optimizer.lr"): [0, -1, math.nan, math.inf, "abc", None, True, [1]],
    ("train_diffusion", "optimizer.weight_decay"): [-1, math.nan, math.inf, "abc", True],
    ("train_diffusion", "guard.patience"): [0, -1, 1.5, "abc", None],
    ("train_diffusion", "rollbacks"): [-1, 1.5, "abc", None, True],
    ("train_diffusion", "rollback_lr"): [0, 2, math.nan, "abc", None],
    ("train_diffusion", "seed"): [-1, 1.5, math.nan, "abc", None, True],
    ("train_diffusion", "verify"): ["never", 1, None, True],
    ("train_diffusion", "net.num_res_blocks"): [0, 65, -1, 1.5, "abc", None],
    ("train_diffusion", "net.model_channels"): [0, -1, 1.5, "abc", None],
    ("train_diffusion", "net.channel_mult"): [[], [0], [-1], "abc", None, 13 * [1]],
    ("train_diffusion", "trainer.precision"): ["fp8", 15, None, "bf16-true", "16-true"],
    ("train_diffusion", "trainer.limit_val_batches"): [-1, 1.5, "abc", None],
    ("train_diffusion", "run"): ["", ".", "..", "../x", "/tmp/x", "a//b", "a/../b", "a\nb", 300 * "x", None, [1]],
    ("train_diffusion", "trust"): [["os;rm"], ["a b"], "x-y", [1]],
    ("train_autoencoder", "autoencoder.channels"): [0, -8, 1.5, "abc", None, True],
    ("train_autoencoder", "autoencoder.channel_mult"): [[], [0], "abc", None],
    ("train_autoencoder", "loss.disc_weight"): [-1, math.nan, "abc"],
    ("train_autoencoder", "accumulate"): [0, -1, 1.5, "abc", None],
    ("train_autoencoder", "data.resolution"): [0, -1, 1.5, "abc", None],
    ("train_autoencoder", "data.on_error"): ["ignore", 1, None],
    ("cache_latents", "shard_size"): NUMBERS,
    ("cache_latents", "batch_size"): NUMBERS,
    ("cache_latents", "num_workers"): [-1, 1.5, "abc", None, 1000],
    ("sample", "num"): NUMBERS,
    ("sample", "guidance"): [-1, math.nan, math.inf, "abc"],
    ("sample", "guidance_interval"): [[0], [0, 2], [-1, 1], "abc", None, [0, math.nan]],
    ("sample", "guidance_rescale"): [-1, 2, math.nan, "abc"],
    ("sample", "weights"): ["none", 1, None],
    ("sample", "sampler.steps"): [0, -1, 1.5, "abc", True],
    ("pack", "shard_size"): NUMBERS,
}
CASES = [
    pytest.param(command, key, value, id=f"{command}-{key}-{str(value)[:20]}")
    for (command, key), values in BAD.items()
    for value in values
]


@pytest.mark.parametrize(("command", "key", "value"), CASES)
def test_what_does_not_belong_is_refused_by_its_key(command, key, value):
    with time_limit(), pytest.raises(ValueError, match=key.replace(".", r"\.")) as info:
        parse(command, key, value)
    assert "\n" not in str(info.value)


KEYS = [
    (command, str(key))
    for command in ("train_diffusion", "sample", "cache_latents")
    for key in sorted(map(str, right(command).keys() - {"hydra", "ldm"}))
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_taken_or_refused_by_that_key(place, value):
    command, key = place
    try:
        options = parse(command, key, value)
    except ValueError as error:
        assert key in str(error)
        assert "\n" not in str(error)
        return
    taken = getattr(options, {"from": "start"}.get(key, key))  # a word of Python's
    if isinstance(value, bool | int | float) and not isinstance(taken, str):
        assert taken == value
