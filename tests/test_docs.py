"""What a stranger reads is true: lines compose, files and keys exist, examples run, README keeps its measure."""

import copy
import json
import re
import runpy
import shutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import matplotlib
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support.config import CONF
from support.documents import (
    CURRENT,
    DOCUMENTS,
    OF_THIS_PROJECT,
    ROOT,
    anchors,
    blocks,
    commands_of,
    points,
    shell_lines,
    spans,
)

from ldm import __version__
from ldm.commands.cli import COMMANDS

README, GUIDE = ROOT / "README.md", ROOT / "docs/guide.md"
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
named = pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.name)


def options(group):
    return {path.stem for path in (CONF / group).glob("*.yaml")}


@pytest.fixture
def composed(monkeypatch):
    """`composed("train-diffusion", "net=small", "steps=5")`; Hydra composes once for each choice of groups."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        once = cache(lambda primary, *choices: compose(primary, [*choices]))

        def composing(command, *overrides):
            running = {"job": {"config_name": command.replace("-", "_")}, "runtime": {"output_dir": "runs/run"}}
            monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": running}))  # for ${hydra:...}
            given = OverridesParser.create().parse_overrides([*overrides])
            choices = sorted(one.input_line for one in given if one.key_or_group in GROUPS)
            config = copy.deepcopy(once(command.replace("-", "_"), *choices))
            for one in given:
                if one.key_or_group not in GROUPS and not one.key_or_group.startswith("hydra."):
                    OmegaConf.update(config, one.key_or_group, one.value(), force_add=one.is_add())
            return config

        yield composing


def options_of(command):
    """The type of a command's options."""
    return get_type_hints(import_module(f"ldm.commands.{command.replace('-', '_')}").main)["options"]


def names(node, prefix=""):
    """Every key of a nested dict, with dots; of an empty node, too."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{key}.")


@cache
def all_keys():
    """Every key that some file of conf/ knows, with dots: those of a group's file below its package."""
    keys = set()
    for path in CONF.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        package = re.match(r"# @package (\w+)", path.read_text())
        below = "_global_" if path.parent == CONF else package[1] if package else path.parent.name
        keys |= set(names(content if below == "_global_" else {below: content}))
    return keys - {"defaults"}


# README


def test_readme_keeps_its_measure():
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 110] == []


def test_readme_s_tree_is_the_tree():
    (tree,) = [block for language, block in blocks(README.read_text()) if "ldm/__init__.py  " in block]
    listed = [line.split()[0] for line in tree.splitlines()]
    assert [name for name in listed if not (ROOT / name).exists()] == []
    rooms = {f"ldm/{path.name}/" for path in (ROOT / "ldm").iterdir() if (path / "__init__.py").exists()}
    files = {f"ldm/{path.name}" for path in (ROOT / "ldm").glob("*.py")} - {"ldm/__main__.py"}
    assert rooms | files <= set(listed)


def copy_of(pipeline, folder, class_names):
    """The tiny pipeline as runs/flow, runs/ae and the autoencoder beside its cache, its classes renamed."""
    shutil.copytree(pipeline / "runs/autoencoder", folder / "runs/ae")
    shutil.copytree(pipeline / "runs/diffusion", folder / "runs/flow")
    (folder / "runs/latents").mkdir()
    shutil.copy(pipeline / "runs/latents/autoencoder.ckpt", folder / "runs/latents")
    for file in (folder / "runs/flow/checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["ldm"]["class_names"] = class_names
        torch.save(checkpoint, file)


def test_readme_s_python_runs(pipeline, tmp_path, monkeypatch):
    (code,) = [block for language, block in blocks(README.read_text()) if language == "python"]
    copy_of(pipeline, tmp_path, ["bird", "cat", "deer", "dog", "fox", "frog", "hen", "horse", "ship", "truck"])
    monkeypatch.chdir(tmp_path)
    assert 'device="cuda"' in code
    names = {}
    exec(code if torch.cuda.is_available() else code.replace('"cuda"', '"cpu"'), names)  # noqa: S102
    assert (names["images"].shape, names["images"].dtype) == ((8, 3, 32, 32), torch.uint8)
    assert names["z"].shape == (8, 4, 8, 8)
    assert names["x_hat"].shape == (8, 3, 32, 32)
    alone = names["ae"].decode(names["ae"].encode(names["images"]))
    assert (alone.int() - names["x_hat"].int()).abs().max() <= 1


def test_the_guide_s_python_runs(pipeline, tmp_path, monkeypatch):
    (code,) = [block for language, block in blocks(GUIDE.read_text()) if language == "python"]
    monkeypatch.chdir(pipeline)
    names = {}
    exec(code, names)  # noqa: S102
    assert names["images_hat"].shape == (8, 3, 32, 32)
    assert torch.allclose(names["model"].stats.normalize(names["z"]), names["latents"], atol=1e-4)


# all documents


def test_command_lines_are_accepted(composed):
    """Those of the documents, of each command's --help, and of the heads of conf/ and jobs/: keys, choices, ranges."""
    heads = [*CONF.glob("*.yaml"), *CONF.glob("[a-z]*/*.yaml"), *ROOT.glob("jobs/*.sbatch"), ROOT / "jobs/pipeline.sh"]
    done, wrong = set(), []
    for where, command, overrides in [line for path in [*OF_THIS_PROJECT, *heads] for line in commands_of(path)]:
        for point in points(overrides):
            key = (command, *sorted(point))
            if key not in done:
                try:
                    options_of(command).parse(composed(command, *point))
                except Exception as error:
                    wrong.append(f"{where}: {error}")
            done.add(key)
    assert not wrong, "\n".join(wrong)
    assert {command for command, *_ in done} == set(COMMANDS)
    assert len(done) > 60


@pytest.mark.parametrize("path", OF_THIS_PROJECT, ids=lambda path: path.name)
def test_keys_and_choices_exist(path):
    keys, top = all_keys(), {key.split(".")[0] for key in all_keys()}
    wrong = []
    for span in spans(path.read_text()):
        assigned = re.fullmatch(r"[+~]?([a-z][\w.]*)=(\S*)", span)
        if assigned and not assigned[1].startswith("hydra."):
            name, value = assigned.groups()
            if name in GROUPS:
                choices = re.findall(r"\w+", value)
                wrong += [span for choice in choices if choice not in options(name) | {"null"} and choice.islower()]
            elif name not in keys | {"key", "group"} and not span.startswith("+trainer."):  # Lightning's own options
                wrong.append(span)
        elif re.fullmatch(r"[a-z]\w*(\.\w+)+", span) and span.split(".")[0] in top and span not in keys:
            wrong += [span] if span.rpartition(".")[2] not in ("py", "yaml", "png", "json") else []
    assert wrong == []


@named
def test_files_exist(path):
    text, wrong = path.read_text(), []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / file) if file else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            wrong.append(target)
    for span in spans(text):
        inside = re.fullmatch(r"((?:ldm|conf|jobs|docs|tests)/[\w./*-]*)", span)
        if inside and not re.search(r"[A-Z]{3}", span) and not list(ROOT.glob(span.rstrip("/"))):
            wrong.append(span)
    for line in shell_lines(text):
        script = re.search(r"\bpython ((?:jobs|docs)/\S+)", line)
        wrong += [line] if script and not (ROOT / script[1]).exists() else []
        target = re.match(r"make ([a-z-]+)", line)
        wrong += [line] if target and f"\n{target[1]}: " not in (ROOT / "Makefile").read_text() else []
    for target in re.findall(r"`make ([a-z-]+)", text):
        wrong += [target] if f"\n{target}: " not in (ROOT / "Makefile").read_text() else []
    assert wrong == []


def test_pictures_are_shown():
    shown = {
        Path(target).name for path in DOCUMENTS for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text())
    }
    assert {path.name for path in (ROOT / "docs").glob("*.png")} == shown


@pytest.mark.parametrize(
    "group", ["objective", "sampler", "grid", "net", "ae", "loss", "regularizer", "sweep", "debug"]
)
def test_the_guide_names_every_choice(group):
    text = GUIDE.read_text()
    assert {name for name in options(group) if not re.search(rf"\b{name}\b", text)} == set()


def test_the_guide_has_every_command():
    listed = re.findall(r"^\| `([a-z-]+)` \|", GUIDE.read_text(), re.MULTILINE)
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


def test_the_annotated_config_is_the_config(composed):
    (annotated,) = [block for language, block in blocks(GUIDE.read_text()) if language == "yaml"]
    lines = [line for line in annotated.splitlines() if ":" in line]
    assert [line for line in lines if "#" not in line and not line.rstrip().endswith(":")] == []
    wanted = OmegaConf.to_container(composed("train-diffusion"))
    assert yaml.safe_load(annotated) == json.loads(json.dumps(wanted))


def test_the_changes_end_with_this_version():
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == __version__


# examples


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    run = runpy.run_path(str(ROOT / "docs/examples/run_notebook.py"))["run"]
    notebook = json.loads((ROOT / "docs/examples/paths_2d.ipynb").read_text())
    before = torch.get_default_dtype()
    try:
        names = run(notebook)
    finally:
        torch.set_default_dtype(before)
    pictures = [o for cell in notebook["cells"] for o in cell.get("outputs", []) if o["output_type"] == "display_data"]
    assert len(pictures) == 5
    assert 3.5 < names["order"] < 4.5  # of the last one, rk4
    assert list(tmp_path.iterdir()) == []


def test_load_and_sample_runs(pipeline, tmp_path, monkeypatch):
    copy_of(pipeline, tmp_path, [str(i) for i in range(10)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs/examples/load_and_sample.py"))["main"](Path("runs/flow"), Path("out.png"))
    assert Path("out.png").exists()
