"""Checkpoints whose card or weights are not right: refused by file and key, and nothing in them is run."""

import copy
import os
import zipfile
from typing import Any

import pytest
import torch
from support.cards import autoencoder_card, diffusion_card
from support.refusals import assert_refused

from ldm.card import BUILT_BY_ANYONE
from ldm.checkpoint import load_autoencoder, load_diffusion, newest, saved
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.targets import build

KINDS = ("autoencoder", "diffusion")
CARDS: dict[str, Any] = {"autoencoder": autoencoder_card, "diffusion": diffusion_card}
LOAD = {"autoencoder": load_autoencoder, "diffusion": load_diffusion}
NEVER = object()


@pytest.fixture(scope="module")
def right():
    """What a right checkpoint of each kind holds."""
    torch.manual_seed(0)
    model = Autoencoder(**autoencoder_card()["autoencoder"])
    net = build(diffusion_card()["net"], BUILT_BY_ANYONE)
    return {
        "autoencoder": {
            "ldm": autoencoder_card(),
            "state_dict": {f"autoencoder.{name}": value for name, value in model.state_dict().items()},
        },
        "diffusion": {
            "ldm": diffusion_card(),
            "state_dict": {f"net.{name}": value for name, value in net.state_dict().items()},
        },
    }


def refused(kind, checkpoint, said, folder, monkeypatch, file="a.ckpt"):
    monkeypatch.chdir(folder)
    torch.save(checkpoint, folder / file)
    assert_refused(lambda: LOAD[kind](file), said, folder, file)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_loads(kind, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(right[kind], "00000000.ckpt")  # of the current folder, and of no run
    assert LOAD[kind]("00000000.ckpt").fingerprint


WRONG = {
    "null": None,
    "text": "x",
    "list": [[]],
    "number": -0.5,
    "tuple": (1, 2),
    "NaN": float("nan"),
    "missing": NEVER,
}
MAY = {  # what a key may lack or be
    "autoencoder": {"preprocessing": {"null", "missing"}, "config": {"missing"}, "rollbacks": {"missing"}},
    "diffusion": {
        "preprocessing": {"null", "missing"},
        "config": {"missing"},
        "rollbacks": {"missing"},
        "sampling": {"missing"},
        "trust": {"missing"},
        "autoencoder_path": {"text"},
    },
}
KEYS = [
    pytest.param(kind, key, value, id=f"{kind}-{key}-{name}")
    for kind in KINDS
    for key in CARDS[kind]()
    for name, value in WRONG.items()
    if name not in MAY[kind].get(key, set())
]


@pytest.mark.parametrize(("kind", "key", "value"), KEYS)
def test_each_key_of_a_card_is_held_to_its_type(kind, key, value, right, tmp_path, monkeypatch):
    checkpoint = copy.copy(right[kind])
    checkpoint["ldm"] = {name: v for name, v in checkpoint["ldm"].items() if (name, value) != (key, NEVER)}
    if value is not NEVER:
        checkpoint["ldm"][key] = value
    said = "its card holds" if isinstance(value, tuple) or value != value else "of its card, "
    refused(kind, checkpoint, said, tmp_path, monkeypatch)


UNET = diffusion_card()["net"]
PWNED = {"_target_": "os.system", "command": "touch pwned"}
DEEPER = [
    ("autoencoder", {"autoencoder": {"channels": "8"}}, "autoencoder.channels=8 must be a whole number"),
    ("autoencoder", {"autoencoder": {"channels": -8}}, "autoencoder.channels=-8 must be at least 1"),
    ("autoencoder", {"autoencoder": {"channel_mult": []}}, "autoencoder.channel_mult"),
    ("autoencoder", {"autoencoder": {"nothing": 1}}, "autoencoder.nothing is no option of Autoencoder"),
    ("autoencoder", {"autoencoder": {"num_res_blocks": 10**6}}, "autoencoder.num_res_blocks=1000000 must be at most"),
    ("autoencoder", {"batches_seen": -1}, "batches_seen is -1, not at least 0"),
    ("autoencoder", {"unheard_of": 1}, "unheard_of is no key of this format"),
    ("diffusion", {"kind": "gan"}, "kind"),
    ("diffusion", {"latent_shape": [4, 100000, 100000]}, "latent_shape [4, 100000, 100000] is larger than any latent"),
    ("diffusion", {"latent_shape": [2, 4]}, "latent_shape is [2, 4], not at least 3 values"),
    ("diffusion", {"latent_shape": [2, 4, 0]}, "latent_shape[2] is 0, not at least 1"),
    ("diffusion", {"stats": {"mean": [0.0, 0.0], "std": [0.0, 1.0]}}, "stats.std[0] is 0.0, not more than 0"),
    ("diffusion", {"stats": {"mean": [0.0], "std": [1.0]}}, "stats.mean is of 1 channels, a latent has 2"),
    (
        "diffusion",
        {"stats": {"mean": [0.0, 0.0], "std": [1.0, 1.0], "whitening": [[1.0]]}},
        "stats.whitening is of 1 channels, a latent has 2",
    ),
    ("diffusion", {"stats": {"mean": [0.0, float("nan")], "std": [1.0, 1.0]}}, "its card holds the number nan"),
    ("diffusion", {"class_names": ["cat", "cat"]}, "class_names is"),
    ("diffusion", {"class_names": ["cat"]}, "net.num_classes is 2, and the card is of 1"),
    ("diffusion", {"label_dropout": 2.0}, "label_dropout is 2.0, not at most 1"),
    ("diffusion", {"autoencoder": "f00d"}, "autoencoder is f00d, not 16 hexadecimal digits"),
    ("diffusion", {"net": {}}, "where a network belongs"),
    ("diffusion", {"net": UNET | {"model_channels": "8"}}, "net.model_channels=8 must be a whole number"),
    ("diffusion", {"net": UNET | {"num_res_blocks": 10**6}}, "net.num_res_blocks=1000000 must be at most"),
    ("diffusion", {"net": UNET | {"nothing": 8}}, "net.nothing is no option of UNet"),
    ("diffusion", {"net": UNET | {"in_channels": 3}}, "net.in_channels is 3, and the card is of 2"),
    ("diffusion", {"net": {"_target_": "ldm.diffusion.path.LinearPath"}}, "LinearPath"),
    ("diffusion", {"net": {"_target_": "ldm.models.unet.Nothing"}}, "ldm.models.unet.Nothing can't be imported"),
    ("diffusion", {"net": {"_target_": 7}}, "refusing to build 7"),
    ("diffusion", {"net": {"_target_": "ldm.runtime.stop._slurm"}}, "refusing to build ldm.runtime.stop._slurm"),
    ("diffusion", {"net": PWNED}, "refusing to build os.system"),
    ("diffusion", {"objective": {"path": PWNED}}, "refusing to build os.system"),
    (
        "diffusion",
        {"objective": {"path": {"_target_": "ldm.models.unet.UNet"}}},
        "objective.path.in_channels is missing",
    ),
    ("diffusion", {"objective": {"path": {}, "parameterization": "v"}}, "path"),
    ("diffusion", {"objective": {"nothing": 1}}, "objective"),
    ("diffusion", {"objective": {"parameterization": "velocity"}}, "objective.path is missing"),
    ("diffusion", {"objective": {"x": [[PWNED]]}}, "refusing to build os.system"),
    (
        "diffusion",
        {"objective": {"x": ({"_target_": "os.system", "_args_": ["touch pwned"]},)}},
        "its card holds a tuple",
    ),
    ("diffusion", {"config": {"deep": {"er": PWNED}, "steps": ({},)}}, "its card holds a tuple"),
    ("diffusion", {"net": UNET | {"x": "${oc.create:{_target_:os.system}}"}}, "net.x is no option of UNet"),
    ("diffusion", {"net": UNET | {"_target_": "${oc.env:HOME}"}}, "refusing to build ${oc.env:HOME}"),
    ("diffusion", {"net": UNET | {7: 8}}, "its card holds the key 7"),
    ("diffusion", {"config": {"x": torch.zeros(1)}}, "its card holds a Tensor"),
    ("diffusion", {"sampling": {"function": PWNED}}, "refusing to build os.system"),
    ("diffusion", {"sampling": {"steps": -1}}, "steps"),
    ("diffusion", {"sampling": {"nothing": 1}}, "nothing"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), DEEPER, ids=range(len(DEEPER)))
def test_what_a_card_says_must_agree_and_name_nothing_else(kind, changes, said, right, tmp_path, monkeypatch):
    card = right[kind]["ldm"] | changes
    if kind == "autoencoder" and "autoencoder" in changes:
        card["autoencoder"] = right[kind]["ldm"]["autoencoder"] | changes["autoencoder"]
    refused(kind, right[kind] | {"ldm": card}, said, tmp_path, monkeypatch)
    assert not (tmp_path / "pwned").exists()


def test_data_nested_without_end_is_refused(right, tmp_path, monkeypatch):
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep]
    checkpoint = right["diffusion"] | {"ldm": right["diffusion"]["ldm"] | {"config": {"x": deep}}}
    refused("diffusion", checkpoint, "its card holds data nested 40 deep", tmp_path, monkeypatch)


def nan(value):
    value = value.clone()
    value.view(-1)[0] = float("nan")
    return value


WEIGHTS = {
    "nan": (nan, "is not finite: training went wrong"),
    "inf": (lambda w: w * float("inf"), "is not finite"),
    "half": (lambda w: w.half(), "is of torch.float16, not torch.float32"),
    "whole": (lambda w: w.int(), "is of torch.int32, not torch.float32"),
    "complex": (lambda w: w.to(torch.complex64), "is of torch.complex64, not torch.float32"),
    "shape": (lambda w: w[:1], "has the shape"),
    "scalar": (lambda w: w.sum(), "has the shape []"),
    "number": (lambda w: 1.0, "has the shape []"),
    "null": (lambda w: None, "has the shape []"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", WEIGHTS)
def test_weights_are_looked_at(kind, damage, right, tmp_path, monkeypatch):
    state, (change, said) = dict(right[kind]["state_dict"]), WEIGHTS[damage]
    name = next(name for name, value in state.items() if value.ndim == 4 and len(value) > 1)
    state[name] = change(state[name])
    refused(kind, right[kind] | {"state_dict": state}, said, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "more", "empty", "list", "none"])
def test_weights_are_all_there_and_no_more(kind, damage, right, tmp_path, monkeypatch):
    state: Any = dict(right[kind]["state_dict"])
    name = min(state)
    said = "does not fit the model that its own card describes: "
    if damage == "missing":
        del state[name]
        said += "1 weights are missing"
    elif damage == "more":
        state[f"{name}2"] = state[name]
        said += "1 weights are too many"
    elif damage == "empty":
        state, said = {}, "weights are missing"
    else:
        state, said = {"list": [1], "none": None}[damage], "holds no weights (state_dict)"
    refused(kind, right[kind] | {"state_dict": state}, said, tmp_path, monkeypatch)


@pytest.mark.parametrize("held", [None, 7, [1], {}, {"state_dict": {}}, "text"], ids=str)
def test_files_of_other_things_are_refused(held, tmp_path, monkeypatch):
    refused("diffusion", held, "was not written by ldm", tmp_path, monkeypatch)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_ends_early_is_damaged(share, right, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(right["diffusion"], path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(lambda: load_diffusion(path), "is damaged or no checkpoint", tmp_path, "a.ckpt")


def test_a_compressed_file_which_could_be_any_size_once_unpacked_is_refused(right, tmp_path):
    torch.save(right["diffusion"], tmp_path / "b.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "b.ckpt") as old,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_refused(lambda: load_diffusion(tmp_path / "a.ckpt"), "it is compressed", tmp_path, "a.ckpt")


def test_a_pipe_named_as_a_checkpoint_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.ckpt")
    assert_refused(lambda: load_diffusion(tmp_path / "a.ckpt"), "is no regular file", tmp_path, "a.ckpt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["sparse", "expanded"])
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_weights_values_are_all_in_the_file(kind, damage, right, tmp_path, monkeypatch):
    """A number that stands for all of them could be any size once it is loaded."""
    state = dict(right[kind]["state_dict"])
    name = next(name for name, value in state.items() if value.ndim == 4 and len(value) > 1)
    weight = state[name]
    state[name] = weight.to_sparse() if damage == "sparse" else torch.zeros(1).expand(weight.shape)
    refused(kind, right[kind] | {"state_dict": state}, "does not hold all of its values", tmp_path, monkeypatch)


def test_a_whole_number_written_as_a_fraction_is_one(right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = copy.deepcopy(right["diffusion"]["ldm"])
    card["net"]["model_channels"] = float(card["net"]["model_channels"])
    torch.save(right["diffusion"] | {"ldm": card}, "a.ckpt")
    assert load_diffusion("a.ckpt").fingerprint == load_diffusion_of(right, tmp_path)


def load_diffusion_of(right, folder):
    torch.save(right["diffusion"], folder / "b.ckpt")
    return load_diffusion(folder / "b.ckpt").fingerprint


def test_a_copy_beside_a_runs_checkpoints_is_none_of_them(right, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("00000002.ckpt", "00000010.ckpt", "best.ckpt"):
        torch.save(right["diffusion"], folder / name)
    assert [file.name for file in saved(tmp_path)] == ["00000002.ckpt", "00000010.ckpt"]
    assert newest(tmp_path) == folder / "00000010.ckpt"
