"""Encode a source of images once, into a latent cache that stage 2 trains on."""

from pathlib import Path

from omegaconf import DictConfig

from ldm.commands.entry import build, build_loggers, plain, whole, write_config


def main(config: DictConfig, run: Path) -> None:
    import torch
    from rich.progress import track

    from ldm.checkpoint import export_autoencoder, load_autoencoder
    from ldm.data.cache_writer import AUTOENCODER, MANIFEST, CacheWriter, cache_identity
    from ldm.images import to_x
    from ldm.runtime.files import sha256
    from ldm.runtime.loggers import artifact, record
    from ldm.runtime.ranks import launch, pick_device

    index, count = parse_slice(config.slice)
    source, autoencoder = build(config.data), load_autoencoder(config.autoencoder)
    device = pick_device(config.device)
    model = autoencoder.model.to(device).to(memory_format=torch.channels_last)  # faster (docs/performance.md)

    @torch.inference_mode()
    def encode(image: torch.Tensor) -> torch.Tensor:
        return model.encode(to_x(image.to(device))).moments()

    writer = CacheWriter(
        folder=run,
        source=source,
        encode=encode,
        identity=cache_identity(source, autoencoder.fingerprint),
        shard_size=whole(config, "shard_size"),
        batch_size=whole(config, "batch_size"),
        num_workers=whole(config, "num_workers"),
    )
    start = launch()  # ranks share a slice as slices share the whole: they need not know of each other
    mine = [part for _, part in writer.parts()][index::count][start.rank :: start.world]
    todo = [part for part in mine if not writer.is_done(part)]
    if len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} shards are there and whole")
    if start.rank == 0:
        write_config(config, run)
        if not (run / AUTOENCODER).exists():  # its run may train on, and prune the checkpoint that these came from
            export_autoencoder(autoencoder, run / AUTOENCODER)
    for part in track(todo, description="encoding shards", disable=start.rank != 0):
        writer.write(part)
    source.report_skipped()
    manifest = writer.merge()
    if manifest is None:
        print(f"{run}: rank {start.rank} of slice {config.slice} is done; manifest.json follows when all are")
    else:
        counts = manifest["count"]
        print(f"{run}: {counts['train']} + {counts['val']} images as moments {manifest['shape']}, manifest.json")
        used = [artifact("autoencoder", autoencoder.fingerprint, autoencoder.path)]
        made = [artifact("latents", sha256(run / MANIFEST), run)]
        scores = {f"latent_{what}/{c}": v for what in ("mean", "std") for c, v in enumerate(manifest[what])}
        record(build_loggers(config.logger, run), plain(config), used=used, made=made, scores=scores)


def parse_slice(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8): the slice 3, counted from 0, of 8."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"slice={text} must be I/N with 0 <= I < N, such as 0/1 or 3/8")
    return int(index), int(count)
