"""Generate images with a trained model: samples.npz, grid.png, trajectory.png, sample.json."""

import io
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.command import build, command, plain


@command
def main(config: DictConfig, run: Path) -> None:
    import numpy as np
    import torch
    from rich.progress import track

    from ldm.checkpoint import load_diffusion, matching_autoencoder
    from ldm.files import atomic_write, write_json
    from ldm.generate import Generator
    from ldm.images import grid, save_png
    from ldm.ranks import gather, join_ranks, pick_device

    model = load_diffusion(config.model)
    card, device = model.card, pick_device(config.device)
    folder = model.path if model.path.is_dir() else model.path.parents[1]
    autoencoder = matching_autoencoder(config.autoencoder, card["autoencoder_path"], folder, card["autoencoder"])
    classes = check(config, card)
    generator = Generator(
        net=model.net.to(device),
        objective=model.objective,
        stats=model.stats,
        autoencoder=autoencoder.model.to(device),
        latent_shape=tuple(card["latent_shape"]),
        guidance=config.guidance,
        seed=config.seed,
        **build(config.sampler),
    )
    labels = torch.tensor([classes[i % len(classes)] for i in range(config.num)])

    rank, world = join_ranks()
    mine = range(rank, config.num, world)
    batches = [mine[i : i + config.batch_size] for i in range(0, len(mine), config.batch_size)]
    images, evaluations = [], 0
    for indices in track(batches, description="sampling", disable=rank != 0):
        image, evaluations = generator.images(indices, labels[list(indices)].to(device))
        images.append(image.cpu())
    gathered = gather(torch.cat(images) if images else torch.empty(0))
    if rank != 0:
        return
    samples = torch.empty(config.num, *gathered[0].shape[1:], dtype=torch.uint8)
    for i, part in enumerate(gathered):
        samples[i::world] = part

    buffer = io.BytesIO()
    np.savez(buffer, arr_0=samples.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    with atomic_write(run / "samples.npz") as file:
        file.write(buffer.getvalue())
    stamp: dict[str, Any] = {
        "model": model.fingerprint,
        "autoencoder": autoencoder.fingerprint,
        "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
        "num": config.num,
        "classes": "all, in turn" if config.classes is None else classes,
        "class_names": card["class_names"],
        "sampler": plain(config.sampler),
        "evaluations": evaluations,
        "guidance": config.guidance,
        "seed": config.seed,
        "precision": "float32",
        "batches_trained": card["batches_seen"],
    }
    write_json(run / "sample.json", stamp)
    rows, columns = min(len(classes), 10) if len(classes) > 1 else 8, 10
    shown = [i + row for row in range(rows) for i in range(0, len(classes) * columns, len(classes))]
    save_png(run / "grid.png", grid(samples[[i for i in shown if i < config.num]], columns))
    save_png(run / "trajectory.png", trajectory(generator, labels[:1].to(device)))
    print(f"{config.num} samples in {run}: samples.npz, grid.png, trajectory.png, sample.json")


def check(config: DictConfig, card: dict[str, Any]) -> list[int]:
    """The classes to sample, in turn; ValueError for what the model can't do, before anything is computed."""
    count = len(card["class_names"])
    classes = list(range(count)) if config.classes is None else list(config.classes)
    wrong = [c for c in classes if not (isinstance(c, int) and 0 <= c < count)]
    if wrong or not classes:
        raise ValueError(f"classes={list(config.classes)} must name some of 0 ... {count - 1} ({card['class_names']})")
    if config.guidance != 1 and card["label_dropout"] == 0:
        raise ValueError(f"guidance={config.guidance} needs label_dropout > 0 in training: pass guidance=1")
    for key in ("num", "batch_size"):
        if config[key] < 1:
            raise ValueError(f"{key}={config[key]} must be at least 1")
    return classes


def trajectory(generator: Any, labels: Any, columns: int = 10) -> Any:
    """A strip of sample 0 on its way from noise: above, x_t; below, the x0 that the network predicts there; decoded."""
    import torch

    from ldm.images import grid

    latents, record = generator.latents([0], labels, keep=True)
    chosen = torch.linspace(0, len(record.states) - 1, min(columns - 1, len(record.states))).long().tolist()
    x_t = [record.states[i][1] for i in chosen] + [latents]
    x0 = [record.states[i][2] for i in chosen] + [latents]
    return grid(generator.decode(torch.cat(x_t + x0)), len(x_t))


if __name__ == "__main__":
    main()
