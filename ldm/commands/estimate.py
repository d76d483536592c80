"""Say what another command would cost: parameters, FLOPs, memory, hours, disk. It writes nothing and needs no data."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from ldm.commands.config_files import ESTIMATED, conf_folder, of_estimate
from ldm.commands.entry import TRACE
from ldm.commands.estimate_inference import cache_latents_cost, sample_cost
from ldm.commands.estimate_options import EstimateOptions
from ldm.commands.estimate_training import train_autoencoder_cost, train_diffusion_cost, turned
from ldm.commands.hydra_errors import check_command_line, explain, is_users
from ldm.commands.options import Options
from ldm.runtime.gpus import CPU, Device
from ldm.training.cost import GIB, RESERVED, Cost, room

COSTS: dict[str, Callable[..., Cost]] = {
    "train-autoencoder": train_autoencoder_cost,
    "train-diffusion": train_diffusion_cost,
    "cache-latents": cache_latents_cost,
    "sample": sample_cost,
}
NOT_GIVEN = "(not given)"  # in place of a path that only the command itself needs
NOT_COUNTED = {
    "a GPU": "fragmentation, cuDNN's workspaces beyond {reserved:.0f} GiB, what torch.compile saves",
    CPU: "Python and its libraries (about 0.7 GiB), oneDNN's copies of weights",
}


def estimate(words: list[str]) -> None:
    """Run `ldm estimate COMMAND ...` on the words after `estimate`; a user's mistake ends in one line."""
    command, *rest = words or [""]
    try:
        if command not in COSTS:
            raise ValueError(f"ldm estimate {command or 'COMMAND'}: the command must be one of {', '.join(COSTS)}")
        if flags := [word for word in rest if word.startswith("-")]:
            raise ValueError(f"{flags[0]}: ldm estimate takes KEY=VALUE and GROUP=CHOICE alone, and --help")
        own, others = of_estimate(command, rest)
        check_command_line(command, others)
        options, given = options_of(command, others), given_by(own)
        device = given.device()
        cost = COSTS[command](options, given, gpu=device.name != CPU)
        print("\n".join(report(command, options, cost, given, device)))
    except Exception as error:
        if os.environ.get(TRACE) == "1" or not is_users(error):
            raise
        sys.exit(f"ldm: error: {explain(error, command if command in ESTIMATED else 'estimate', rest)}")


def main(options: EstimateOptions, command: str, words: list[str]) -> Cost:
    """The cost of a command with these overrides.

    Raises:
        ValueError: in the words of the command, if it would refuse them.
    """
    return COSTS[command](options_of(command, words), options, gpu=options.device().name != CPU)


def given_by(words: list[str]) -> EstimateOptions:
    """What `ldm estimate` itself is told."""
    try:
        return EstimateOptions.parse(composed("estimate", words))
    except Exception as error:
        if not is_users(error):
            raise
        raise ValueError(explain(error, "estimate", words)) from None


def options_of(command: str, words: list[str]) -> Any:
    """A command's typed options, though what only its data need is missing."""
    config = composed(command, [word for word in words if not word.lstrip("+~").startswith("logger")])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, NOT_GIVEN)
    schema: type[Options] = get_type_hints(import_module(f"ldm.commands.{command.replace('-', '_')}").main)["options"]
    return schema.parse(config)


def composed(command: str, words: list[str]) -> DictConfig:
    """conf/COMMAND.yaml with overrides, without a run."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(command.replace("-", "_"), words)


def report(command: str, options: Any, cost: Cost, given: EstimateOptions, device: Device) -> list[str]:
    """The lines that are printed."""
    share = given.share_of(device)
    trains = command.startswith("train-")
    what = "an image trained" if trains else "an image"
    counted = (
        f"{figures(cost.flops / 1e9)} GFLOP {what}" if cost.flops else "FLOPs unknown: the network looks at values"
    )
    lines = [f"network   {cost.parameters / 1e6:,.1f} M parameters{' trained' * trains}; {counted}"]
    lines += [f"memory    {cost.peak / GIB:.2f} GiB: {memory_of(cost)}", f"          {verdict(cost, device)}"]
    if not cost.fits(device):
        lines += [f"          {line}" for line in remedies(command, options, cost, given, device)]
    lines += [f"speed     {speed_of(cost, device, share)}"]
    lines += [f"time      {time_of(command, options, cost, device, share)}"]
    lines += [f"disk      {', '.join(f'{name} {size_of(size)}' for name, size in cost.disk.items()) or 'unknown'}"]
    kind = NOT_COUNTED[CPU if device.name == CPU else "a GPU"].format(reserved=RESERVED / GIB)
    speed = f"{share:.0%} of {device.peak(cost.precision) / 1e12:,.3g} TFLOP/s in {cost.precision}"
    key = "cpu_share" if device.name == CPU else "share"
    assumed = [f"{device.name} reaches {speed} ({key}={share:g}), which nobody measured for this command"]
    if device.half_type == "fp16" and cost.precision.startswith("bf16"):
        assumed.append(f"{device.name} has no bf16 on its tensor cores: pass trainer.precision=16-mixed")
    assumed += [line for line in cost.said if line]
    assumed += [f"memory counts one step as torch's CPU kernels need it; not counted: {kind}"]
    assumed += ["time is that of steps alone: no start, no reading, no validation, no saving"] * trains
    return lines + [f"{'assumed' if i == 0 else '':9} {line}" for i, line in enumerate(assumed)]


def memory_of(cost: Cost) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in cost.memory.items() if size > 0)


def verdict(cost: Cost, device: Device) -> str:
    there = f"{device.name}: {device.memory:.3g} GiB"
    there += "" if device.name == CPU else f", {RESERVED / GIB:.0f} of them for CUDA itself"
    free = (room(device) - cost.peak) / GIB
    return (
        f"it fits ({there}), {free:.1f} GiB are left"
        if free >= 0
        else f"it does NOT fit ({there}): {-free:.1f} GiB too much"
    )


def remedies(command: str, options: Any, cost: Cost, given: EstimateOptions, device: Device) -> list[str]:
    """What each key that makes the step smaller would make of it."""
    gpu = device.name != CPU
    worst = cost.memory.get("activations", 0.0)
    left = room(device) - (cost.peak - worst)
    if command.startswith("train-"):
        lines = []
        for words, changed in turned(options, worst / left if left > 0 else float(options.batch_size)):
            other = COSTS[command](changed, given, gpu=gpu)
            lines.append(
                f"turn {words}: {other.peak / GIB:.2f} GiB, {'which fits' if other.fits(device) else 'too much'}"
            )
        return lines or ["no key makes it fit: take a smaller network"]
    smaller = int(options.batch_size * left / worst) if left > 0 else 0
    return [
        f"turn batch_size={smaller}, which changes nothing but speed" if smaller else "no batch fits beside the weights"
    ]


def speed_of(cost: Cost, device: Device, share: float) -> str:
    rate = cost.images_per_s(device, share)
    together = f" of each of {cost.ranks} devices" if cost.ranks > 1 else ""
    return f"{rate:,.3g} images/s{together}" if rate else "unknown"


def time_of(command: str, options: Any, cost: Cost, device: Device, share: float) -> str:
    hours = cost.hours(device, share)
    if hours is None or cost.images is None:
        return "unknown"
    passes = f"{options.steps:,} batches of {cost.a_step} x {cost.ranks}, " if command.startswith("train-") else ""
    said = f"{duration(hours)} for {passes}{cost.images:,} images"
    return said + (f"; {hours * cost.ranks:,.3g} device-hours" if cost.ranks > 1 else "")


def figures(value: float) -> str:
    """Three figures, and all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"


def size_of(size: float) -> str:
    """In the units of disks."""
    return f"{size / 1e9:,.3g} GB" if size >= 1e9 else f"{size / 1e6:,.3g} MB"
