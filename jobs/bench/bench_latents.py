"""Reading and writing latents: the sections `cache` and `latents` of jobs/bench/bench.py."""

import io
import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from timing import interleaved, middle, row

from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.data.cache_writer import CacheWriter, cache_identity
from ldm.data.order import Order, OrderedBatches
from ldm.data.sources import Folder
from ldm.images import to_x
from ldm.models.autoencoder import Autoencoder


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many latents there are, are read at once, are read in a round; and how often a large cache repeats them."""

    count: int = 8192
    batch: int = 256
    drawn: int = 2048
    copies: int = 160


def cache(model: Autoencoder, count: int, rounds: int) -> None:
    """`ldm cache-latents` of `count` images, from files to shards, against encoding alone."""
    batch = min(64, count)
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (count + 2, 9, 9, 3), dtype=np.uint8)
        for i, small in enumerate(noise):
            Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(Path(folder, f"{i:04d}.png"))
        source = Folder(root=folder, resolution=64, val_fraction=0.005)
        model.to(memory_format=torch.channels_last)  # as the command has it
        encode = torch.inference_mode()(lambda image: model.encode(to_x(image)).moments())
        images = [torch.zeros(batch, 3, 64, 64, dtype=torch.uint8)] * (count // batch)
        numbers = iter(range(100))

        def from_files_to_shards() -> None:
            identity = cache_identity(source, 16 * "0")
            out = Path(folder, f"cache{next(numbers)}")
            out.mkdir()
            writer = CacheWriter(
                folder=out,
                source=source,
                encode=encode,
                identity=identity,
                shard_size=4096,
                batch_size=batch,
                num_workers=4,
            )
            for _, part in writer.parts():
                writer.write(part)
            writer.merge()

        tasks = {"encoding": lambda: [encode(image) for image in images], "caching": from_files_to_shards}
        times = interleaved(tasks, rounds)
    row("caching latents, end to end, against encoding alone", times["caching"], times["encoding"])


def latents(size: Size, rounds: int) -> None:
    """Reading cached moments, 8 x 32 x 32 fp16, in shuffled batches, beside five other ways to keep them."""
    count, batch, shape = size.count, size.batch, (8, 32, 32)
    values = np.random.default_rng(0).standard_normal((count, 1, *shape)).astype(np.float16)
    identity = {
        "format": 1,
        "autoencoder": 16 * "0",
        "preprocessing": {},
        "dtype": "float16",
        "views": 2,
        "class_names": ["all"],
        "shape": list(shape),
        "mean": [0.0] * 4,
        "std": [1.0] * 4,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder, np.concatenate([values, values], axis=1), identity)
        start = time.perf_counter()
        moments = CachedMoments(LatentCache(name, "size"), "train")
        batches = iter(OrderedBatches(Order(seed=0, batch_size=batch, rank=0, world=1, images_seen=0), len(moments)))
        moments.__getitems__(next(batches))
        print(f"    first batch of {batch} after {time.perf_counter() - start:.3f} s, of {count:,} latents")
        large_cache(folder, size.copies, batch)
        order = np.random.default_rng(1).permutation(count)[: size.drawn].reshape(-1, batch)
        readers: dict[str, Callable[[], Any]] = {
            "ldm": lambda: [moments.__getitems__(next(batches)) for _ in order],
            **peers(folder, values[:, 0], order),
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        times = interleaved(readers, rounds)
        torch.set_num_threads(threads)
    for who, taken in times.items():
        row(f"latents, ldm against {who}" if who != "ldm" else "latents", times["ldm"], taken)
        print(f"    {who}: {order.size / middle(taken):,.0f} latents a second")


def write_cache(folder: Path, values: np.ndarray, identity: dict[str, Any]) -> None:
    """A cache of these moments, [N, views, 2C, h, w], as `ldm cache-latents` leaves it."""
    shards = []
    for number, start in enumerate(range(0, len(values), 4096)):
        part = values[start : start + 4096]
        path = folder / f"train-{number:06d}.tar"
        with wds.TarWriter(str(path), encoder=False) as tar:
            for i in range(0, len(part), 1024):
                arrays = {"moments.npy": part[i : i + 1024], "labels.npy": np.zeros(len(part[i : i + 1024]), np.int64)}
                tar.write({"__key__": f"{number:06d}-{i:04d}"} | {key: npy(value) for key, value in arrays.items()})
        shards.append({"name": path.name, "count": len(part), "bytes": path.stat().st_size, "sha256": 64 * "0"})
    count = {"train": len(values), "val": 0}
    manifest = identity | {"count": count, "shards": {"train": shards, "val": []}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def large_cache(folder: Path, times: int, batch: int) -> None:
    """Time to the first batch of a cache `times` as large: each of its shards a link to one of these."""
    large = folder / "large"
    large.mkdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [
        shard | {"name": f"train-{copy:04d}-{shard['name']}", "of": shard["name"]}
        for copy in range(times)
        for shard in manifest["shards"]["train"]
    ]
    for shard in shards:
        (large / shard["name"]).symlink_to(folder / shard.pop("of"))
    manifest["count"]["train"] *= times
    (large / "manifest.json").write_text(json.dumps(manifest | {"shards": {"train": shards, "val": []}}))
    start = time.perf_counter()
    moments = CachedMoments(LatentCache(str(large), "size"), "train")
    order = Order(seed=0, batch_size=batch, rank=0, world=1, images_seen=0)
    moments.__getitems__(next(iter(OrderedBatches(order, len(moments)))))
    print(f"    first batch of {batch} after {time.perf_counter() - start:.3f} s, of {len(moments):,} latents")


def npy(array: np.ndarray) -> bytes:
    """The array as a .npy file's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def peers(folder: Path, values: np.ndarray, order: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Readers of the same latents kept in other ways, each of fp16 batches in this order, [batches, batch size]."""
    for i, value in enumerate(values):
        np.save(folder / f"{i}.npy", value)
    save_file({"latents": values}, folder / "all.safetensors")  # one tensor, a slice an item: LightningDiT's way
    np.savez(folder / "all.npz", **{str(i): value for i, value in enumerate(values)})
    with wds.TarWriter(str(folder / "one.tar"), encoder=False) as tar:
        for i, value in enumerate(values[: order.size]):
            tar.write({"__key__": f"{i:06d}", "npy": npy(value)})
    sliced = safe_open(folder / "all.safetensors", "np").get_slice("latents")
    zipped = zipfile.ZipFile(folder / "all.npz")

    def opened(i: int) -> np.ndarray:
        with safe_open(folder / "all.safetensors", "np") as file:
            return file.get_slice("latents")[i]

    def stacked(read: Callable[[int], np.ndarray]) -> Callable[[], Any]:
        return lambda: [torch.from_numpy(np.stack([read(i) for i in batch])) for batch in order.tolist()]

    def streamed() -> None:
        data = wds.WebDataset(str(folder / "one.tar"), shardshuffle=False, empty_check=False).shuffle(1000)
        arrays = data.map(lambda sample: np.load(io.BytesIO(sample["npy"])))
        for batch in arrays.batched(order.shape[1], collation_fn=np.stack):
            torch.from_numpy(batch)

    return {
        "safetensors, kept open": stacked(lambda i: sliced[i]),
        "safetensors, opened for each": stacked(opened),
        "an npy file each": stacked(lambda i: np.load(folder / f"{i}.npy")),
        "npy in a zip": stacked(lambda i: np.load(io.BytesIO(zipped.read(f"{i}.npy")))),
        "webdataset, a latent a member": streamed,
    }
