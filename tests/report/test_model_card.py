"""README.md of an exported model: what a hub and a reader take from it."""

from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from support.tiny import run_command
from support.whole_models import write_model

import ldm as package
from ldm.report.facts import Lineage
from ldm.report.model_card import Exported, model_card, sample_picture


def exported(**changes):
    words = {
        "name": "flow",
        "scheduler": "DDIMScheduler",
        "steps": 25,
        "class_names": ["cat", "dog"],
        "resolution": 32,
        "guidance": 2.0,
        "network": "U-Net",
        "alone": True,
        "codes": ["pipeline.py", "scheduler/jump_scheduler.py"],
    }
    return Exported(**words | changes)


def html(card):
    return MarkdownIt().enable("table").render(card.split("---\n", 2)[2])


def front(card):
    return yaml.safe_load(card.split("---\n", 2)[1])


@pytest.fixture(scope="module")
def nothing():
    return Lineage(start=Path("runs/flow"), stages=())


def test_of_a_run_it_has_samples_recipes_scores_and_what_they_depend_on(runs):
    run_command("convert", "run=out", "model=runs/diffusion", "to=diffusers")
    card = Path("runs/out/README.md").read_text()
    assert Path("runs/out/samples.png").read_bytes() == (runs / "samples/grid.png").read_bytes()
    page = html(card)
    for said in ("<code>frechet_distance</code>", "ldm train-autoencoder", "ldm cache-latents", "ldm train-diffusion"):
        assert said in page
    assert "samples 23" in page
    assert "23 by heun in 2 steps" in page
    assert f"By ldm {package.__version__}" in page
    assert "<td>learning rate</td>" in page
    assert "velocity on LinearPath" in page
    assert "1,500" in page  # training images
    assert "license" not in front(card)  # it is the user's to fill in
    assert front(card)["library_name"] == "diffusers"


def test_a_checkpoint_in_no_run_has_a_card_that_says_so(ldm, tmp_path):
    run = write_model(tmp_path, {"path": {"_target_": "ldm.diffusion.path.LinearPath"}, "parameterization": "velocity",
                                 "weighting": {"_target_": "ldm.diffusion.weighting.Unweighted"},
                                 "time_sampler": {"_target_": "ldm.diffusion.times.Uniform"}}, {})  # fmt: skip
    ldm("convert", "run=out", f"model={run}", "to=diffusers")
    card = Path("runs/out/README.md").read_text()
    assert "What it was trained on is not recorded here." in card
    assert "None: no `ldm evaluate`" in card
    assert "samples.png" not in card


def test_names_are_text_whatever_they_hold(nothing):
    names = ["<script>alert(1)</script>", "a|b", "*x*", "[l](http://x)", "# h"]
    page = html(model_card(nothing, exported(class_names=names, name="a | <b>")))
    assert "<script>" not in page
    assert "<a href" not in page
    assert "a|b" in page
    assert "*x*" in page


def test_many_classes_are_counted(nothing):
    card = model_card(nothing, exported(class_names=[f"class {i}" for i in range(1000)]))
    assert "1000 classes" in card
    assert "and 950 more" in card


def test_without_classes_it_says_so(nothing):
    card = model_card(nothing, exported(class_names=["all"]))
    assert "no classes" in card
    assert "unconditional" in front(card)["tags"]


def test_what_the_pipeline_must_set_is_said(nothing):
    assert "unet/ alone is not" in model_card(nothing, exported(alone=False))
    assert "unet/ alone is not" not in model_card(nothing, exported())
    assert sample_picture(nothing) is None
