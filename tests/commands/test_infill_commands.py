"""`condition=infill` from training to pictures, by both methods; ranks, resuming, students; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_pictures, assert_same_training
from support.tiny import CPU, TINY_DIFFUSION, fails

from ldm.checkpoint import load_diffusion
from ldm.conditioning.masked import known_of

INFILL = [*TINY_DIFFUSION, *CPU, "condition=infill"]
FEW = ["sampler=euler", "sampler.steps=2"]


def pictures(folder, n=3, side=32):
    rng = np.random.default_rng(0)
    for i in range(n):
        (folder / "3").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / "3" / f"{i}.png")
    return folder


def masks(folder, n=3, side=32):
    """The left quarter is hidden."""
    (folder / "3").mkdir(parents=True)
    pixels = np.zeros((side, side), dtype=np.uint8)
    pixels[:, : side // 4] = 255
    for i in range(n):
        Image.fromarray(pixels).save(folder / "3" / f"{i}.png")
    return folder


def read(name):
    return np.asarray(Image.open(name).convert("RGB"))


@pytest.mark.parametrize("net", [[], ["net=dit_digits", "net.model_channels=24", "net.depth=2"]], ids=["unet", "dit"])
def test_from_training_to_pictures(there, tmp_path, net):
    options = [option for option in INFILL if not (net and option.startswith("net."))] + net
    there("train-diffusion", *options, "run=whole")
    there("train-diffusion", *options, "run=parts", "steps=2")
    there("train-diffusion", *options, "run=parts")
    assert_same_training("runs/whole", "runs/parts", "diffusion")
    card = load_diffusion("runs/whole").card
    assert card["net"]["concat_channels"] == 1 + card["latent_shape"][0]
    photos, hidden = pictures(tmp_path / "photos"), masks(tmp_path / "masks")
    given = ["model=runs/whole", f"images={photos}", "draws=2", *FEW]
    there("infill", "run=a", *given, f"mask={hidden}", "classes=folders", "batch_size=3")
    there("infill", "run=b", *given, f"mask={hidden}", "classes=3", "batch_size=64")
    there("infill", "run=c", *given, "box=[0,0,32,8]")
    for i in range(3):
        original = read(photos / f"3/{i}.png")
        for k in range(2):
            made = [read(f"runs/{run}/images/3/{i}-{k}.png") for run in "abc"]
            assert np.array_equal(made[0], made[1])  # batches change nothing, and the folder is the class
            for picture in made:
                assert np.array_equal(picture[:, 8:], original[:, 8:])
                assert not np.array_equal(picture[:, :8], original[:, :8])
    assert not np.array_equal(read("runs/a/images/3/0-0.png"), read("runs/a/images/3/0-1.png"))
    said = json.loads(Path("runs/a/infill.json").read_text())
    assert (said["method"], said["pictures"], said["draws"]) == ("trained", 3, 2)
    there("sample", "model=runs/whole", "num=4", *FEW)  # all hidden
    there("likelihood", "model=runs/whole", "num=2", "likelihood.steps=1")


def test_a_model_that_was_not_trained_to(there, tmp_path):
    photos = pictures(tmp_path / "photos", n=1)
    given = [f"images={photos}/3/0.png", "box=[8,8,16,16]", "draws=1", "sampler.steps=2"]
    there("infill", "run=r", *given, "resample=2")
    original, made = read(photos / "3/0.png"), read("runs/r/images/0-0.png")
    known = np.ones((32, 32), dtype=bool)
    known[8:24, 8:24] = False
    assert np.array_equal(made[known], original[known])
    assert json.loads(Path("runs/r/infill.json").read_text())["method"] == "repaint"
    assert "leave sampler= out" in fails("infill", "run=x", *given, "sampler=heun")
    assert "pass method=repaint" in fails("infill", "run=x", *given, "method=trained")


def test_it_starts_from_a_model_without(there):
    there("train-diffusion", *INFILL, "run=tuned", "init=runs/diffusion", "steps=1", "every=1", "optimizer.lr=1e-9")
    tuned, plain = load_diffusion("runs/tuned", "raw").net, load_diffusion("runs/diffusion").net
    shape = load_diffusion("runs/tuned").card["latent_shape"]
    x, t, y = torch.randn(2, *shape), torch.rand(2), torch.tensor([1, 10])
    condition = known_of(y, torch.randn_like(x), torch.ones(2, 1, 8, 8))
    torch.testing.assert_close(tuned(x, t, condition), plain(x, t, y), rtol=1e-3, atol=1e-4)


def test_its_students(there, tmp_path):
    there("train-diffusion", *INFILL, "run=flow")
    there("distill", "teacher=runs/flow", "steps=[2,1]", "guidance=2", f"train=['steps=2','every=2','{CPU[0]}']")
    there(
        "train-diffusion", *INFILL, "run=mean", "objective=meanflow", "init=runs/flow", "objective.student.guidance=2"
    )
    for model in ("runs/students/1", "runs/mean"):
        name = model.rpartition("/")[2]
        images = pictures(tmp_path / "photos", n=1)
        there("infill", f"run=by-{name}", f"model={model}", f"images={images}", "box=[0,0,32,8]", "draws=1")
    assert load_diffusion("runs/students/1").card["condition"]["_target_"].endswith("Infill")


@pytest.mark.slow
def test_two_ranks_are_one(there, tmp_path):
    options = [*INFILL, "schedule.decay=constant", "+optimizer.eps=1e-3"]
    there("train-diffusion", *options, "run=one")
    ranks("train-diffusion", *options, "batch_size=4", "run=ddp")
    assert_close_weights("runs/one", "runs/ddp", "diffusion", rtol=1e-4, atol=1e-5)
    images = pictures(tmp_path / "photos", n=3)
    drawn = ["infill", "model=runs/one", f"images={images}", "box=[0,0,32,8]", "draws=2", "batch_size=2"]
    there(*drawn, "run=alone")
    ranks(*drawn, "run=together")
    assert_same_pictures("runs/alone", "runs/together")


def test_what_does_not_fit_is_said_in_a_line(there, tmp_path):
    photos = pictures(tmp_path / "photos", n=1)
    given = ["run=x", f"images={photos}", "sampler.steps=2"]
    assert "say what is hidden: by mask=" in fails("infill", *given)
    assert "must be [top,left,height,width] inside 32 x 32 pixels" in fails("infill", *given, "box=[0,0,33,8]")
    assert "does not exist" in fails("infill", *given, "mask=nowhere.png")
    other = masks(tmp_path / "other", n=1, side=16)
    assert "has 16 x 16 pixels" in fails("infill", *given, f"mask={other}")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no 3/0.png" in fails("infill", *given, f"mask={empty}")
    Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save("black.png")
    assert "hides nothing" in fails("infill", *given, "mask=black.png")
    Path("text.png").write_text("no picture")
    assert "can't be decoded" in fails("infill", *given, "mask=text.png")
    assert "classes=cat" in fails("infill", *given, "box=[0,0,8,8]", "classes=cat")
    assert "lies in no class's folder" in fails(
        "infill", "run=x", f"images={photos}/3/0.png", "box=[0,0,8,8]", "classes=folders"
    )
    assert not Path("runs/x").exists()
    line = fails("train-diffusion", *INFILL, "run=y", "condition.boxes=0", "condition.brushes=0", "condition.halves=0",
                 "condition.whole=0")  # fmt: skip
    assert "nothing would be hidden" in line
