"""The scores of an extractor that knows all that Inception does: Frechet distances of two kinds, logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity.metric_fid as fidelity
from torch_fidelity.metric_isc import isc_features_to_metric

from ldm.evaluation.image_sets import ArraySet
from ldm.evaluation.sample_scores import FeatureScores, Reader
from ldm.metrics.collect import merged
from ldm.metrics.features import Extractor
from ldm.metrics.statistics import pixel_hashes

OPTIONS = {"neighbours": {"precision_recall": 3, "density_coverage": 5}, "precision": "float32", "seed": 0}


class Small(Extractor):
    identity, resize, num_features = "small", "none", 3
    kinds = ("features", "spatial")

    def forward(self, image):
        return image.double().mean((2, 3))

    def outputs(self, image):
        return {"features": self(image), "spatial": image[:, 0].flatten(1), "logits": self(image) / 4}


def array(tmp_path, name, n, high):
    images = np.random.default_rng(n).integers(0, high, (n, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / name, arr_0=images)
    return ArraySet.load(tmp_path / name)


def test_statistics_that_another_command_keeps_meanwhile_are_taken_whole(tmp_path):
    """Some ranks have read their share of the reference by then, others leave theirs out."""
    samples, real = array(tmp_path, "samples.npz", 301, 200), array(tmp_path, "real.npz", 400, 256)
    folder, options = tmp_path / "statistics", {"device": torch.device("cpu"), "batch_size": 64, "num_workers": 0}
    score = FeatureScores(
        samples=samples, reference=real, known={}, extractor=Small(), folder=folder, keep=150, **OPTIONS
    )
    first, second = (Reader(rank=rank, world=2, **options) for rank in range(2))
    early = score.look(first)
    whole = score.compute([score.look(Reader(rank=0, world=1, **options))])
    late = score.look(second)
    assert late[1] is None
    found = score.compute([early, late])
    assert found["frechet_distance"]["value"] == pytest.approx(whole["frechet_distance"]["value"], rel=1e-9)
    assert found["frechet_distance"]["depends"]["reference"]["images"] == 400


@pytest.mark.parametrize("ranks", [1, 3])
def test_both_frechet_distances_and_the_inception_score(tmp_path, ranks):
    samples, real = array(tmp_path, "samples.npz", 301, 200), array(tmp_path, "real.npz", 400, 256)
    folder = tmp_path / "statistics"
    score = FeatureScores(
        samples=samples, reference=real, known={}, extractor=Small(), folder=folder, keep=150, **OPTIONS
    )
    options = {"device": torch.device("cpu"), "batch_size": 64, "num_workers": 0, "world": ranks}
    found = score.compute([score.look(Reader(rank=rank, **options)) for rank in range(ranks)])
    a, b = (Small().outputs(torch.tensor(np.array(one.images)).permute(0, 3, 1, 2)) for one in (samples, real))
    for kind, name in (("features", "frechet_distance"), ("spatial", "spatial_frechet_distance")):
        two = [{"mu": x.mean(0), "sigma": np.cov(x.T)} for x in (side[kind].double().numpy() for side in (a, b))]
        theirs = fidelity.fid_statistics_to_metric(*two, False)["frechet_inception_distance"]
        assert found[name]["value"] == pytest.approx(theirs, rel=1e-6)
        assert found[name]["depends"]["reference"]["images"] == 400
    score_of_all = found["inception_score"]
    order = pixel_hashes(torch.tensor(np.array(samples.images)).permute(0, 3, 1, 2)).argsort()
    theirs = isc_features_to_metric(a["logits"][order].float(), splits=10, shuffle=True, rng_seed=0)
    assert score_of_all["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert score_of_all["value"] > 1.5  # of all samples, not of those that are kept
    assert score_of_all["depends"]["samples"] == 301
    assert found["spatial_frechet_distance"]["expected_of_perfect_samples"] > 0
    assert found["precision"]["depends"]["neighbours"] == 3
    assert found["coverage"]["depends"]["neighbours"] == 5
    assert found["precision"]["depends"]["kept"] == [150, 150]
    in_order = replace(score, inception_splits="adm")
    shares = [in_order.look(Reader(rank=rank, **options)) for rank in range(ranks)]
    torch.testing.assert_close(merged([share for share, _ in shares]).kept["logits"].take(), a["logits"].float())
    by_adm = in_order.compute(shares)["inception_score"]
    assert by_adm["depends"]["splits"] == "5000 in order"
    expected = isc_features_to_metric(a["logits"].float(), splits=1, shuffle=False)["inception_score_mean"]
    assert by_adm["value"] == pytest.approx(expected, rel=1e-6)
    again = score.compute([score.look(Reader(rank=rank, **options)) for rank in range(ranks)])
    assert again == found
    assert len(list(folder.iterdir())) == 2  # a file a kind
