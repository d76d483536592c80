"""Score samples against real images, and the autoencoder's reconstructions: metrics.json."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.command import build, build_loggers, command, plain, whole, write_config


@command
def main(config: DictConfig, run: Path) -> float | None:
    import torch
    from rich.progress import track

    from ldm import __version__
    from ldm.data.images import in_order
    from ldm.data.sources import digest
    from ldm.files import sha256, write_json
    from ldm.lineage import artifact, record
    from ldm.metrics.classifier import PixelClassifier
    from ldm.metrics.features import features_for, load_features
    from ldm.metrics.frechet import frechet_distance
    from ldm.ranks import pick_device

    source, folder = build(config.data), run
    samples: Any = None
    labels: Any = None
    stamp: dict[str, Any] = {}
    if config.samples is not None:
        samples, labels, stamp, folder = read_samples(Path(config.samples))
        side = samples.shape[-1]
        if source.resolution != side:
            raise ValueError(
                f"the samples have {side} pixels, the reference {source.resolution}: pass data.resolution={side}"
            )
    elif not config.reconstruction or config.classifier is not None:
        raise ValueError("samples=null scores an autoencoder alone: pass reconstruction=true and classifier=null")
    metrics: dict[str, Any] = {}
    device, batch_size = pick_device(config.device), whole(config, "batch_size")

    def reference(split: Any, what: str) -> Any:
        loader = in_order(source, split, batch_size, config.num_workers)
        return track(loader, description=f"{what}: {split} images")

    real = {
        "source": plain(config.data),
        "split": "train",
        "content": digest(*(part.content for part in source.parts("train", 4096))),
        "preprocessing": source.preprocessing(),
    }
    name, features, extractor = features_for(config.features, source), None, None
    if name is not None:
        example = torch.zeros(2, 3, source.resolution, source.resolution, dtype=torch.uint8)
        features, extractor = load_features(name, example)
        features.to(device)
    if features is not None and samples is not None:
        with torch.inference_mode():
            batches = (image.to(device) for image, _ in reference("train", "Frechet distance"))
            ours = (part.to(device) for part in samples.split(batch_size))
            value, n_real, n_fake = frechet_distance(features, batches, ours)
        metrics["frechet_distance"] = {
            "value": value,
            "extractor": extractor,
            "images": n_fake,
            "reference": real | {"images": n_real},
        }
    if config.classifier == "svc":
        train, held_out = (collect(reference(split, "classifier")) for split in ("train", "val"))
        classifier = PixelClassifier(*train)
        metrics["class_accuracy"] = {
            "value": classifier.accuracy(samples, labels),
            "images": len(samples),
            "classifier": "SVC on grey 8x8 pixels",
            "classifier_on_held_out_images": classifier.accuracy(*held_out),
        }
    elif config.classifier is not None:
        raise ValueError(f"classifier={config.classifier} must be svc or null")
    if config.reconstruction:
        scored = score_reconstructions(config, stamp, folder, reference("val", "reconstruction"), features)
        metrics["reconstruction"] = scored | {"extractor": extractor, "preprocessing": source.preprocessing()}
    metrics |= {"samples": stamp, "versions": {"ldm": __version__, "torch": torch.__version__}}
    write_config(config, run)
    write_json(run / "metrics.json", metrics)
    for name in ("frechet_distance", "class_accuracy"):
        if name in metrics:
            print(f"{name}: {metrics[name]['value']:.4f}")
    for name in ("psnr", "ssim", "lpips", "rfd"):
        if name in metrics.get("reconstruction", {}):
            print(f"reconstruction {name}: {metrics['reconstruction'][name]:.4f}")
    print(f"scores and what each depends on: {run}/metrics.json")
    source.report_skipped()
    used = [artifact("samples", sha256(folder / "samples.npz"), folder)] if (folder / "samples.npz").exists() else []
    if "autoencoder" in metrics.get("reconstruction", {}):
        used.append(artifact("autoencoder", metrics["reconstruction"]["autoencoder"], run))
    made = [artifact("metrics", sha256(run / "metrics.json"), run / "metrics.json")]
    scores = {"frechet_distance": metrics.get("frechet_distance", {}).get("value")}
    scores |= {"class_accuracy": metrics.get("class_accuracy", {}).get("value")}
    scores |= {f"reconstruction/{k}": v for k, v in metrics.get("reconstruction", {}).items()}
    record(build_loggers(config.logger, run), plain(config), used=used, made=made, scores=scores)
    return scores["frechet_distance"]


def read_samples(path: Path) -> tuple[Any, Any, dict[str, Any], Path]:
    """Images uint8 [N, 3, H, W], labels [N], the stamp that `ldm sample` left ({} for a foreign .npz), the folder."""
    import zipfile

    import numpy as np
    import torch

    from ldm.files import read_json, sha256

    file = path / "samples.npz" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"samples={path} holds no samples.npz: run `ldm sample` first, or name another run")
    try:
        with np.load(file) as arrays:
            images, labels = arrays["arr_0"], arrays.get("arr_1")
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged, or holds no arr_0: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{file}: arr_0 must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    card = file.parent / "sample.json"
    stamp = (read_json(card) if card.exists() else {}) | {"sha256": sha256(file)[:16]}
    labels = np.zeros(len(images), dtype=np.int64) if labels is None else labels
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), stamp, file.parent


def collect(batches: Any) -> tuple[Any, Any]:
    """All images and labels of an iterable of batches."""
    import torch

    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def score_reconstructions(
    config: DictConfig, stamp: dict[str, Any], folder: Path, batches: Any, features: Any
) -> dict[str, Any]:
    """PSNR, SSIM, LPIPS and rFD of the posterior mean's reconstruction of held-out images."""
    import torch

    from ldm.checkpoint import load_autoencoder, matching_autoencoder
    from ldm.images import to_image, to_x
    from ldm.losses.reconstruction import PerceptualLoss
    from ldm.metrics.reconstruction import ReconstructionMetrics
    from ldm.ranks import pick_device
    from ldm.tiling import tiled

    if "autoencoder" in stamp:
        loaded = matching_autoencoder(config.autoencoder, stamp["autoencoder_path"], folder, stamp["autoencoder"])
    elif config.autoencoder is not None:
        loaded = load_autoencoder(config.autoencoder)
    else:
        raise ValueError("no samples name an autoencoder: pass autoencoder=PATH, or reconstruction=false")
    weights = config.lpips
    if weights == "auto":  # those that it was trained with; an imported one was trained elsewhere
        weights = loaded.card["config"].get("loss", {}).get("perceptual_pretrained")
    perceptual = None if weights is None else PerceptualLoss(pretrained=weights)
    device, model = pick_device(config.device), loaded.model
    scores, factor = ReconstructionMetrics(perceptual, features), model.downsample_factor
    tile, overlap = (config.tile, config.tile // 4) if config.tile else (1 << 30, 0)
    if config.tile is not None and config.tile % (4 * factor):
        raise ValueError(f"tile={config.tile} must be a multiple of {4 * factor}, four times the autoencoder's factor")
    if weights is None and config.lpips == "auto":
        print("reconstruction lpips: left out, as an imported autoencoder names no VGG16: pass lpips=true or false")
    if config.data.resolution % factor:
        raise ValueError(
            f"data.resolution={config.data.resolution} is not a multiple of the autoencoder's factor {factor}"
        )
    model.to(device)
    with torch.inference_mode():
        for batch, _ in batches:
            image = batch.to(device)
            z = tiled(lambda x: model.encode(x).mean, to_x(image), tile, overlap)
            x_hat = tiled(model.decode, z, tile // factor, overlap // factor)
            scores.update(to_image(x_hat), image)
    if scores.images == 0:
        raise ValueError("no held-out image could be decoded")
    names = {False: "random VGG16 weights", True: "torchvision's VGG16"}
    return scores.compute() | {
        "images": scores.images,
        "split": "val",
        "autoencoder": loaded.fingerprint,
        "of": "posterior mean",
        "tile": config.tile,
        "lpips_weights": None if weights is None else names.get(weights, str(weights)),
    }


if __name__ == "__main__":
    main()
