"""Runs that hold a checkpoint: what its card says, what metrics.csv has recorded, what training has cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.card import ANY_CARD, AutoencoderCard, DiffusionCard
from ldm.checkpoint import AUTOENCODER_PREFIX, CARD, NET_PREFIX, read, saved
from ldm.metrics.quality_stamp import QUALITY, QualityStamp
from ldm.report.facts import Cost, Link, Picture, Recipe, Series, Stage
from ldm.report.places import bytes_of, places
from ldm.runtime.files import flat
from ldm.runtime.tables import number, readable_rows
from ldm.runtime.targets import TARGET
from ldm.weights import part_of, state_fingerprint

METRICS = "metrics.csv"
STATES = ("state_dict", "current_model_state")  # a checkpoint's averaged weights, and those of the last batch
PREFIX = {"autoencoder": AUTOENCODER_PREFIX, "diffusion": NET_PREFIX}


def trained_stage(run: Path, kind: str | None, recipe: Recipe) -> Stage:
    """A run of stage 1 or 2, or an imported model.

    Args:
        kind : autoencoder or diffusion; None: as its checkpoint says
    """
    checkpoint, problems = last_whole(run, kind)
    rows, wrong = readable_rows(run / METRICS)
    problems += [wrong] if wrong else []
    curves = series_of(rows)
    if checkpoint is None:
        cost = cost_of(rows, None, recipe.config, run)
        return Stage(
            kind=kind or "other", run=run, recipe=recipe, pictures=pictures_of(run), curves=curves, cost=cost,
            problems=tuple(problems),
        )  # fmt: skip
    card = ANY_CARD.validate_json(json.dumps(checkpoint[CARD]))
    prefix = PREFIX[card.kind]
    states = [part_of(checkpoint[key], prefix) for key in STATES if key in checkpoint]
    facts = facts_of(card) | {"parameters": sum(tensor.numel() for tensor in states[0].values())}
    facts |= {} if card.global_batch is None else {"images of a batch": card.global_batch}
    if (run / QUALITY).is_file():
        try:
            judged = QualityStamp.read(run / QUALITY).model_dump(exclude={"checksum"})
            facts |= {
                f"scored while training: {key}": value for key, value in flat(judged).items() if value is not None
            }
        except ValueError as error:
            problems.append(str(error))
    steps = recipe.config.get("steps")
    if isinstance(steps, int | float) and card.batches_seen < steps:
        problems.append(f"{run} is not finished: {card.batches_seen:,} of {steps:,.0f} batches are saved")
    return Stage(
        kind=card.kind,
        run=run,
        recipe=recipe,
        facts=facts,
        fingerprints=tuple(dict.fromkeys(state_fingerprint(plain(state)) for state in states)),
        made_from=links_of(card, run, recipe.config),
        pictures=pictures_of(run),
        curves=curves,
        cost=cost_of(rows, card, recipe.config, run),
        problems=tuple(problems),
    )


def last_whole(run: Path, kind: str | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The last checkpoint that is whole, and a sentence for each later one."""
    files, problems = saved(run), list[str]()
    for file in reversed(files):
        try:
            checkpoint = read(file, kind)
            check_tensors(checkpoint, file)
            return checkpoint, problems
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return None, problems or [f"{run} holds no checkpoint: it has not saved yet, or they were removed"]


def check_tensors(checkpoint: dict[str, Any], file: Path) -> None:
    """ValueError if what should be weights is something else."""
    for key in STATES:
        state = checkpoint.get(key, {})
        if not isinstance(state, dict):
            raise ValueError(f"{file}: {key} holds no weights: take another checkpoint of its run")
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
                raise ValueError(f"{file}: {name} is no plain tensor: take another checkpoint of its run")


def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as a model that is loaded has them: in float32, trained in float64 or not."""
    return {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in state.items()}


def facts_of(card: AutoencoderCard | DiffusionCard) -> dict[str, Any]:
    """What a card says of the model, by name."""
    facts: dict[str, Any] = {}
    if card.imported_from is not None:
        facts["imported from"] = card.imported_from
    if isinstance(card, DiffusionCard):
        objective = card.objective
        facts |= {
            "network": short(card.net),
            "codes": objective.get("codes"),
            "path": short(objective.get("path")),
            "predicts": objective.get("parameterization"),
            "weighting": short(objective.get("weighting")),
            "times": short(objective.get("time_sampler")),
            "latent shape": card.latent_shape,
            "classes": len(card.class_names),
            "class names": card.class_names,
            "label dropout": card.label_dropout,
            "student": None if card.student is None else short(card.student.method),
        }
    else:
        shape = card.autoencoder
        facts |= {
            "latent channels": shape.get("latent_channels"),
            "downsampling": 2 ** (len(shape["channel_mult"]) - 1) if "channel_mult" in shape else None,
        }
    facts["resolution"] = (card.preprocessing or {}).get("resolution")
    facts |= {"batches": card.batches_seen, "images": card.images_seen}
    facts |= {"rollbacks": card.rollbacks} if card.rollbacks else {}
    return {name: value for name, value in facts.items() if value is not None}


def short(node: Any) -> str | None:
    """A node as a person says it: LogitNormal(mean=0.0, std=1.0)."""
    if not isinstance(node, dict) or TARGET not in node:
        return None if node is None else str(node)
    arguments = [f"{key}={value}" for key, value in node.items() if not key.startswith("_")]
    name = str(node[TARGET]).rpartition(".")[2]
    return f"{name}({', '.join(arguments)})" if arguments else name


def links_of(card: AutoencoderCard | DiffusionCard, run: Path, config: dict[str, Any]) -> tuple[Link, ...]:
    """Of a diffusion model, its cache and its autoencoder; of an autoencoder, what it was started from."""
    links = []
    if isinstance(card, DiffusionCard):
        if config.get("latents") is not None:
            links.append(Link(("latents",), "", places(run, config, str(config["latents"])), str(config["latents"])))
        at = str(config.get("autoencoder") or card.autoencoder_path)
        nearby = (run / card.autoencoder_path, *places(run, config, at))
        links.append(Link(("autoencoder",), card.autoencoder, nearby, at))
        if card.student is not None and card.student.teacher is not None and card.student.teacher_path is not None:
            named = str(config.get("teacher") or card.student.teacher_path)
            nearby = (run / card.student.teacher_path, *places(run, config, named))
            links.append(Link(("diffusion",), card.student.teacher, nearby, named))
    return tuple(links)


def pictures_of(run: Path) -> tuple[Picture, ...]:
    """The first, the middle and the last picture of each folder that training draws into."""
    found = []
    for folder, kind, what in (
        ("reconstructions", "reconstructions", "held-out images and their reconstructions"),
        ("samples", "progress", "samples"),
    ):
        files = sorted((f for f in (run / folder).glob("*.png") if f.stem.isdecimal()), key=lambda f: int(f.stem))
        chosen = dict.fromkeys(files[i] for i in (0, (len(files) - 1) // 2, -1)) if files else {}
        found += [Picture(kind, file, f"{what} after {int(file.stem):,} batches") for file in chosen]
    return tuple(found)


def series_of(rows: list[dict[str, str]]) -> Series:
    """Batches and values, [N] each, of every metric that N rows hold; values that are no numbers are left out."""
    series = {}
    for name in sorted({name for row in rows for name in row if "/" in name}):
        points = [(int(row["step"]) + 1, value) for row in rows if (value := number(row.get(name))) is not None]
        finite = [(batch, value) for batch, value in points if np.isfinite(value)]
        if finite:
            batches, values = zip(*finite, strict=True)
            series[name] = (np.array(batches), np.array(values))
    return series


def cost_of(
    rows: list[dict[str, str]], card: AutoencoderCard | DiffusionCard | None, config: dict[str, Any], run: Path
) -> Cost:
    """What training has taken, by metrics.csv and the card.

    A row's speed is the mean since the row before it, so that the images between them took images / speed seconds. Its
    TFLOP/s are of one rank, by the count of a whole batch, forward and backward; under global_batch= nobody knows of
    how many ranks.
    """
    global_batch, batch = None if card is None else card.global_batch, config.get("batch_size")
    batch = None if config.get("global_batch") else batch
    ranks = max(1, global_batch // batch) if global_batch and isinstance(batch, int) and batch > 0 else None
    seconds, timed, before = 0.0, 0.0, 0.0
    per_image, memory = list[float](), list[float]()
    for row in rows:
        images, speed = number(row.get("images")), number(row.get("speed/images_per_s"))
        if images is None or speed is None or not speed > 0 or images <= before:
            continue
        seconds, timed, before = seconds + (images - before) / speed, timed + images - before, images
        tflops = number(row.get("speed/tflops"))
        per_image += [tflops * 1e12 * (ranks or 1) / speed] if tflops and not config.get("global_batch") else []
        memory += [gb] if (gb := number(row.get("speed/gpu_memory_gb"))) else []
    seen = card.images_seen if card is not None else int(before) or None
    batches = card.batches_seen if card is not None else max((int(row["step"]) + 1 for row in rows), default=None)
    return Cost(
        seconds=seconds if timed else None,
        images=seen,
        batches=batches,
        flops=float(np.median(per_image)) * seen if per_image and seen else None,
        images_per_s=timed / seconds if seconds else None,
        ranks=ranks,
        gpu_memory_gb=max(memory, default=None),
        disk_bytes=bytes_of(run),
    )
