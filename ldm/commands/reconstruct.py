"""Images beside what an autoencoder makes of them: a PNG a pair, a grid, and the PSNR of each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ldm.checkpoint import LoadedAutoencoder, load_autoencoder
from ldm.commands.options import Free, ResultOptions, Text
from ldm.data.picture_files import Pictures
from ldm.evaluation.result_files import ReconstructionFile
from ldm.generate.autoencoding import AutoencoderModel
from ldm.images import annotate, grid, save_png
from ldm.metrics.reconstruction import psnr
from ldm.runtime.bars import track
from ldm.runtime.memory import check_batch
from ldm.runtime.ranges import Count
from ldm.runtime.ranks import pick_device

SHOWN = 8  # pairs in pairs.png


class ReconstructOptions(ResultOptions):
    """conf/reconstruct.yaml, which says what each key means."""

    images: Text
    autoencoder: Text
    resolution: Count | None
    num: Count | None
    batch_size: Annotated[Count, Free()]
    device: Annotated[str, Free()]


def main(options: ReconstructOptions, run: Path) -> None:
    loaded = load_autoencoder(options.autoencoder)
    side, resize = preparation(options, loaded)
    check_batch(options.batch_size, 3, side, side)
    pictures = Pictures(options.images, side, resize, options.num)
    pictures[0]  # of one picture, or of a folder of other files, it is said before anything is written
    model = AutoencoderModel(loaded.model.to(pick_device(options.device)))
    options.begin(run)
    found: dict[str, float] = {}
    shown: list[tuple[Tensor, Tensor]] = []
    for names, image, image_hat in reconstructed(model, pictures, options.batch_size):
        for name, one, other, value in zip(names, image, image_hat, psnr(image_hat, image).tolist(), strict=True):
            save_png(run / "pairs" / f"{name.removesuffix('.png')}.png", torch.cat([one, other], dim=2))
            found[name] = value
            shown += [(one, other)] * (len(shown) < SHOWN)
    rows = torch.stack([tensor for side_by_side in zip(*shown, strict=True) for tensor in side_by_side])
    save_png(run / "pairs.png", annotate(grid(rows, len(shown)), rows=["image", "reconstruction"]))
    mean = sum(found.values()) / len(found)
    ReconstructionFile(autoencoder=loaded.fingerprint, resolution=side, psnr=found, mean_psnr=mean).write(
        run / "reconstructions.json"
    )
    print(f"{len(found)} pairs in {run}: pairs/, pairs.png, reconstructions.json; PSNR {mean:.2f} dB in the mean")


def preparation(options: ReconstructOptions, loaded: LoadedAutoencoder) -> tuple[int, int | None]:
    """The side of the images, in pixels, and the shorter side to which they are resized before the crop (None: the
    same): as the options say, or as in the autoencoder's training.

    Raises:
        ValueError: if nothing says it, or the autoencoder can't halve it so often.
    """
    factor = loaded.model.downsample_factor
    trained = loaded.card.get("preprocessing") or {}
    side = options.resolution or trained.get("resolution")
    if side is None:
        raise ValueError(f"{options.autoencoder} was imported, and says no resolution: pass resolution=PIXELS, as 256")
    if side % factor:
        raise ValueError(f"resolution={side} must be a multiple of {factor}, by which the autoencoder divides it")
    return int(side), None if options.resolution else trained.get("resize")


def reconstructed(
    model: AutoencoderModel, pictures: Pictures, batch_size: int
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Names, images and their reconstructions, uint8 [B, 3, R, R] each, on the CPU."""
    starts = range(0, len(pictures), batch_size)
    for start in track(starts, "reconstructing", hidden=False):
        batch = [pictures[i] for i in range(start, min(start + batch_size, len(pictures)))]
        image = torch.stack([view for _, view in batch])
        yield [name for name, _ in batch], image, model.decode(model.encode(image)).cpu()
