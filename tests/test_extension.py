"""docs/extending.md, run as it stands: a package outside the checkout, from its images to its samples."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails

from ldm.checkpoint import load_diffusion
from ldm.commands import cli

PAGE = Path(__file__).parents[1] / "docs/extending.md"
SMALLER = {  # in each command, so that it takes seconds
    "train-autoencoder": [*TINY_AUTOENCODER, *CPU, "steps=2", "data.images=40"],
    "cache-latents": ["data.images=40"],
    "train-diffusion": [*(o for o in TINY_DIFFUSION if not o.startswith("net.")), *CPU, "steps=2", "net.width=8"],
    "sample": ["num=4", "sampler.steps=3"],
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
    assert [command[:2] for command in package] == [["ldm", name] for name in SMALLER]
    for _, name, *words in package:
        untrusted = [word for word in words if not word.startswith("trust=")]
        if untrusted != words:
            line = fails(name, *untrusted, *SMALLER[name])
            assert "my_pkg.nets.Residual" in line
            assert "trust=[my_pkg]" in line
            assert not Path("runs/samples").exists()
        ldm(name, *words, *SMALLER[name])
    samples = np.load("runs/samples/samples.npz")
    assert samples["arr_0"].shape == (4, 32, 32, 3)
    assert samples["arr_1"].tolist() == [0, 1, 0, 1]
    model = load_diffusion("runs/mine", trust="my_pkg")
    assert (type(model.net).__module__, type(model.objective.weighting).__name__) == ("my_pkg.nets", "PseudoHuber")
    assert model.card["trust"] == ["my_pkg"]
    assert model.card["class_names"] == ["red", "blue"]
    capsys.readouterr()
    monkeypatch.syspath_prepend(".")
    runpy.run_path("load.py")
    assert capsys.readouterr().out == "<class 'my_pkg.nets.Residual'> 2.0\n"
    _, name, *words = package[-1]
    monkeypatch.chdir("conf")  # where there is no such package
    sys.modules.pop("my_pkg.nets")
    sys.modules.pop("my_pkg")
    there = [
        word.replace("runs/mine", "../runs/mine") for word in words if "sampler" not in word and "grid" not in word
    ]
    assert "in the folder that the package lies in" in fails(name, *there[2:], *SMALLER[name])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("return self.last(h)", "return h", "net: Residual must return a tensor like x_t"),
        ("num_classes + 1, width", "num_classes, width", r"labels 0 and 2 \(null_class\)"),
        ("        self.null_class = num_classes\n", "", "Residual needs an attribute null_class"),
        ("num_classes: int, ", "", "my_pkg.nets.Residual: got an unexpected keyword argument 'num_classes'"),
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
    assert re.search(said.replace("labels 0 and 2", "labels 0 and 10"), line)
    assert not Path("runs/mine").exists()


def test_packages_are_found_in_the_current_folder_after_all_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    monkeypatch.setattr(sys, "argv", ["ldm", "--version"])
    cli.main()
    assert sys.path == ["/elsewhere", str(tmp_path)]
