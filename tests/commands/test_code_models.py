"""Codes in the cache and objective=ardm, from training to all that is made of a model; and what is refused."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from support.captioned import FOLDER, captioned
from support.config import CONF
from support.forms import digits
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_training
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails, run_command

import ldm as package
from ldm.commands.playground_studio import CommandStudio, ModelKeys
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.data.formats import Manifest, dtype_of
from ldm.images import to_x
from ldm.play.serving import Ended

CODES = 32
ARDM = [*[o for o in TINY_DIFFUSION if not o.startswith("sampler")], *CPU, "objective=ardm", "sampler.steps=2"]
CACHE = ["cache-latents", "shard_size=600", "codes=true"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with both stages of a tiny model of codes."""
    folder = tmp_path_factory.mktemp("codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("train-autoencoder", *TINY_AUTOENCODER, *CPU, "regularizer=vq", f"regularizer.codes={CODES}")
        run_command(*CACHE)
        run_command("train-diffusion", *ARDM)
        run_command("likelihood", "num=6", "batch_size=4")
    return folder


@pytest.fixture
def codes(trained, ldm, tmp_path):
    """The command, in a copy of that folder."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return ldm


def test_the_cache_keeps_codes(codes):
    cache = LatentCache("runs/latents", "full")
    assert (cache.codes, cache.manifest.dtype, cache.latent_shape) == (CODES, "uint16", (1, 8, 8))
    assert cache.stats_card == {"mean": [0.0], "std": [1.0], "whitening": None}
    batch = CachedMoments(cache, "val").__getitems__([(0, i) for i in range(8)])
    images, labels = digits("val")
    model = package.load("runs/diffusion")
    assert torch.equal(batch.labels, labels[:8])
    assert torch.equal(batch.moments.long(), model.autoencoder.codes(to_x(images[:8])))
    assert torch.equal(model.encode(images[:8]), batch.moments.long())
    assert model.decode(batch.moments.long()).shape == (8, 3, 32, 32)
    for wrong, said in ((batch.moments.float(), "codes are long"), (batch.moments.long() + CODES, "from 0 to 31")):
        with pytest.raises(ValueError, match=said):
            model.decode(wrong)


def test_many_codes_take_more_bytes():
    assert [dtype_of(n) for n in (None, 2**16, 2**16 + 1)] == ["float16", "uint16", "int32"]


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).copy()


def changed(change):
    """The cache's manifest with other values, as somebody means it."""
    file = Path("runs/latents/manifest.json")
    said = json.loads(file.read_text()) | change
    said.pop("checksum")
    file.write_text(json.dumps(said))
    return file


def test_codes_beyond_the_codebook_are_refused(codes):
    changed({"codes": 2})
    assert "holds codes beyond 0 ... 1" in fails("train-diffusion", *ARDM, "run=other", "verify=full")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": None}, "dtype is uint16, and codes=None are float16"),
        ({"codes": 2**20}, "are int32"),
        ({"shape": [2, 8, 8]}, "codes are one number a place"),
    ],
)
def test_a_manifest_that_disagrees_with_itself_is_refused(codes, change, said):
    with pytest.raises(ValueError, match=said):
        Manifest.read(changed(change))


def test_samples_and_python(codes):
    codes("sample", "num=4", "sampler.steps=3", "guidance=2")
    stamp = json.loads(Path("runs/samples/sample.json").read_text())
    assert stamp["evaluations"] == 3
    assert stamp["sampler"]["function"]["_target_"] == "ldm.diffusion.autoregressive.ardm"
    codes("sample", "run=parts", "num=4", "sampler.steps=3", "guidance=2", "batch_size=1")
    whole, parts = (np.load(f"runs/{run}/samples.npz")["arr_0"] for run in ("samples", "parts"))
    assert abs(whole.astype(int) - parts).max() <= 1  # batches change nothing but rounding
    model = package.load("runs/diffusion")
    assert torch.equal(model.sample(n=4, steps=3, guidance=2), torch.from_numpy(whole).permute(0, 3, 1, 2))
    assert model.sample([1], n=1, steps=2, grid="cosine", latent_size=4).shape == (1, 3, 16, 16)
    codes("sample", "run=hot", "num=1", "sampler=ardm", "sampler.function.temperature=0.5", "sampler.steps=64")
    assert json.loads(Path("runs/hot/sample.json").read_text())["evaluations"] == 64


def test_the_bound_its_losses_and_the_grid_that_is_planned_by_them(codes, capsys):
    said = json.loads(Path("runs/likelihood/likelihood.json").read_text())
    assert len(said["by_hidden"]) == 64
    # four batches of training: all codes are still about as likely, which is log2 32 = 5 bits
    assert said["latent_bits_per_dim"] == pytest.approx(5, abs=0.5)
    assert said["latent_bits_per_dim"] == pytest.approx(np.mean(said["by_hidden"]) / np.log(2), rel=1e-6)
    terms = said["terms"]
    assert terms["posterior_entropy"] == 0
    assert said["image_bits_per_dim_at_most"] == pytest.approx(terms["decoder"] + terms["latent"])
    codes("likelihood", "run=few", "num=6", "batch_size=4", "likelihood.steps=8")
    few = json.loads(Path("runs/few/likelihood.json").read_text())
    assert few["evaluations"] == 8
    assert few["latent_bits_per_dim"] == pytest.approx(said["latent_bits_per_dim"], abs=0.3)
    codes("sample", "num=2", "sampler.steps=4", "grid=planned")
    grid = json.loads(Path("runs/samples/sample.json").read_text())["grid"]
    assert grid["losses"] == pytest.approx(said["by_hidden"])
    assert "grid.losses=runs/none is no run of ldm likelihood" in fails(
        "sample", "grid=planned", "grid.losses=runs/none"
    )
    codes("evaluate", "likelihood=4", "features=pixels", "reconstruction=false")
    metrics = json.loads(Path("runs/metrics/metrics.json").read_text())
    assert metrics["bits_per_dim"]["value"] > 0
    assert metrics["bits_per_dim"]["terms"]["hutchinson_error_in_latent_bits"] is None
    codes("report", "runs/metrics")
    assert "<dt>codes</dt><dd>32</dd>" in Path("runs/metrics/report.html").read_text()
    assert "is of latents' ODE" in fails("likelihood", "run=x", "likelihood.probes=3")


def test_known_codes_stay_where_a_picture_is_infilled(codes):
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photos/a.png")
    codes("infill", "run=filled", "images=photos", "box=[0,16,32,16]", "draws=2", "sampler.steps=2", "guidance=1")
    assert json.loads(Path("runs/filled/infill.json").read_text())["method"] == "codes"
    draws = [np.asarray(Image.open(f"runs/filled/images/a-{k}.png").convert("RGB")) for k in (0, 1)]
    assert np.array_equal(draws[0][:, :16], pixels[:, :16])
    assert not np.array_equal(draws[0], draws[1])
    hidden = ["images=photos", "box=[0,16,32,16]", "guidance=1"]
    assert "the model makes codes" in fails("infill", "run=x", *hidden, "method=repaint")
    assert "resample=5 is of method=repaint" in fails("infill", "run=x", *hidden, "resample=5")
    codes("infill", "run=planned", *hidden, "sampler.steps=4", "grid=planned")


def test_it_goes_on_as_if_it_had_not_stopped(codes):
    codes("train-diffusion", *ARDM, "run=parts", "steps=2")
    codes("train-diffusion", *ARDM, "run=parts")
    assert_same_training("runs/parts", "runs/diffusion", "diffusion")


@pytest.mark.parametrize("net", ["net=dit_digits", "net=small"])
def test_other_networks_learn_codes(codes, net):
    options = [o for o in ARDM if not o.startswith("net.")]
    width = "net.model_channels=24" if net == "net=dit_digits" else "net.model_channels=32"
    codes("train-diffusion", *options, net, width, "run=other", "accumulate=2", "power_ema=[0.1]")
    assert package.load("runs/other").sample(n=1, steps=1).shape == (1, 3, 32, 32)


def test_mirrors_and_texts(codes):
    captioned(Path("photos"))
    codes("cache-latents", "run=kept", *FOLDER, "codes=true", "data.flip=true")
    cache = LatentCache("runs/kept", "full")
    data = CachedMoments(cache, "train")
    images = torch.stack([torch.from_numpy(read(path)) for path in sorted(Path("photos").rglob("*.png"))]).movedim(
        -1, 1
    )
    model = package.load("runs/diffusion")
    views = [model.encode(images), model.encode(images.flip(-1))]
    for i in range(len(data)):  # both views of an image are its own and its mirror's codes
        cached = [data.__getitems__([(i + view, i)]).moments.long() for view in (0, 1)]
        ours = [(view == codes).flatten(1).all(1) for view, codes in zip(views, cached, strict=True)]
        assert (ours[0] & ours[1]).any()
    assert not torch.equal(*views)
    codes("train-diffusion", *ARDM, "run=told", "latents=runs/kept", "condition=text", "condition.width=24")
    assert package.load("runs/told").sample(prompts=["red", "a word"], n=2, steps=2).shape == (2, 3, 32, 32)


def test_estimates(codes, capsys):
    codes("estimate", "train-diffusion", *ARDM)
    codes("estimate", "sample", "model=runs/diffusion", "sampler.steps=4")
    assert "4 evaluations" in capsys.readouterr().out
    codes("estimate", "cache-latents", "autoencoder=runs/autoencoder", "codes=true")


def test_the_page_offers_what_fits(codes):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = ModelKeys(
            run="play", model="runs/diffusion", autoencoder=None, weights="ema", trust=[], batch_size=8, device="cpu"
        )
        choices = CommandStudio(keys, 0, Ended()).choices
    assert list(choices.samplers) == ["trained", "ardm"]
    assert list(choices.grids) == ["trained", "cosine", "uniform"]
    assert list(choices.paths) == ["trained"]
    assert not choices.between


def test_quality_by_parallel_steps(codes, monkeypatch, capsys):
    job = runpy.run_path(str(CONF.parent / "jobs/parallel_steps.py"))
    main = job["main"]
    monkeypatch.setitem(main.__globals__, "called", lambda command, *words: codes(command, "overwrite=true", *words))
    monkeypatch.setitem(main.__globals__, "STEPS", (2,))
    main("runs/diffusion", "runs/likelihood", Path("steps.png"), (["num=4", "guidance=1"], ["features=pixels"]))
    table = json.loads(Path("steps.json").read_text())
    assert {rule: list(row) for rule, row in table.items()} == {rule: ["2", "64"] for rule in job["RULES"]}
    assert "| planned |" in capsys.readouterr().out
    assert Path("steps.png").stat().st_size > 5_000


REFUSED = {
    "another sampler": (["sample", "sampler=heun"], "pass sampler=ardm"),
    "another path": (["sample", "path=cosine"], "are of latents, and this model makes codes"),
    "strips": (["sample", "interpolation=4"], "pass interpolation=0"),
    "a pipeline": (["convert", "model=runs/diffusion", "to=diffusers", "run=x"], "diffusers has no pipeline"),
    "a network for diffusers": (
        ["convert", "source=runs/diffusion", "what=diffusion", "to=diffusers", "run=x"],
        "no place for net.codes=32",
    ),
    "a grid that leaves places hidden": (["sample", "grid=karras"], "pass grid=uniform, cosine or planned"),
    "a plan for other sizes": (["sample", "grid=planned", "latent_size=4"], "this model has 16 places"),
    "small copies": (["train-diffusion", *ARDM, "run=x", "condition=upscale"], "cache them anew with low_resolution=8"),
    "pairs": (["cache-pairs", "teacher=runs/diffusion", "run=x"], "makes codes, and pairs are of latents"),
    "a teacher": (
        ["train-diffusion", "run=x", "objective=progressive", "teacher=runs/diffusion"],
        "makes codes, and students are of latents",
    ),
    "another objective": (["train-diffusion", "run=x", "objective=flow"], "are codes: choose objective=ardm"),
    "pictures as conditions": (["train-diffusion", *ARDM, "run=x", "condition=infill"], "takes labels and text"),
    "a path for codes": (["train-diffusion", *ARDM, "run=x", "+objective.scales=2"], "codes=cached has no scales"),
    "a table of latents": (["diagnose", "latents=runs/latents"], "codes"),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_of_latents_alone_is_refused(codes, words, said):
    assert said in fails(*words)


def test_latents_are_no_codes(there):
    assert "has none: train one with regularizer=vq or fsq" in fails(*CACHE, "run=x")
    assert "ldm cache-latents codes=true" in fails("train-diffusion", *ARDM, "run=x")
    assert "this model makes latents: pass another" in fails("sample", "sampler=ardm", "num=2")


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(codes):
    exact = [*ARDM, "steps=3", "every=3", "trainer.precision=64-true", "optimizer._target_=torch.optim.SGD",
             "~optimizer.weight_decay", "~optimizer.fused", "optimizer.lr=0.01"]  # fmt: skip
    codes("train-diffusion", *exact, "run=one")
    ranks("train-diffusion", *exact, "batch_size=4", "run=two")
    assert_close_weights("runs/one", "runs/two", "diffusion", rtol=1e-6, atol=1e-8)
