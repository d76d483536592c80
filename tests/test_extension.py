"""docs/extending.md, run as it stands: a package outside the checkout, from its images to its samples."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cards import diffusion_card
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails

from ldm.checkpoint import load_diffusion
from ldm.commands import cli

PAGE = Path(__file__).parents[1] / "docs/extending.md"
SMALLER = {  # in each command, so that it takes seconds
    "train-autoencoder": [*TINY_AUTOENCODER, *CPU, "steps=2", "data.images=40"],
    "cache-latents": ["data.images=40"],
    "train-diffusion": [*(o for o in TINY_DIFFUSION if not o.startswith("net.")), *CPU, "steps=2", "net.width=8"],
    "sample": ["num=4"],
    "evaluate": ["data.images=40"],
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's files in a folder; its commands, as lists of words."""
    for block in blocks("python") + blocks("yaml"):
        name, text = block.split("\n", 1)
        file = tmp_path / name.removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "my_pkg/__init__.py").touch()
    yield [shlex.split(line) for line in blocks("sh")[0].splitlines()]
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
        del sys.modules[name]


def test_the_page_as_it_stands(ldm, package, capsys, monkeypatch):
    assert {name for _, name, *_ in package} == SMALLER.keys()
    for _, name, *words in package:
        if "trust=my_pkg" in words:
            line = fails(name, *(word for word in words if word != "trust=my_pkg"), *SMALLER[name])
            assert "my_pkg.nets.Residual" in line
            assert "trust=[my_pkg]" in line
        ldm(name, *words, *SMALLER[name])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("next:")] == [
        "next: ldm cache-latents --config-dir conf autoencoder=runs/autoencoder data=discs data.images=40",
        "next: ldm sample --config-dir conf model=runs/mine 'trust=[my_pkg]'",
    ]
    for run in ("samples", "fewer-steps"):
        samples = np.load(f"runs/{run}/samples.npz")
        assert samples["arr_0"].shape == (4, 32, 32, 3)
        assert samples["arr_1"].tolist() == [0, 1, 0, 1]
        stamp = json.loads(Path(f"runs/{run}/sample.json").read_text())
        assert stamp["sampler"]["function"]["_target_"] == "my_pkg.sampling.adams_bashforth"
        assert stamp["grid"]["_target_"] == "my_pkg.sampling.square_grid"
    redness = json.loads(Path("runs/metrics/metrics.json").read_text())["redness"]
    pixels = np.load("runs/samples/samples.npz")["arr_0"].astype(float)
    assert redness["value"] == pytest.approx(pixels[..., 0].sum() / pixels.sum())
    assert redness["of_held_out_images"] == pytest.approx(0.5, abs=0.2)  # of four discs, two of each colour
    model = load_diffusion("runs/mine", trust="my_pkg")
    assert (type(model.net).__module__, type(model.objective.weighting).__name__) == ("my_pkg.nets", "PseudoHuber")
    assert model.card["trust"] == ["my_pkg"]
    monkeypatch.syspath_prepend(".")
    runpy.run_path("load.py")
    assert capsys.readouterr().out == "[2, 3, 32, 32] Residual 1.5\n"


def test_a_model_is_not_loaded_where_its_package_is_not_found(ldm, tmp_path):
    torch.save({"ldm": diffusion_card(net={"_target_": "my_pkg.nets.Residual"}), "state_dict": {}}, "a.ckpt")
    line = fails("sample", "model=a.ckpt", "trust=my_pkg")
    assert "my_pkg.nets.Residual can't be imported (No module named 'my_pkg')" in line
    assert "in the folder that the package lies in" in line


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("return self.last(h)", "return h", "net: Residual must return a tensor like x_t"),
        ("num_classes + 1, width", "num_classes, width", r"condition.label 0 and 10 \(null_class\)"),
        ("        self.null_class = num_classes\n", "", "Residual needs an attribute null_class"),
        (
            "num_classes: int, ",
            "",
            r"Residual\.num_classes is no option of Residual, which has in_channels, width, depth",
        ),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused_before_anything_is_written(
    ldm, package, pipeline, before, after, said
):
    file = Path("my_pkg/nets.py")
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    _, name, *words = package[2]
    line = fails(name, *words, f"latents={pipeline}/runs/latents", *SMALLER[name])
    assert re.search(said, line)
    assert not Path("runs/mine").exists()


def test_packages_are_found_in_the_current_folder_after_all_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    monkeypatch.setattr(sys, "argv", ["ldm", "--version"])
    cli.main()
    assert sys.path == ["/elsewhere", str(tmp_path)]
