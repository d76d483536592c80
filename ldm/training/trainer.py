"""Lightning's Trainer as this project uses it: its options in the config's words, its ranks as they were started."""

import warnings
from typing import Any, NamedTuple

import torch
from lightning import Callback
from lightning import Trainer as Trainer  # for the commands as well
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import nn

from ldm.runtime.ranks import Launch, launch
from ldm.training.lightning_internals import (
    FullyShardedStrategy,
    MisconfigurationException,
    ignore_known_warnings,
    leave_signals_alone,
)
from ldm.training.saves import AtomicCheckpointIO
from ldm.training.sharded_saves import ShardedSaves
from ldm.training.sharding import blocks_of
from ldm.training.speed import MODES, Compiled, half_of

ENVIRONMENTS = {"srun": SLURMEnvironment, "torchrun": TorchElasticEnvironment, "": LightningEnvironment}


def tune(networks: list[nn.Module], chosen: dict[str, Any]) -> tuple[dict[str, Any], list[Callback]]:
    """Lay the networks' weights out as trainer.channels_last says, and have a callback compile them as trainer.compile
    says; returns the other options, which are Lightning's own, and that callback, if any."""
    options = dict(chosen)
    channels_last, compiled = options.pop("channels_last"), options.pop("compile") or False
    if not isinstance(compiled, bool) and compiled not in MODES:
        raise ValueError(f"trainer.compile={compiled} must be true, false or a mode: {', '.join(MODES)}")
    for net in networks:
        net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if chosen["strategy"] != "fsdp":
        return options, [Compiled(networks, compiled)] if compiled else []
    if channels_last:
        raise ValueError("trainer.strategy=fsdp shards weights in their usual layout: pass trainer.channels_last=false")
    return options, [Compiled(_shards_of(networks), compiled)] if compiled else []


def _shards_of(networks: list[nn.Module]) -> list[nn.Module]:
    """What is compiled of sharded networks: their blocks, each of which is there when it is called.

    Raises:
        ValueError: if one names none.
    """
    blocks = {network: blocks_of(network) for network in networks}
    for network, named in blocks.items():
        if not named:
            raise ValueError(
                f"trainer.strategy=fsdp compiles a network block by block, and {type(network).__name__} has no "
                "attribute blocks: pass trainer.compile=false"
            )
    return [block for named in blocks.values() for block in named]


class RankBatch(NamedTuple):
    """A rank's share of a batch: how many images, and the parts that follow one another through the network."""

    size: int
    parts: int
    validated: int  # images of a validation's batch, which does not depend on the ranks


def ranks_of(chosen: dict[str, Any]) -> int:
    """How many ranks will train: those that were started, or those that Lightning will start for these options."""
    if (start := launch()).world > 1:
        return start.world
    devices = chosen["devices"]
    if devices in ("auto", -1, "-1"):
        gpus = torch.cuda.device_count() if chosen["accelerator"] in ("auto", "gpu", "cuda") else 0
        return max(1, gpus)
    return devices_named(devices) or 1


def devices_named(devices: int | str | list[int]) -> int | None:
    """How many devices trainer.devices names on a node: 2, "2", "0,1" or [0, 1]; None where it leaves that open."""
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdecimal() else None


def make_trainer(chosen: dict[str, Any], **fixed: Any) -> Trainer:
    """A Trainer with the options that the user has chosen and those that this project fixes.

    Raises:
        ValueError: if one is among both, if the ranks that were started are not those chosen, or if Lightning refuses.
    """
    both = chosen.keys() & fixed.keys()
    if both:
        raise ValueError(f"trainer.{next(iter(both))} can't be chosen: training sets it itself")
    start = launch()
    fixed |= _ranks(chosen, start)
    options = dict(chosen)
    within, sharded = options.pop("shard_within"), options.pop("checkpoints") == "sharded"
    if chosen["strategy"] == "fsdp":
        _check_groups(within, ranks_of(chosen))
        fixed["strategy"] = FullyShardedStrategy(
            within, half_of(chosen["precision"]), ShardedSaves() if sharded else None
        )
    # the environment is named, since Lightning takes any process within a SLURM job for one of srun's
    plugins = [AtomicCheckpointIO(), ENVIRONMENTS[start.by]()]
    try:
        with warnings.catch_warnings():
            ignore_known_warnings()
            trainer = Trainer(**options | fixed, plugins=plugins, enable_model_summary=False)
    except (MisconfigurationException, TypeError) as error:
        instead = "" if chosen["accelerator"] in ("auto", "cpu") else "; trainer=auto takes what this machine has"
        raise ValueError(f"trainer: {error}{instead}") from None
    leave_signals_alone(trainer)
    return trainer


def _check_groups(within: int | None, ranks: int) -> None:
    """ValueError if so many ranks can't be divided into groups of trainer.shard_within."""
    if within is not None and ranks % within:
        raise ValueError(f"trainer.shard_within={within} does not divide {ranks} ranks: pass null, or a divisor")


def _ranks(chosen: dict[str, Any], start: Launch) -> dict[str, Any]:
    """Devices and nodes, which whatever started the ranks has settled already; ValueError if others were chosen."""
    if start.world == 1:
        if chosen["num_nodes"] not in ("auto", 1):  # Lightning would wait for the others
            raise ValueError(
                f"trainer.num_nodes={chosen['num_nodes']}: start the command on each of them, by srun or torchrun"
            )
        return {"num_nodes": 1}
    started = {"devices": start.world // start.nodes, "num_nodes": start.nodes}
    for key, count in started.items():
        if chosen[key] not in ("auto", count):
            raise ValueError(
                f"trainer.{key}={chosen[key]}, but {start.by} started {count}: "
                f"start as many, or pass trainer.{key}=auto"
            )
    return started
