"""Flips one bit in every seventh byte, in turn, of each kind of file that runs leave: the table of docs/reliability.md.

    ldm pack run=packed data=digits
    make demo
    python jobs/flip_bytes.py runs

Each damaged copy is read as a command reads it. It is refused, by a line that names it, or what is read is the same as
before, to the bit. What is read and differs is believed: there must be none.
"""

import argparse
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.checkpoint import load_autoencoder, load_diffusion
from ldm.commands.error_lines import USER_ERRORS, one_line
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.data.formats import ShardCard
from ldm.data.shards import Shards
from ldm.evaluation.image_sets import ArraySet

Read = Callable[[Path], Any]  # the folder of a damaged copy -> what was read


def packed(folder: Path) -> Any:
    """What data=shards data.verify=full reads."""
    source = Shards(root=str(folder), resolution=32, verify="full")
    parts = source.parts("val", 1)
    return source.class_names, [(sample.data, sample.label) for part in parts for sample in part.samples()]


def latents(folder: Path) -> Any:
    """What training reads of a cache."""
    cache = LatentCache(str(folder), "full")
    moments, labels, *_ = CachedMoments(cache, "val").__getitems__([(0, i) for i in range(8)])
    return cache.manifest.model_dump(), moments.numpy().tobytes(), labels.tolist()


def autoencoder(file: Path) -> Any:
    loaded = load_autoencoder(file)
    return loaded.card, loaded.fingerprint


def diffusion(file: Path) -> Any:
    loaded = load_diffusion(file)
    return loaded.card, loaded.fingerprint


def samples(folder: Path) -> Any:
    """What `ldm evaluate` reads of samples."""
    read = ArraySet.load(folder / "samples.npz")
    return read.images.tobytes(), None if read.labels is None else read.labels.tobytes(), read.stamp


def kinds(runs: Path) -> dict[str, tuple[Path, str, Read]]:
    """By name: the folder that is copied, the file in it that is damaged, and how it is read."""
    checkpoint = {run: max((runs / run / "checkpoints").glob("*.ckpt")).name for run in ("autoencoder", "diffusion")}

    def within(read: Read, name: str) -> Read:
        return lambda folder: read(folder / name)

    return {
        "index.json": (runs / "packed", "index.json", packed),
        "image shard": (runs / "packed", "val-000000.tar", packed),
        "manifest.json": (runs / "latents", "manifest.json", latents),
        "latent shard": (runs / "latents", "val-000000.tar", latents),
        "a shard's card": (runs / "latents", "val-000000.json", within(ShardCard.read, "val-000000.json")),
        "checkpoint of stage 1": (
            runs / "autoencoder" / "checkpoints",
            checkpoint["autoencoder"],
            within(autoencoder, checkpoint["autoencoder"]),
        ),
        "checkpoint of stage 2": (
            runs / "diffusion" / "checkpoints",
            checkpoint["diffusion"],
            within(diffusion, checkpoint["diffusion"]),
        ),
        "samples.npz": (runs / "samples", "samples.npz", samples),
        "sample.json": (runs / "samples", "sample.json", samples),
    }


def flip(source: Path, name: str, read: Read, most: int) -> Counter[str]:
    """How the damaged copies of a file were taken: refused, the same, believed, or a trace.

    Args:
        source: the folder that is copied.
        name:   of the file in it.
        read:   reads the copy.
        most:   flips at most; of a longer file the seventh bytes are thinned out evenly.
    """
    taken: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        shutil.copytree(source, folder)
        path, right = folder / name, read(folder)
        whole = path.read_bytes()
        places = range(0, len(whole), 7)
        for place in places[:: max(1, len(places) // most)]:
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes([whole[place] ^ 1]))
            try:
                taken["the same" if read(folder) == right else "BELIEVED"] += 1
            except USER_ERRORS as error:
                line = one_line(error)
                taken["refused" if "\n" not in line and name in line else "REFUSED WITHOUT ITS NAME"] += 1
            except Exception as error:
                taken[f"TRACE ({type(error).__name__})"] += 1
            with path.open("r+b") as file:
                file.seek(place)
                file.write(whole[place : place + 1])
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder that holds packed, latents, autoencoder, diffusion, samples")
    parser.add_argument("--most", type=int, default=1000, help="flips a file at most (1000)")
    options = parser.parse_args()
    for kind, (source, name, read) in kinds(options.runs).items():
        taken = flip(source, name, read, options.most)
        said = ", ".join(f"{count} {how}" for how, count in taken.most_common())
        print(f"{kind:24} {(source / name).stat().st_size:>12,} bytes: {said}", flush=True)


if __name__ == "__main__":
    main()
