"""`ldm evaluate --compare`: which numbers of two files may be compared, and what differs."""

from pathlib import Path

import pytest
from support.forms import ALONE, as_folder, as_npz, digits

from ldm.evaluation.comparison import comparison


def test_two_files_are_compared(ldm, held_out, capsys):
    images, labels = held_out
    as_npz(images[:200], labels[:200], "fewer.npz")
    as_npz(images.flip(0), labels.flip(0), "others.npz")
    for samples in ("theirs", "fewer", "others"):
        ldm("evaluate", f"run={samples}", f"samples={samples}.npz", *ALONE)

    def compare(*runs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as info:
            ldm("evaluate", "--compare", *(f"runs/{run}/metrics.json" for run in runs))
        return info.value.code, capsys.readouterr().out

    code, said = compare("theirs", "others")
    assert code == 0
    assert "NOT" not in said
    assert "frechet_distance: " in said
    assert "sha256: " in said  # of the samples, which is what differs
    code, said = compare("theirs", "fewer")
    assert code == 1
    assert "NOT comparable\n    samples: 297 and 200" in said
    as_npz(*digits(), "real.npz")
    as_folder(*digits(), "real")
    for name in ("real", "real.npz"):
        ldm("evaluate", f"run=by_{name}", "samples=theirs.npz", f"reference={name}", "features=pixels", *ALONE)
    code, said = compare("by_real", "by_real.npz")  # the same pixels under two names
    assert code == 0, said
    Path("runs/none").mkdir()
    Path("runs/none/metrics.json").write_text('{"samples": {}, "versions": {}}')
    assert compare("theirs", "none")[0] == 1
    said, _ = compare("theirs", "nothing")
    assert said.startswith("ldm: error: runs/nothing/metrics.json is no metrics.json")


def scored(name, **depends):
    return {"samples": {}, "versions": {}, name: {"value": 1.0, "depends": depends}}


@pytest.mark.parametrize(
    ("name", "one", "other", "said"),
    [
        ("kernel_distance", {"samples": 50, "seed": 0}, {"samples": 70, "seed": 1}, "comparable, but for more"),
        ("kernel_distance", {"extractor": "a"}, {"extractor": "b"}, "NOT comparable"),
        ("class_accuracy", {"samples": 50}, {"samples": 70}, "comparable, but for more"),
        ("precision", {"samples": 50}, {"samples": 70}, "NOT comparable"),
        ("frechet_distance", {"classes": "unknown"}, {"classes": "equally many"}, "if what is unknown is alike"),
        ("bits_per_dim", {"images": 8}, {"images": 9}, "NOT comparable"),
    ],
)
def test_what_only_widens_the_noise_of_a_score_does_not_forbid_it(name, one, other, said):
    lines, fair = comparison(scored(name, **one), scored(name, **other))
    assert said in lines[0]
    assert fair == ("NOT" not in said)


@pytest.mark.parametrize("name", ["memorisation", "bits_per_dim", "reconstruction"])
def test_sets_are_compared_by_their_pixels_not_by_their_names(name):
    def made(**card):
        found = scored(name, held_out_images={"images": 9, "resolution": 32} | card)
        return found if name != "reconstruction" else found | {name: found[name] | {"psnr": 20.0}}

    folder, shards = made(set="folder", content="x", pixels="a"), made(set="shards", content="y", pixels="a")
    assert comparison(folder, shards)[1]
    assert not comparison(folder, made(set="folder", content="x", pixels="b"))[1]


def test_each_score_of_reconstructions_depends_on_its_own_network():
    depends = {"tile": None, "lpips_weights": "random VGG16 weights", "extractor": "pixels"}
    scores = {"psnr": 20.0, "ssim": 0.5, "lpips": 0.1, "rfd": 3.0, "autoencoder": "aaaa"}
    files = [{"samples": {}, "versions": {}, "reconstruction": scores | {"depends": depends}}]
    others = scores | {"autoencoder": "bbbb", "depends": depends | {"lpips_weights": "torchvision's VGG16"}}
    lines, fair = comparison(*files, {"samples": {}, "versions": {}, "reconstruction": others})
    assert [line.split()[1] for line in lines if "NOT" in line] == ["lpips:"]
    assert "    autoencoder: aaaa and bbbb" in lines
    assert not fair
