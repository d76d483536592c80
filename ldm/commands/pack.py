"""Turn any source of images into webdataset shards."""

from collections.abc import Iterable
from pathlib import Path

from ldm.commands.options import Options, build
from ldm.data import shards
from ldm.data.samples import Part
from ldm.data.sources import Source
from ldm.data.tars import INDEX
from ldm.runtime.arguments import Node
from ldm.runtime.bars import track
from ldm.runtime.ranges import Count


class PackOptions(Options):
    """conf/pack.yaml, which says what each key means."""

    data: Node
    shard_size: Count


def main(options: PackOptions, run: Path) -> None:
    def progress(parts: list[Part]) -> Iterable[Part]:
        return track(parts, "packing shards")

    source: Source = build(options.data)
    _ = source.class_names  # lists the files: what is not there is refused before anything is written
    options.begin(run)
    shards.pack(source, run, options.shard_size, progress)
    source.report_skipped()
    print(f"shards and {INDEX} in {run}: use them with data=shards data.root={run}")
