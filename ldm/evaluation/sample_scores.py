"""What `ldm evaluate` can say of samples (of models: model_scores.py). Each score is one class of two methods:

look      on every rank: pass over this rank's share of the images
compute   on rank 0, from all ranks' shares: entries of metrics.json, each beside what it depends on

To add one: such a class here, and a line in `ldm.commands.evaluate.chosen`.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ldm.data.samples import digest
from ldm.evaluation.image_sets import ImageSet, SourceSet, drawn_by_pixels
from ldm.images import annotate, grid, save_png
from ldm.metrics.classifier import Classifier
from ldm.metrics.collect import Collected, collect, merged, sampling
from ldm.metrics.distribution import inception_score, inception_score_in_order, kernel_distance, neighbourhoods
from ldm.metrics.features import Extractor
from ldm.metrics.frechet import expected_bias, frechet_distance
from ldm.metrics.neighbours import Neighbours
from ldm.metrics.statistics import AGAIN, Statistics, pixel_sum, pixels_fingerprint
from ldm.runtime.bars import track

log = logging.getLogger(__name__)

FEW = 10_000  # samples below which the Frechet distance's bias is worth saying
FORMAT = 3  # of kept statistics
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
        for image, label in track(batches, what, hidden=self.rank != 0):
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
        known: their statistics from elsewhere, in place of those of `reference`, whose features alone are then taken.
        extractor: of the features.
        folder: where statistics of a reference are kept and found again; None: nowhere.
        keep: rows of features kept a side: kernel distance and neighbourhoods are computed of these.
        neighbours: k of precision_recall, and of density_coverage.
        precision: how features are computed.
        seed: of the subsets of the kernel distance, and of the splits of the Inception score.
        inception_splits: ten shuffled ones, as in torch-fidelity; or adm's, of 5,000 images in the samples' order.
    """

    samples: ImageSet
    reference: ImageSet | None
    known: dict[str, Statistics]
    extractor: Extractor
    folder: Path | None
    keep: int
    neighbours: dict[str, int]
    precision: str
    seed: int
    inception_splits: Literal["shuffled", "adm"] = "shuffled"

    def __post_init__(self) -> None:
        if "features" in self.known:  # before either set is read
            self._same_features(self.known["features"], self.extractor.num_features)

    def _files(self) -> dict[str, Path]:
        """Where this reference's statistics are kept, by the kind of its features."""
        if self.folder is None or self.reference is None:
            return {}
        key = (FORMAT, self.extractor.identity, self.precision, self.reference.card, self.reference.place, self.keep)
        return {kind: self.folder / f"{digest(*key, kind)}.npz" for kind in self.extractor.kinds}

    def _kept(self) -> dict[str, Statistics]:
        """This reference's statistics, where they are all kept; {} if one is not, or is damaged and to be made anew."""
        files = self._files()
        if not all(file.exists() for file in files.values()):
            return {}
        try:
            kept = {kind: Statistics.load(file) for kind, file in files.items()}
            for kind, statistics in kept.items():
                if statistics.count is None or statistics.card.get("extractor") != self.extractor.identity:
                    raise ValueError(f"{files[kind]} is not what is kept there")
        except ValueError as error:
            log.warning("%s: the reference's statistics are computed again", str(error).removesuffix(f": {AGAIN}"))
            return {}
        return kept

    def look(self, read: Reader) -> tuple[Collected, Collected | None]:
        # the samples first: what is wrong with them shows before the longer pass
        positions = count(read.rank, read.world) if self.inception_splits == "adm" else None
        samples = collect(read(self.samples, "samples"), self.extractor, self.keep, logits=True, positions=positions)
        if self.reference is None or self._kept():
            return samples, None
        return samples, collect(read(self.reference, "reference"), self.extractor, self.keep)

    def _reference(self, shares: list[Collected | None]) -> dict[str, Statistics]:
        local = {} if self.reference is None else self._of_images(self.reference, shares)
        if not self.known or not local:
            return self.known or local
        return self.known | {"features": replace(self.known["features"], features=local["features"].features)}

    def _of_images(self, reference: ImageSet, shares: list[Collected | None]) -> dict[str, Statistics]:
        files, parts = self._files(), [share for share in shares if share is not None]
        if len(parts) < len(shares):  # kept before, or by another command while some ranks were on their way
            return {kind: Statistics.load(file) for kind, file in files.items()}
        total = merged(parts)
        identity = {"extractor": self.extractor.identity, "extractor_resize": self.extractor.resize}
        identity["precision"] = self.precision
        card = reference.card | identity | {"pixels": total.pixels_fingerprint}
        statistics = {kind: total.statistics(kind, card) for kind in self.extractor.kinds}
        for kind, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            statistics[kind].save(file)
        return statistics

    def compute(self, shares: list[Any]) -> dict[str, Any]:
        samples = merged([share for share, _ in shares])
        real = self._reference([theirs for _, theirs in shares])
        of_samples = {"samples": samples.images, "classes": sampling(samples.labels)}
        of_samples |= {"extractor": self.extractor.identity, "extractor_resize": self.extractor.resize}
        depends = of_samples | {"reference": real["features"].card | {"images": real["features"].count}}
        scores: dict[str, Any] = {}
        few = [n for n in (samples.images, real["features"].count) if n is not None]
        for kind in [kind for kind in samples.moments if kind in real]:
            drawn = samples.statistics(kind, {})
            features = len(drawn.mean)
            self._same_features(real[kind], features)
            # a covariance of fewer images than that is too rough to tell the bias from
            enough = (real[kind].count or 2 * features) >= 2 * features
            bias = sum(expected_bias(real[kind].covariance, n) for n in few) if enough else None
            distance = {"value": frechet_distance(real[kind], drawn), "expected_of_perfect_samples": bias}
            scores[NAMES[kind]] = distance | {"depends": depends}
        scores["frechet_distance"]["of"] = {"pixels": samples.pixels_fingerprint}
        scores |= self._of_rows(samples.kept["features"].take(), real["features"].features, depends)
        if "logits" in samples.kept:
            scores["inception_score"] = self._inception_score(samples.kept["logits"].take(), of_samples)
        return scores

    def _inception_score(self, logits: Tensor, depends: dict[str, Any]) -> dict[str, Any]:
        """Of logits [N, K], in the samples' order for adm's splits."""
        if self.inception_splits == "adm":
            score = inception_score_in_order(logits)
            return score | {"depends": depends | {"splits": score["splits"]}}
        score = inception_score(logits, self.seed)
        return score | {"depends": depends | {"seed": self.seed, "splits": score["splits"]}}

    def _of_rows(self, rows: Tensor, real: Tensor | None, depends: dict[str, Any]) -> dict[str, Any]:
        """What needs features of single images, [N, D] and [M, D], on either side."""
        if real is None or min(len(rows), len(real)) < 2:
            return {}
        depends = depends | {"kept": [len(rows), len(real)]}
        distance = kernel_distance(real, rows, self.seed)
        scores = {"kernel_distance": distance | {"depends": depends | {"seed": self.seed}}}
        if min(len(rows), len(real)) <= max(self.neighbours.values()):
            return scores
        for name, value in neighbourhoods(real, rows, **self.neighbours).items():
            k = self.neighbours["precision_recall" if name in ("precision", "recall") else "density_coverage"]
            scores[name] = {"value": value, "depends": depends | {"neighbours": k}}
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
        if not seen_real:
            raise ValueError("no held-out image could be decoded")
        accuracy = {"value": right / seen, "classifier_on_held_out_images": right_real / seen_real}
        return {"class_accuracy": accuracy | {"depends": depends}}


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

    def look(self, read: Reader) -> tuple[Neighbours, int, int]:
        """What is nearest, and the sums of the hashes of this rank's training images, of all held-out images."""
        queries = [drawn_by_pixels(images, self.num, read.batch_size) for images in (self.samples, self.held_out)]
        with torch.inference_mode():
            features, others = (
                torch.cat([self.extractor(part.to(read.device)).cpu() for part in images.split(read.batch_size)])  # type: ignore[no-untyped-call]
                for images in queries
            )
            neighbours, total = Neighbours(features, others, queries[0]), 0
            for image, _ in read(self.train, "nearest training images"):
                total += pixel_sum(image)
                for view in (image, image.flip(-1))[: 1 + self.train.source.flip]:
                    neighbours.update(self.extractor(view).cpu(), view)
        return neighbours.settle(), total, pixel_sum(queries[1])

    def compute(self, shares: list[tuple[Neighbours, int, int]]) -> dict[str, Any]:
        neighbours = reduce(Neighbours.merge, (share for share, _, _ in shares))
        pairs, columns = neighbours.rows()
        save_png(self.picture, annotate(grid(pairs, columns), columns=["sample", "nearest"] * (columns // 2)))
        depends = {"looked_up": neighbours.num, "extractor": self.extractor.identity, "mirrors": self.train.source.flip}
        for name, images, total in (
            ("training_images", self.train, sum(total for _, total, _ in shares)),
            ("held_out_images", self.held_out, shares[0][2]),  # the same ones on all ranks
        ):
            depends[name] = images.card | {"pixels": pixels_fingerprint(total)}
        return {"memorisation": neighbours.compute() | {"depends": depends}}
