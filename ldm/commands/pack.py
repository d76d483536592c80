"""Turn any source of images into webdataset shards."""

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from ldm.commands.entry import build, whole, write_config


def main(config: DictConfig, run: Path) -> None:
    from rich.progress import track

    from ldm.data import shards
    from ldm.data.sources import Part

    def progress(parts: list[Part]) -> Iterable[Part]:
        return track(parts, description="packing shards")

    source = build(config.data)
    shards.pack(source, run, whole(config, "shard_size"), progress)
    write_config(config, run)
    source.report_skipped()
    print(f"shards and {shards.INDEX} in {run}: use them with data=shards data.root={run}")
