"""What `ldm evaluate` can say of samples and of an autoencoder. Each score is one class of two methods:

look      on every rank: pass over this rank's share of the images
compute   on rank 0, from all ranks' shares: entries of metrics.json, each beside what it depends on

To add one: such a class here, and a line in `ldm.evaluate.chosen`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import track
from torch import Tensor

from ldm.bits_per_dim import bits_per_dim
from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.data.image_sets import ImageSet, SourceSet, some
from ldm.data.sources import Source, digest
from ldm.images import grid, save_png, to_image, to_x
from ldm.losses.reconstruction import PerceptualLoss
from ldm.metrics.classifier import Classifier
from ldm.metrics.collect import Collected, collect, merged, sampling
from ldm.metrics.distribution import inception_score, kernel_distance, neighbourhoods
from ldm.metrics.features import Extractor
from ldm.metrics.frechet import expected_bias, frechet_distance
from ldm.metrics.neighbours import Neighbours
from ldm.metrics.reconstruction import ReconstructionMetrics
from ldm.metrics.statistics import Statistics
from ldm.tiling import tiled

FEW = 10_000  # samples below which the Frechet distance's bias is worth saying
FORMAT = 2  # of kept statistics
NAMES = {"features": "frechet_distance", "spatial": "spatial_frechet_distance"}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads this rank's share of a set in batches on its device, with a bar on rank 0."""

    device: torch.device
    batch_size: int
    num_workers: int
    rank: int
    world: int

    def __call__(self, images: ImageSet, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        batches = images.batches(self.batch_size, self.num_workers, self.rank, self.world)
        for image, label in track(batches, description=what, disable=self.rank != 0):
            yield image.to(self.device), label


class Score(Protocol):
    """One of the classes below."""

    def look(self, read: Reader) -> Any: ...

    def compute(self, shares: list[Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """Frechet and kernel distance, precision, recall, density, coverage; with Inception also sFID and its score.

    Args:
        samples: what is scored.
        reference: the real images.
        known: their statistics from elsewhere, which go before; of images beside them, features alone are taken.
        extractor: of the features.
        folder: where statistics of a reference are kept and found again; None: nowhere.
        keep: rows of features kept a side: kernel distance and neighbourhoods are computed of these.
        neighbours: k of the neighbourhoods.
        seed: of the subsets of the kernel distance.
    """

    samples: ImageSet
    reference: ImageSet | None
    known: dict[str, Statistics]
    extractor: Extractor
    folder: Path | None
    keep: int
    neighbours: int
    seed: int

    def __post_init__(self) -> None:
        if "features" in self.known:  # before either set is read
            self._same_features(self.known["features"], self.extractor.num_features)

    def _files(self) -> dict[str, Path]:
        """Where this reference's statistics are kept, by the kind of its features."""
        if self.folder is None or self.reference is None:
            return {}
        key = (FORMAT, self.extractor.identity, self.reference.card, self.reference.place, self.keep)
        return {kind: self.folder / f"{digest(*key, kind)}.npz" for kind in self.extractor.kinds}

    def look(self, read: Reader) -> tuple[Collected, Collected | None]:
        # the samples first: what is wrong with them shows before the longer pass
        samples = collect(read(self.samples, "samples"), self.extractor, self.keep)
        files = self._files().values()
        if self.reference is None or (files and all(file.exists() for file in files)):
            return samples, None
        return samples, collect(read(self.reference, "reference"), self.extractor, self.keep)

    def _reference(self, shares: list[Collected | None]) -> dict[str, Statistics]:
        own = {} if self.reference is None else self._of_images(self.reference, shares)
        if not self.known or not own:
            return self.known or own
        return self.known | {"features": replace(self.known["features"], features=own["features"].features)}

    def _of_images(self, reference: ImageSet, shares: list[Collected | None]) -> dict[str, Statistics]:
        files, found = self._files(), [share for share in shares if share is not None]
        if len(found) < len(shares):  # kept before, or by another command while some ranks were on their way
            return {kind: Statistics.load(file) for kind, file in files.items()}
        total = merged(found)
        own = {"extractor": self.extractor.identity, "extractor_resize": self.extractor.resize}
        card = reference.card | own | {"pixels": total.fingerprint}
        statistics = {kind: total.statistics(kind, card) for kind in self.extractor.kinds}
        for kind, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            statistics[kind].save(file)
        return statistics

    def compute(self, shares: list[Any]) -> dict[str, Any]:
        samples = merged([ours for ours, _ in shares])
        real = self._reference([theirs for _, theirs in shares])
        count = samples.images
        of_samples = {"samples": count, "classes": sampling(samples.labels)}
        of_samples |= {"extractor": self.extractor.identity, "extractor_resize": self.extractor.resize}
        depends = of_samples | {"reference": real["features"].card | {"images": real["features"].count}}
        scores: dict[str, Any] = {}
        for kind, ours in ((kind, samples.statistics(kind, {})) for kind in samples.moments):
            if kind in real:
                self._same_features(real[kind], len(ours.mean))
                scores[NAMES[kind]] = {"value": frechet_distance(real[kind], ours), "depends": depends}
        few = [n for n in (count, real["features"].count) if n is not None]
        bias = sum(expected_bias(real["features"].covariance, n) for n in few)
        scores["frechet_distance"] |= {"expected_of_perfect_samples": bias, "of": {"pixels": samples.fingerprint}}
        rows, theirs = samples.kept["features"].take(), real["features"].features
        if theirs is not None:
            compared = depends | {"kept": [len(rows), len(theirs)], "seed": self.seed}
            scores["kernel_distance"] = kernel_distance(theirs, rows, self.seed) | {"depends": compared}
            if min(len(rows), len(theirs)) > self.neighbours:
                compared = depends | {"kept": [len(rows), len(theirs)], "neighbours": self.neighbours}
                for name, value in neighbourhoods(theirs, rows, self.neighbours).items():
                    scores[name] = {"value": value, "depends": compared}
        if "logits" in samples.kept:
            found = inception_score(samples.kept["logits"].take(), self.seed)
            scores["inception_score"] = found | {"depends": of_samples | {"seed": self.seed}}
        return scores

    def _same_features(self, theirs: Statistics, wanted: int) -> None:
        if (other := theirs.card.get("extractor", self.extractor.identity)) != self.extractor.identity:
            raise ValueError(f"the reference's statistics are of {other}, the samples' of {self.extractor.identity}")
        if len(theirs.mean) != wanted:
            raise ValueError(
                f"the reference's statistics are of {len(theirs.mean)} features, this extractor has {wanted}: "
                "pass the features= that they were made with"
            )


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """How many samples a classifier gives their own label, and, for its worth, how many held-out images."""

    samples: ImageSet
    held_out: ImageSet
    classifier: Classifier

    def look(self, read: Reader) -> list[Counter[int]]:
        """Labels, and those of them that are right; of samples, of held-out images."""
        counts = []
        for images, what in ((self.samples, "class accuracy"), (self.held_out, "class accuracy of held-out images")):
            seen, right = Counter[int](), Counter[int]()
            with torch.inference_mode():
                for image, label in read(images, what):
                    seen.update(label.tolist())
                    right.update(label[self.classifier.predict(image).cpu() == label].tolist())
            counts += [seen, right]
        return counts

    def compute(self, shares: list[list[Counter[int]]]) -> dict[str, Any]:
        totals: list[Counter[int]] = [sum(column, Counter()) for column in zip(*shares, strict=True)]
        seen, right, seen_real, right_real = (total.total() for total in totals)
        depends = {"samples": seen, "classes": sampling(totals[0]), "classifier": self.classifier.identity}
        own = {"value": right / seen, "classifier_on_held_out_images": right_real / seen_real}
        return {"class_accuracy": own | {"depends": depends}}


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Whether samples are copies of training images (or of their mirrors, where training had these): the nearest of
    these, in feature space, to `num` samples."""

    samples: ImageSet
    train: SourceSet
    held_out: ImageSet
    extractor: Extractor
    num: int
    picture: Path

    def look(self, read: Reader) -> Neighbours:
        queries = [some(images, self.num, read.batch_size) for images in (self.samples, self.held_out)]
        with torch.inference_mode():
            own, others = (
                torch.cat([self.extractor(part.to(read.device)).cpu() for part in images.split(read.batch_size)])
                for images in queries
            )
            found = Neighbours(own, others, queries[0][:8].clone())
            for image, _ in read(self.train, "nearest training images"):
                for view in (image, image.flip(-1))[: 1 + self.train.source.flip]:
                    found.update(self.extractor(view).cpu(), view)
        return found

    def compute(self, shares: list[Neighbours]) -> dict[str, Any]:
        found = reduce(Neighbours.merge, shares)
        save_png(self.picture, grid(*found.rows()))
        depends = {"looked_up": found.num, "extractor": self.extractor.identity, "mirrors": self.train.source.flip}
        depends |= {"training_images": self.train.card, "held_out_images": self.held_out.card}
        return {"memorisation": found.compute() | {"depends": depends}}


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """PSNR, SSIM, LPIPS and rFD of the posterior mean's reconstructions of held-out images.

    Args:
        autoencoder: whose.
        held_out: the images.
        extractor: for rFD; None leaves it out.
        perceptual: LPIPS; None leaves it out.
        tile: side in pixels of the tiles that large images are cut into; None takes them whole.
    """

    autoencoder: LoadedAutoencoder
    held_out: ImageSet
    extractor: Extractor | None
    perceptual: PerceptualLoss | None
    tile: int | None

    def __post_init__(self) -> None:
        factor, side = self.autoencoder.model.downsample_factor, self.held_out.card["resolution"]
        if side % factor:
            raise ValueError(f"data.resolution={side} is not a multiple of the autoencoder's factor {factor}")
        if self.tile is not None and self.tile % (4 * factor):
            raise ValueError(
                f"tile={self.tile} must be a multiple of {4 * factor}, four times the autoencoder's factor"
            )

    def look(self, read: Reader) -> dict[str, Any]:
        """Scores over all ranks."""
        scores = ReconstructionMetrics(self.perceptual, self.extractor)
        model, factor = self.autoencoder.model.to(read.device), self.autoencoder.model.downsample_factor
        side, overlap = (self.tile, self.tile // 4) if self.tile else (1 << 30, 0)
        with torch.inference_mode():
            for image, _ in read(self.held_out, "reconstruction"):
                z = tiled(lambda x: model.encode(x).mean, to_x(image), side, overlap)
                scores.update(to_image(tiled(model.decode, z, side // factor, overlap // factor)), image)
        scores.to(torch.device("cpu"))  # where ranks exchange finished results
        depends = {
            "of": "posterior mean",
            "tile": self.tile,
            "lpips_weights": None if self.perceptual is None else self.perceptual.identity,
            "extractor": None if self.extractor is None else self.extractor.identity,
        }
        return {"images": scores.images, "depends": depends} | scores.compute()

    def compute(self, shares: list[dict[str, Any]]) -> dict[str, Any]:
        images = sum(share["images"] for share in shares)  # of a few images, some ranks may have none
        if images == 0:
            raise ValueError("no held-out image could be decoded")
        depends = shares[0]["depends"] | {"held_out_images": self.held_out.card | {"images": images}}
        own = {"images": images, "autoencoder": self.autoencoder.fingerprint, "depends": depends}
        return {"reconstruction": shares[0] | own}


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits per dimension of held-out latents, and the bound on those of their images: see `ldm likelihood`."""

    model: LoadedDiffusion
    autoencoder: LoadedAutoencoder
    source: Source
    num: int
    seed: int

    def look(self, read: Reader) -> Reader:
        """Nothing yet: this is long, and for rank 0 alone, while waiting ranks are given up after half an hour."""
        return read

    def compute(self, shares: list[Reader]) -> dict[str, Any]:
        model, source, read = self.model, self.source, shares[0]
        found = bits_per_dim(model, self.autoencoder, source, self.num, read.batch_size, read.device, self.seed, {})
        depends = {key: found[key] for key in ("images", "seed", "likelihood")}
        depends["held_out_images"] = SourceSet(self.source, ("val",)).card
        return {"bits_per_dim": {"value": found["image_bits_per_dim_at_most"], "terms": found, "depends": depends}}
