"""Encode a source of images once, into a latent cache that stage 2 trains on."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

import torch
from annotated_types import Ge
from pydantic import model_validator
from torch import Tensor

from ldm.checkpoint import LoadedAutoencoder, export_autoencoder, load_autoencoder
from ldm.commands.options import LoggedOptions, Text, Workers, build
from ldm.commands.run_folder import build_loggers
from ldm.conditioning.pretrained_text import PretrainedText
from ldm.data.cache_writer import CacheWriter, Dense, cache_identity
from ldm.data.formats import MANIFEST, DenseFeaturesCard, Manifest
from ldm.data.shard_writer import AUTOENCODER_FILE, ShardWriter
from ldm.data.sources import Source
from ldm.images import to_x
from ldm.losses.alignment import resized
from ldm.metrics.features import DenseFromFile
from ldm.runtime.arguments import Node
from ldm.runtime.bars import track
from ldm.runtime.files import sha256
from ldm.runtime.loggers import Artifact, artifact, record
from ldm.runtime.memory import check_batch
from ldm.runtime.ranges import Count
from ldm.runtime.ranks import launch, pick_device


class SlicedOptions(LoggedOptions):
    """Of a command whose shards several tasks share."""

    slice: str
    shard_size: Count
    batch_size: Count
    device: str

    @staticmethod
    def brings(name: str) -> bool:
        """All but the shards themselves: their cards say that they are there."""
        return not name.endswith(".tar")

    def elsewhere(self, run: Path) -> dict[str, int]:
        """Sizes of the shards that the run's copy in an object store has."""
        store = self.copy_of(run)
        entries = {} if store is None else store.names()
        return {name: entry.size for name, entry in entries.items() if name.endswith(".tar")}

    def slot(self, rank: int) -> str:
        index, count = parse_slice(self.slice)
        return f"slice-{index}-of-{count}-rank-{rank}"


class CacheLatentsOptions(SlicedOptions):
    """conf/cache_latents.yaml, which says what each key means."""

    data: Node
    autoencoder: Text
    low_resolution: Count | None
    features: Text | None
    codes: bool
    whiten: bool
    text_encoder: Text | None
    text_tokens: Count
    num_workers: Annotated[Workers, Ge(1)]

    @model_validator(mode="after")
    def _whitens_latents(self) -> Self:
        if self.codes and self.whiten:
            raise ValueError("whiten=true is of latents: codes are never normalised; pass whiten=false, or codes=false")
        return self


def main(options: CacheLatentsOptions, run: Path) -> None:
    source: Source = build(options.data)
    check_batch(options.batch_size, 3, source.resolution, source.resolution)
    autoencoder = load_autoencoder(options.autoencoder)
    device = pick_device(options.device)
    encode_text = text_encoder_of(options, device)
    dense, features = None, None
    if options.features is not None:
        dense, features = dense_features(options.features, source.resolution, autoencoder, device)
    codes = codes_of(options, autoencoder)
    text = None if encode_text is None else encode_text.card()
    writer = CacheWriter(
        folder=run,
        source=source,
        encode=encoder(autoencoder, device, codes=codes is not None),
        identity=cache_identity(source, autoencoder.fingerprint, text, options.low_resolution, features, codes),
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        encode_text=encode_text,
        dense=dense,
        whiten=options.whiten,
    )
    manifest = write_share(writer, options, autoencoder, run)
    source.report_skipped()
    if manifest is not None:
        count = manifest.count
        captioned = f", {manifest.captioned} of {count.train} with captions" if manifest.captioned else ""
        shape = " x ".join(map(str, manifest.shape[1:]))
        what = f"moments {manifest.shape}" if codes is None else f"{shape} of {codes} codes"
        print(f"{run}: {count.train} + {count.val} images as {what}{captioned}, manifest.json")
        report(options, run, manifest, artifact("autoencoder", autoencoder.fingerprint, autoencoder.path))


def codes_of(options: CacheLatentsOptions, autoencoder: LoadedAutoencoder) -> int | None:
    """How many codes there are to choose from; None where moments are kept. ValueError where there are none."""
    quantize = autoencoder.model.quantize
    if options.codes and quantize is None:
        raise ValueError(
            f"codes=true: autoencoder={options.autoencoder} has none: train one with regularizer=vq or fsq, or pass "
            "codes=false"
        )
    return None if not options.codes or quantize is None else quantize.count


def text_encoder_of(options: CacheLatentsOptions, device: torch.device) -> PretrainedText | None:
    """Whom text_encoder= names, on a device."""
    if options.text_encoder is None:
        return None
    encoder = PretrainedText.load(options.text_encoder, options.text_tokens)
    encoder.model.to(device)
    return encoder


def dense_features(
    file: str, resolution: int, autoencoder: LoadedAutoencoder, device: torch.device
) -> tuple[Dense, DenseFeaturesCard]:
    """image, uint8 [B, 3, R, R] -> features [B, D, h, w], averaged to the latents' size where theirs is larger; and
    what a cache says of them."""
    network = DenseFromFile(Path(file), torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8)).eval()
    side = resolution // autoencoder.model.downsample_factor
    height, width = (min(side, own) for own in network.size)
    network.to(device)

    @torch.inference_mode()
    def dense(image: Tensor) -> Tensor:
        return resized(network(image.to(device)), (height, width))

    card = DenseFeaturesCard(identity=network.identity, channels=network.num_features, height=height, width=width)
    return dense, card


def write_share(
    writer: ShardWriter, options: SlicedOptions, autoencoder: LoadedAutoencoder, run: Path
) -> Manifest | None:
    """Write the shards of this task that are missing; the manifest, once all are there."""
    index, count = parse_slice(options.slice)
    start = launch()  # ranks share a slice as slices share the cache: they need not know of each other
    share = [part for _, part in writer.parts()][index::count][start.rank :: start.world]
    there = options.elsewhere(run)
    todo = [part for part in share if not writer.is_done(part, there)]
    if len(todo) < len(share):
        print(f"{len(share) - len(todo)} of {len(share)} shards are there and whole")
    if start.rank == 0:
        options.begin(run)
        if not (run / AUTOENCODER_FILE).exists():  # its run may train on, and prune the checkpoint that these came from
            export_autoencoder(autoencoder, run / AUTOENCODER_FILE)
    for part in track(todo, "writing shards", hidden=start.rank != 0):
        writer.write(part)
    manifest = writer.merge()
    if manifest is None:
        print(f"{run}: rank {start.rank} of slice {options.slice} is done; manifest.json follows when all are")
    return manifest


def encoder(autoencoder: LoadedAutoencoder, device: torch.device, *, codes: bool = False) -> Callable[[Tensor], Tensor]:
    """image, uint8 [B, 3, R, R] -> moments [B, 2C, h, w], or codes, long [B, 1, h, w]."""
    model = autoencoder.model.to(device).to(memory_format=torch.channels_last)  # faster (docs/performance.md)

    @torch.inference_mode()
    def encode(image: Tensor) -> Tensor:
        x = to_x(image.to(device))
        return model.codes(x) if codes else model.encode(x).moments()

    return encode


def report(options: SlicedOptions, run: Path, manifest: Manifest, used: Artifact) -> None:
    """Tell the loggers what the cache is made from, and what it holds."""
    record(
        build_loggers(options.logger, run),
        options.plain(),
        used=[used],
        made=[artifact("latents", sha256(run / MANIFEST), run)],
        scores={f"latent_{what}/{c}": v for what in ("mean", "std") for c, v in enumerate(getattr(manifest, what))},
    )


def parse_slice(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8): the slice 3, counted from 0, of 8."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"slice={text} must be I/N with 0 <= I < N, such as 0/1 or 3/8")
    return int(index), int(count)
