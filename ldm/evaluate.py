"""Score samples against real images, and the autoencoder's reconstructions: metrics.json."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.command import build, command, plain, whole, write_config


@command
def main(config: DictConfig, run: Path) -> None:
    import torch
    from rich.progress import track

    from ldm import __version__
    from ldm.data.images import in_order
    from ldm.data.sources import digest
    from ldm.files import write_json
    from ldm.metrics.classifier import PixelClassifier
    from ldm.metrics.features import load_features
    from ldm.metrics.frechet import frechet_distance
    from ldm.ranks import pick_device

    samples, labels, stamp, folder = read_samples(Path(config.samples))
    source = build(config.data)
    side = samples.shape[-1]
    if source.resolution != side:
        raise ValueError(
            f"the samples have {side} pixels, the reference {source.resolution}: pass data.resolution={side}"
        )
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
    name = features_for(config.features, source)
    if name is not None:
        features, extractor = load_features(name, samples[:2])
        features.to(device)
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
        metrics["reconstruction"] = score_reconstructions(config, stamp, folder, reference("val", "reconstruction"))
    metrics |= {"samples": stamp, "versions": {"ldm": __version__, "torch": torch.__version__}}
    write_config(config, run)
    write_json(run / "metrics.json", metrics)
    for name in ("frechet_distance", "class_accuracy"):
        if name in metrics:
            print(f"{name}: {metrics[name]['value']:.4f}")
    for name in ("psnr", "ssim"):
        if "reconstruction" in metrics:
            print(f"reconstruction {name}: {metrics['reconstruction'][name]:.4f}")
    print(f"scores and what each depends on: {run}/metrics.json")
    source.report_skipped()


def features_for(name: str | None, source: Any) -> str | None:
    """ "auto" is pixels for the digits and inception for all else; pixels say nothing about photographs."""
    from ldm.data.sources import Digits

    if name == "pixels" and not isinstance(source, Digits):
        raise ValueError("features=pixels is for the digits only: pass features=inception, or a features file")
    return name if name != "auto" else "pixels" if isinstance(source, Digits) else "inception"


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


def score_reconstructions(config: DictConfig, stamp: dict[str, Any], folder: Path, batches: Any) -> dict[str, Any]:
    """PSNR and SSIM of the posterior mean's reconstruction of held-out images."""
    import torch

    from ldm.checkpoint import load_autoencoder, matching_autoencoder
    from ldm.images import to_image, to_x
    from ldm.metrics.reconstruction import ReconstructionMetrics
    from ldm.ranks import pick_device

    if "autoencoder" in stamp:
        loaded = matching_autoencoder(config.autoencoder, stamp["autoencoder_path"], folder, stamp["autoencoder"])
    elif config.autoencoder is not None:
        loaded = load_autoencoder(config.autoencoder)
    else:
        raise ValueError("these samples name no autoencoder: pass autoencoder=PATH, or reconstruction=false")
    device, scores, count = pick_device(config.device), ReconstructionMetrics(), 0
    model = loaded.model.to(device)
    with torch.inference_mode():
        for image, _ in batches:
            x_hat = model.decode(model.encode(to_x(image.to(device))).mean)
            scores.update_images(to_image(x_hat).cpu(), image)
            count += len(image)
    values = {name: float(value) for name, value in scores.compute().items()}
    return values | {"images": count, "split": "val", "autoencoder": loaded.fingerprint, "of": "posterior mean"}


if __name__ == "__main__":
    main()
