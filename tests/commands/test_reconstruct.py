"""`ldm reconstruct`: pairs of pictures; and what `ldm sample` writes beside its samples.npz."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.config import parsed
from support.refusals import contents
from support.tiny import fails, inside

from ldm.checkpoint import load_autoencoder
from ldm.commands.reconstruct import preparation
from ldm.commands.sample_files import folder_names
from ldm.data.picture_files import Pictures
from ldm.generate.loading import load_model


@pytest.fixture
def photos(ldm, pipeline):
    inside(pipeline, ldm)
    folder = Path("photos")
    if not folder.exists():
        (folder / "a").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name, size in (("a/one.png", (40, 64)), ("a/two.jpg", (64, 64))):
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_a_pair_is_the_picture_and_what_the_autoencoder_makes_of_it(ldm, photos):
    ldm("reconstruct", "run=pairs", f"images={photos}")
    found = json.loads(Path("runs/pairs/reconstructions.json").read_text())
    assert found["psnr"].keys() == {"a/one.png", "a/two.jpg"}
    model = load_model("runs/autoencoder", device="cpu", weights="ema", autoencoder=None, trust=())
    for name, file in (("a/one.png", "a/one.png"), ("a/two.jpg", "a/two.jpg.png")):
        pair = np.asarray(Image.open(f"runs/pairs/pairs/{file}"))
        image, image_hat = pair[:, :32], pair[:, 32:]
        decoded = model.decode(model.encode(torch.from_numpy(image.copy()).permute(2, 0, 1)[None]))
        assert np.abs(decoded[0].permute(1, 2, 0).numpy().astype(int) - image_hat).max() <= 1
        error = np.mean((image.astype(float) - image_hat) ** 2)
        assert found["psnr"][name] == pytest.approx(10 * np.log10(255**2 / error), abs=0.02)
    assert found["mean_psnr"] == pytest.approx(np.mean(list(found["psnr"].values())))


def test_pictures_are_prepared_as_in_the_autoencoders_training(photos):
    """One that was trained on crops out of larger pictures sees such crops, unless another side is asked for."""
    file = max(Path("runs/autoencoder/checkpoints").glob("[0-9]*.ckpt"))
    loaded = load_autoencoder(file)
    trained = loaded.card | {"preprocessing": loaded.card["preprocessing"] | {"resize": 40}}
    for words, sides in (([], (32, 40)), (["resolution=32"], (32, None))):
        options = parsed("reconstruct", "run=x", f"images={photos}", *words)
        assert preparation(options, replace(loaded, card=trained)) == sides
    _, view = Pictures(str(photos), 32, 40)[0]
    whole = Pictures(str(photos), 40)[0][1]  # 40 x 64 pixels, of which the short side stays
    assert torch.equal(view, whole[:, 4:36, 4:36])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images=nowhere"], "images=nowhere does not exist"),
        (["images=photos/text.txt"], "images=photos/text.txt can't be decoded (it is no jpg, png or webp)"),
        (["images=photos", "resolution=33"], "resolution=33 must be a multiple of 4"),
        (["images=photos", "autoencoder=runs/diffusion"], "but an autoencoder (stage 1) is wanted here"),
        (["images=photos", "resolution=1000000000000"], "batch_size=16"),
    ],
)
def test_mistakes_leave_nothing(words, said, ldm, photos):
    (photos / "text.txt").write_text("no picture")
    before = contents(Path("runs"))
    line = fails("reconstruct", "run=wrong", *words)
    assert said in line
    assert contents(Path("runs")) == before


def test_samples_as_files_are_those_of_the_npz(ldm, pipeline):
    inside(pipeline, ldm)
    words = ["run=files", "sampler=euler", "sampler.steps=1", "classes=['3',7]"]
    ldm("sample", *words, "num=5", "files=true", "interpolation=3")
    arrays = np.load("runs/files/samples.npz")
    for i, (image, label) in enumerate(zip(arrays["arr_0"], arrays["arr_1"], strict=True)):
        assert np.array_equal(np.asarray(Image.open(f"runs/files/images/{label}/{i:06d}.png")), image)
    assert sorted(str(p.relative_to("runs/files/images")) for p in Path("runs/files/images").rglob("*.png")) == [
        "3/000000.png", "3/000002.png", "3/000004.png", "7/000001.png", "7/000003.png"
    ]  # fmt: skip
    assert Path("runs/files/interpolation.png").exists()
    ldm("sample", *words, "num=2", "files=true", "overwrite=true")
    assert len(list(Path("runs/files/images").rglob("*.png"))) == 2
    assert "interpolation=1 has no way between its ends" in fails("sample", "run=x", "interpolation=1")


def test_classes_have_folders_of_their_own_whatever_they_are_called():
    names = ["cat", "Cat", "a/b", "..", "", "x" * 300, "naïve 猫", "cat."]
    folders = folder_names(names)
    assert len({name.lower() for name in folders}) == len(names)
    assert all("/" not in name and name.strip(".") for name in folders)
    assert folders[6] == "naïve 猫"
