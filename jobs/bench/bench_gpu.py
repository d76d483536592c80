"""Speed on one CUDA GPU, beside diffusers' networks on the same card.

    python jobs/bench/bench_gpu.py [SECTION ...] [--out FOLDER] [--minutes M] [--tiny] [--device cpu]

It measures the training step of experiment=imagenet256_f8 and the encoding of KL-f8 at 256 px, where their time goes,
what each part of conf/trainer/gpu.yaml brings, and the speed of `ldm train-diffusion` itself. Without names it runs all
sections but `autotune`. After --minutes it begins nothing more; a compilation that has begun takes a minute or two.

In --out: bench_gpu.jsonl, a row a line, to which each run adds; tables and Chrome traces of the profiles. A ratio is
the median over the rounds, and above 1 where ldm is faster. MFU is the share of the card's dense bf16 peak, by FLOPs
counted from each network. Memory is a step's peak, of each network alone. What fails is a row, too.
--tiny is for a test of this program: networks of the same kinds that take milliseconds.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_latents import write_cache
from gpu_pairs import encoders, unets
from gpu_rows import Bench
from gpu_turns import Contender, Pair, Setting, compare, prepare
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from timing import Task, middle

from ldm.checkpoint import LoadedAutoencoder, export_autoencoder
from ldm.commands.run_folder import plain
from ldm.data.shard_writer import AUTOENCODER_FILE
from ldm.models.autoencoder import Autoencoder
from ldm.weights import weights_fingerprint

ROOT = Path(__file__).parents[2]
BATCHES, PROFILED = 40, 3
TINY = ["net.model_channels=32", "net.channel_mult=[1,2]", "net.num_res_blocks=1", "net.attention_resolutions=[1,2]",
        "net.context_dim=32", "batch_size=2", "num_workers=0"]  # fmt: skip
ON_CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.compile=false"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is measured, as conf/ has it.

    Args:
        overrides:    options of `ldm train-diffusion`.
        setting:      of its trainer.
        batch:        images of a training step on one rank.
        encode_batch: images that `ldm cache-latents` encodes at once.
        autoencoder:  arguments of the autoencoder's constructor.
        latent_shape: C, h, w.
        classes:      number of labels.
        unets:        the networks whose training steps are compared.
        encoders:     the networks whose encoding is compared.
    """

    overrides: list[str]
    setting: Setting
    batch: int
    encode_batch: int
    autoencoder: dict[str, Any]
    latent_shape: tuple[int, ...]
    classes: int
    unets: Pair
    encoders: Pair


def read_recipe(tiny: bool, cuda: bool) -> Recipe:
    overrides = ["experiment=imagenet256_f8", "trainer.devices=1", *TINY * tiny, *ON_CPU * (not cuda)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config, caching = compose("train_diffusion", overrides), compose("cache_latents")
    trainer, autoencoder = config.trainer, plain(OmegaConf.load(ROOT / "conf/ae/kl_f8.yaml"))
    side, batch, classes = 256, caching.batch_size, 1000
    if tiny:
        autoencoder |= {"channels": 32, "channel_mult": [1, 1, 2, 2]}
        side, batch, classes = 32, 2, 10
    small = side // 2 ** (len(autoencoder["channel_mult"]) - 1)
    latent_shape = (autoencoder["latent_channels"], small, small)
    return Recipe(
        overrides=overrides,
        setting=Setting(
            bf16=trainer.precision == "bf16-mixed",
            channels_last=trainer.channels_last,
            compile=trainer.compile,
            benchmark=trainer.benchmark,
            fused=config.optimizer.fused,
        ),
        batch=config.batch_size,
        encode_batch=batch,
        autoencoder=autoencoder,
        latent_shape=latent_shape,
        classes=classes,
        unets=unets(plain(config.net), plain(config.optimizer), latent_shape, classes),
        encoders=encoders(autoencoder, side),
    )


def step(bench: Bench, recipe: Recipe) -> None:
    """The training step in the recipe's setting."""
    bench.recipe = compare(bench, "U-Net step, the recipe", recipe.unets, recipe.setting, recipe.batch)


def encode(bench: Bench, recipe: Recipe) -> None:
    """Encoding as `ldm cache-latents` does, then with what would speed it up."""
    fast = Setting(bf16=True, channels_last=True)
    settings = {
        "as cache-latents: float32, NCHW, eager": Setting(),
        "TF32 in its matrix products": Setting(tf32=True),
        "channels_last": Setting(channels_last=True),
        "bf16": Setting(bf16=True),
        "bf16, channels_last": fast,
        "bf16, channels_last, cudnn.benchmark": replace(fast, benchmark=True),
        "bf16, channels_last, compiled": replace(fast, compile=True),
    }
    for name, setting in settings.items():
        compare(bench, f"encoding, {name}", recipe.encoders, setting, recipe.encode_batch)


def factors(bench: Bench, recipe: Recipe) -> None:
    """The recipe with one thing taken away or added; what needs no new compilation comes first."""
    changes: list[dict[str, Any]] = [
        {"compile": not recipe.setting.compile},
        {"benchmark": not recipe.setting.benchmark},
        {"fused": not recipe.setting.fused},
        {"compile": "reduce-overhead"},
        {"channels_last": not recipe.setting.channels_last},
        {"flash": False},
        {"bf16": not recipe.setting.bf16},
    ]
    for change in changes:
        changed(bench, recipe, **change)


def autotune(bench: Bench, recipe: Recipe) -> None:
    """Inductor's trials of kernels, which may take longer than all other sections."""
    changed(bench, recipe, compile="max-autotune-no-cudagraphs")


def changed(bench: Bench, recipe: Recipe, **change: Any) -> None:
    what = "U-Net step, the recipe but " + ", ".join(f"{key}={value}" for key, value in change.items())
    compare(bench, what, recipe.unets, replace(recipe.setting, **change), recipe.batch, bench.recipe)


def profile(bench: Bench, recipe: Recipe) -> None:
    """Where the time goes, of the recipe's step and of encoding as it is."""
    profiled(bench, "unet_step", recipe.unets["ldm"], recipe.setting, recipe.batch)
    profiled(bench, "encoding", recipe.encoders["ldm"], Setting(), recipe.encode_batch)


def profiled(bench: Bench, name: str, contender: Contender, setting: Setting, batch: int) -> None:
    """Adds a row with the longest kernels; all are in OUT/name.txt, and when each ran in OUT/name.json.gz."""
    what = f"profile, {name}"
    if bench.passes_over(what):
        return
    try:
        with setting.switched():
            total, top = kernels(bench, name, prepare(bench, contender, setting, batch)[0])
        longest = "".join(f"\n    {1000 * seconds:8.2f} ms  {kernel[:100]}" for kernel, seconds in top.items())
        text = f"a call of batch {batch} has {1000 * total:.1f} ms of kernels{longest}\n   "
        bench.row(what, text, batch=batch, total_s=total, kernels=top)
    except Exception as error:
        bench.failed(what, error)
    finally:
        bench.clear()


def kernels(bench: Bench, name: str, task: Task) -> tuple[float, dict[str, float]]:
    """Seconds of a call in all kernels, and in the 20 longest; on a CPU, in operations."""
    with torch.profiler.profile() as seen:
        for _ in range(PROFILED):
            task()
        if bench.cuda:
            torch.cuda.synchronize()
    key, kind = ("self_device_time_total", "CUDA") if bench.cuda else ("self_cpu_time_total", "CPU")
    averages = seen.key_averages()
    (bench.out / f"{name}.txt").write_text(averages.table(sort_by=key, row_limit=100, max_name_column_width=100))
    seen.export_chrome_trace(str(bench.out / f"{name}.json.gz"))
    on_device = [a for a in averages if a.device_type.name == kind and not a.is_user_annotation]
    seconds = {a.key: getattr(a, key) / 1e6 / PROFILED for a in on_device}
    return sum(seconds.values()), dict(sorted(seconds.items(), key=lambda item: -item[1])[:20])


def synthetic_latents(recipe: Recipe, folder: Path) -> None:
    """Writes a cache of noise, with an untrained autoencoder: the speed does not depend on their values."""
    folder.mkdir()
    model = Autoencoder(**recipe.autoencoder)
    card = {"kind": "autoencoder", "autoencoder": recipe.autoencoder, "batches_seen": 0, "images_seen": 0}
    export_autoencoder(LoadedAutoencoder(folder, model, card, ""), folder / AUTOENCODER_FILE)
    channels, *plane = recipe.latent_shape
    shape, count = (2 * channels, *plane), 4 * recipe.batch
    values = np.random.default_rng(0).standard_normal((count, 1, *shape)).astype(np.float16)
    identity = {
        "format": 1,
        "autoencoder": weights_fingerprint(model),
        "preprocessing": {},
        "views": 1,
        "dtype": "float16",
        "class_names": [str(i) for i in range(recipe.classes)],
        "shape": list(shape),
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }
    write_cache(folder, values, identity)


def train(bench: Bench, recipe: Recipe) -> None:
    """The speed that `ldm train-diffusion` logs, without its first values, which include the compilation."""
    what = f"ldm train-diffusion, {BATCHES} batches"
    if bench.passes_over(what):
        return
    options = [f"steps={BATCHES}", f"every={BATCHES}", "keep=1", "run=bench", "latents=latents"]
    command = [sys.executable, "-m", "ldm", "train-diffusion", *recipe.overrides, *options,
               "trainer.limit_val_batches=0"]  # fmt: skip
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    try:
        with tempfile.TemporaryDirectory() as folder:
            synthetic_latents(recipe, Path(folder, "latents"))
            done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, text=True,
                                  capture_output=True, timeout=bench.seconds_left() + 60)  # fmt: skip
            if done.returncode:
                raise RuntimeError(" / ".join(done.stderr.strip().splitlines()[-3:]))
            figures = logged(Path(folder, "runs/bench/metrics.csv"))
    except Exception as error:
        bench.failed(what, error)
        return
    bare = bench.recipe.get("ldm", {}).get("images_per_s")
    if bare:
        figures["of_bare_step"] = figures["speed/images_per_s"] / bare
    text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    bench.row(what, f"batch {recipe.batch}, {text}", batch=recipe.batch, **figures)


def logged(file: Path) -> dict[str, float]:
    """Medians of the columns speed/*, without their first values."""
    with open(file, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("speed/images_per_s")][1:]
    names = [name for name in rows[0] if name.startswith("speed/") and rows[0][name]]
    return {name: middle([float(row[name]) for row in rows]) for name in names}


SECTIONS: dict[str, Callable[[Bench, Recipe], None]] = {
    f.__name__: f for f in (step, encode, profile, factors, train, autotune)
}
KEPT = {"train": 150.0}  # seconds that the sections before leave to this one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    chosen = given.sections or [name for name in SECTIONS if name != "autotune"]
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; --device cpu --tiny tries the program, make bench measures the CPU")
    if not cuda and not given.tiny:
        parser.error("these networks are a GPU's: --device cpu wants --tiny")
    rounds = {"rounds": 2, "repeats": 1, "warmups": 1} if given.tiny else {"rounds": 8, "repeats": 3, "warmups": 5}
    bench = Bench(torch.device(given.device), given.out, given.minutes, **rounds)
    recipe = read_recipe(given.tiny, cuda)
    card = torch.cuda.get_device_name() if cuda else "CPU"
    bench.row("machine", f"{card}, torch {torch.__version__}, {json.dumps(vars(recipe.setting))}", card=card,
              torch=torch.__version__, peak_flops=bench.peak)  # fmt: skip
    if not cuda:
        bench.say("memory and MFU: passed over, they are a GPU's")
    for i, name in enumerate(chosen):
        bench.section, bench.kept = name, sum(KEPT.get(later, 0.0) for later in chosen[i + 1 :])
        try:
            SECTIONS[name](bench, recipe)
        except Exception as error:  # a GPU in error fails whatever it is asked; `train` has a process of its own
            bench.failed(name, error)


if __name__ == "__main__":
    main()
