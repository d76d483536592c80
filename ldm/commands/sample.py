"""Generate images with a trained model: samples.npz, grid.png, trajectory.png, sample.json."""

import io
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.commands.entry import build, build_loggers, plain, whole, write_config


def main(config: DictConfig, run: Path) -> None:
    import numpy as np
    import torch
    from rich.progress import track

    from ldm.checkpoint import load_diffusion, matching_autoencoder
    from ldm.diffusion.guidance import Guidance
    from ldm.generate import Generator
    from ldm.images import grid, save_png
    from ldm.runtime.files import atomic_write, sha256, write_json
    from ldm.runtime.loggers import artifact, record
    from ldm.runtime.ranks import gather, join_ranks, pick_device, precision

    model = load_diffusion(config.model, config.weights)
    card, device = model.card, pick_device(config.device)
    autoencoder = matching_autoencoder(config.autoencoder, card["autoencoder_path"], model.run, card["autoencoder"])
    classes = check(config, card)
    weak = None
    if config.weak is not None:
        weak = load_diffusion(config.weak, config.weights)
        for key in ("latent_shape", "objective", "class_names"):
            if weak.card[key] != card[key]:
                raise ValueError(f"weak={config.weak} was trained with another {key}, or on other latents")
    generator = Generator(
        net=model.net.to(device),
        objective=model.objective,
        stats=model.stats,
        autoencoder=autoencoder.model.to(device),
        latent_shape=tuple(card["latent_shape"]),
        guidance=Guidance(
            scale=config.guidance,
            interval=tuple(config.guidance_interval),
            rescale=config.guidance_rescale,
            weak=None if weak is None else weak.net.to(device),
        ),
        grid=build(config.grid),
        path=build(config.path) if config.path else None,
        seed=config.seed,
        **build(config.sampler),
    )
    num, batch_size = whole(config, "num"), whole(config, "batch_size")
    labels = torch.tensor([classes[i % len(classes)] for i in range(num)])
    write_config(config, run)

    rank, world = join_ranks()
    mine = range(rank, num, world)
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    images: list[torch.Tensor] = []
    evaluations: list[int] = []  # of each sample: a solver of adaptive steps takes as many as its batch needs
    for indices in track(batches, description="sampling", disable=rank != 0):
        image, count = generator.images(indices, labels[list(indices)].to(device))
        images.append(image.cpu())
        evaluations += [count] * len(indices)
    shares = gather((torch.cat(images) if images else None, evaluations))
    if rank != 0:
        return
    samples = torch.empty(num, *shares[0][0].shape[1:], dtype=torch.uint8)
    for i, (part, _) in enumerate(shares):
        if part is not None:  # with fewer samples than ranks
            samples[i::world] = part

    buffer = io.BytesIO()
    np.savez(buffer, arr_0=samples.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    with atomic_write(run / "samples.npz") as file:
        file.write(buffer.getvalue())
    stamp: dict[str, Any] = {
        "sha256": sha256(run / "samples.npz")[:16],
        "model": model.fingerprint,
        "model_path": os.path.relpath(Path(config.model).resolve(), run.resolve()),
        "autoencoder": autoencoder.fingerprint,
        "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
        "num": num,
        "classes": "all, in turn" if config.classes is None else classes,
        "class_names": card["class_names"],
        "preprocessing": card["preprocessing"],
        "weights": config.weights,
        "sampler": plain(config.sampler),
        "grid": plain(config.grid),
        "path": plain(config.path) or "as trained",
        "evaluations": sum(sum(counts) for _, counts in shares) / num,  # of the denoiser; guided, two of networks each
        "guidance": config.guidance,
        "guidance_interval": plain(config.guidance_interval),
        "guidance_rescale": config.guidance_rescale,
        "weak": None if weak is None else weak.fingerprint,
        "seed": config.seed,
        "precision": precision(device),
        "batches_trained": card["batches_seen"],
    }
    write_json(run / "sample.json", stamp)
    save_png(run / "grid.png", grid(*rows_of_classes(samples, len(classes))))
    save_png(run / "trajectory.png", trajectory(generator, labels[:1].to(device)))
    record(
        build_loggers(config.logger, run),
        plain(config),
        used=[artifact("diffusion", model.fingerprint, model.run)],
        made=[artifact("samples", sha256(run / "samples.npz"), run)],
        pictures={"samples": run / "grid.png", "trajectory": run / "trajectory.png"},
    )
    print(f"{num} samples in {run}: samples.npz, grid.png, trajectory.png, sample.json")


def check(config: DictConfig, card: dict[str, Any]) -> list[int]:
    """The classes to sample, in turn; ValueError for what the model can't do, before anything is computed."""
    count = len(card["class_names"])
    chosen = [config.classes] if isinstance(config.classes, int) else config.classes
    classes = list(range(count)) if chosen is None else list(chosen)
    if not classes or not all(isinstance(c, int) and 0 <= c < count for c in classes):
        raise ValueError(f"classes={config.classes} must be null or name some of 0 ... {count - 1}")
    unused = [k for k, off in (("weak", None), ("guidance_rescale", 0)) if config[k] != off]
    if config.guidance == 1 and unused:
        raise ValueError(f"guidance=1 is unguided, so that {unused[0]}={config[unused[0]]} would do nothing")
    if config.guidance != 1 and config.weak is None and card["label_dropout"] == 0:
        raise ValueError(
            f"guidance={config.guidance} needs label_dropout > 0 in training: pass guidance=1, or weak= a weaker model"
        )
    return classes


def rows_of_classes(samples: Any, num_classes: int, most: int = 10) -> tuple[Any, int]:
    """Samples for a grid and its number of columns: a row a class (up to ten), or, of one class, rows in order."""
    count = len(samples)
    if num_classes == 1 or count < 2 * num_classes:
        columns = min(most, count)
        return samples[: columns * min(most, count // columns)], columns
    rows, columns = min(most, num_classes), min(most, count // num_classes)
    return samples[[row + num_classes * column for row in range(rows) for column in range(columns)]], columns


def trajectory(generator: Any, labels: Any, columns: int = 10) -> Any:
    """A strip of sample 0 on its way from noise: above, x_t; below, the x0 that the network predicts there; decoded."""
    import torch

    from ldm.images import grid

    latents, record = generator.latents([0], labels, keep=True)
    chosen = torch.linspace(0, len(record.states) - 1, min(columns - 1, len(record.states))).long().tolist()
    x_t = [record.states[i][1] for i in chosen] + [latents]
    x0 = [record.states[i][2] for i in chosen] + [latents]
    return grid(generator.decode(torch.cat(x_t + x0)), len(x_t))
