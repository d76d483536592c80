"""Signals and kills: whatever happens and whenever, the run goes on as if it had not."""

import json
import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from support.captioned import FOLDER, captioned
from support.interruptions import hook, killed_often, note_batches
from support.processes import start, succeeds
from support.runs import assert_same_training, learned
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, run_command

from ldm import checkpoint as checkpoints
from ldm.data.cache_reader import LatentCache
from ldm.runtime import stop
from ldm.runtime.files import sha256
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.saves import AtomicCheckpointIO

OPTIONS = [*TINY_DIFFUSION, *CPU, "steps=6", "every=3", "net.dropout=0.3", "trainer.limit_val_batches=2"]


@pytest.fixture(scope="module")
def whole(pipeline):
    """A run of OPTIONS that nothing has stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pipeline)
        run_command("train-diffusion", "run=never-stopped", *OPTIONS)
    return pipeline / "runs/never-stopped"


def stopped_at(monkeypatch, where, signum=signal.SIGUSR1):
    """A signal in batch 2 of 3, in the last one of a stretch, in a validation, or twice, once in a save."""

    def ask():
        os.kill(os.getpid(), signum)

    batch = {"within": 1, "last": 2, "save": 1}.get(where)
    if where in ("validation", "last validation"):
        at = 3 if where == "validation" else 6
        hook(monkeypatch, DiffusionModule, "validation_step", lambda m: m.batches_seen == at, ask)
    else:
        hook(monkeypatch, DiffusionModule, "training_step", lambda m: m.batches_seen == batch, ask)
    if where == "save":
        hook(monkeypatch, AtomicCheckpointIO, "save_checkpoint", lambda _: True, ask)


@pytest.mark.parametrize(
    ("where", "saved_at", "signum"),
    [
        ("within", 2, signal.SIGUSR1),
        pytest.param("last", 3, signal.SIGUSR1, marks=pytest.mark.slow),
        ("validation", 3, signal.SIGUSR1),
        pytest.param("last validation", 6, signal.SIGUSR1, marks=pytest.mark.slow),
        ("save", 2, signal.SIGUSR1),
        ("save", 2, signal.SIGINT),  # twice within a moment: torchrun passes on what the terminal has sent, too
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    ldm, pipeline, whole, monkeypatch, capsys, where, saved_at, signum
):
    options = [*OPTIONS, f"latents={pipeline}/runs/latents"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as info:
        stopped_at(patch, where, signum)
        handler = signal.getsignal(signum)
        patch.setattr(stop, "SAME_PRESS", math.inf)
        ldm("train-diffusion", "run=parts", *options)
    assert info.value.code == 128 + signum
    said = f"ldm: stopped by {signum.name}: saved after batch {saved_at}; the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert checkpoints.newest(Path("runs/parts")).stem == f"{saved_at:08d}"
    assert signal.getsignal(signum) is handler  # given back
    ldm("train-diffusion", "run=parts", *options)
    assert_same_training("runs/parts", whole, "diffusion")
    assert sorted(p.name for p in Path("runs/parts/checkpoints").iterdir()) == ["00000003.ckpt", "00000006.ckpt"]
    assert learned("runs/parts") == learned(whole)


def test_a_second_press_of_ctrl_c_ends_at_once_and_harms_nothing(ldm, pipeline, monkeypatch, capsys):
    options = [*OPTIONS, f"latents={pipeline}/runs/latents"]

    def press_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as info:
        hook(patch, DiffusionModule, "training_step", lambda m: m.batches_seen == 4, press_twice)
        patch.setattr(stop, "SAME_PRESS", -1.0)
        ldm("train-diffusion", "run=parts", *options)
    assert info.value.code == 128 + signal.SIGINT
    said = "ldm: interrupted; the same command goes on from the last checkpoint"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert checkpoints.read(checkpoints.newest(Path("runs/parts")), "diffusion")["ldm"]["batches_seen"] == 3


def test_ctrl_c_before_there_is_anything_to_save_ends_at_once(ldm, pipeline, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentCache, "__init__", interrupted)
    with pytest.raises(SystemExit) as info:
        ldm("train-diffusion", *OPTIONS, f"latents={pipeline}/runs/latents")
    assert info.value.code == 128 + signal.SIGINT
    assert "ldm: interrupted" in capsys.readouterr().err


def lines(file):
    return file.read_text().splitlines() if file.exists() else []


def latents_for(options, pipeline, tmp_path):
    """The pipeline's cache, or one with captions where text is to be learned."""
    if "condition=text" not in options:
        return pipeline / "runs/latents"
    captioned(tmp_path / "photos")
    succeeds(start(tmp_path, "cache-latents", ["run=said", *FOLDER, f"autoencoder={pipeline}/runs/autoencoder"]))
    return tmp_path / "runs/said"


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(25, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        (
            "train-autoencoder",
            "autoencoder",
            [*TINY_AUTOENCODER, "disc_schedule.decay=constant"],
        ),
        ("train-diffusion", "diffusion", [*TINY_DIFFUSION, "net.dropout=0.3"]),
        ("train-diffusion", "diffusion", [*TINY_DIFFUSION, "condition=infill"]),
        ("train-diffusion", "diffusion", [*TINY_DIFFUSION, "condition=text", "condition.width=24", "batch_size=4"]),
    ],
    ids=["autoencoder", "labels", "infill", "text"],
)
def test_sigkill_at_random_moments(tmp_path, monkeypatch, pipeline, name, kind, options, kills):
    options = [*options, *CPU, "every=10", "schedule.decay=constant"]
    options += [f"latents={latents_for(options, pipeline, tmp_path)}"] if kind == "diffusion" else []
    killed, whole, steps = tmp_path / "killed.txt", tmp_path / "whole.txt", 10 * kills

    def begin():
        return start(tmp_path, name, [*options, f"steps={steps}", "run=killed"], first=partial(note_batches, killed))

    def again():
        nonlocal steps
        steps += 10 * kills

    for _ in killed_often(begin, lambda: len(lines(killed)), again, kills, most=15):
        for file in (tmp_path / "runs/killed/checkpoints").glob("*.ckpt"):
            checkpoints.read(file, kind)
    succeeds(start(tmp_path, name, [*options, f"steps={steps}", "run=whole"], first=partial(note_batches, whole)))
    monkeypatch.chdir(tmp_path)
    assert_same_training("runs/killed", "runs/whole", kind)
    order = set(lines(whole))
    assert len(order) == steps
    assert set(lines(killed)) == order
    assert not list(Path("runs/killed/checkpoints").glob(".*"))  # nothing of an unfinished write is left


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.long)])
def test_the_cache_survives_kills(tmp_path, pipeline, kills):
    options = [f"autoencoder={pipeline}/runs/autoencoder", "shard_size=20", "batch_size=10"]
    folder = tmp_path / "runs/killed"

    def cards():
        return list(folder.glob("*-*.json"))

    begin = partial(start, tmp_path, "cache-latents", [*options, "run=killed"])
    for _ in killed_often(begin, lambda: len(cards()), lambda: shutil.rmtree(folder), kills, most=8):
        assert not (folder / "manifest.json").exists()
        for card in cards():
            assert json.loads(card.read_text())["sha256"] == sha256(card.with_suffix(".tar"))
    succeeds(start(tmp_path, "cache-latents", [*options, "run=whole"]))
    assert (folder / "manifest.json").read_text() == (tmp_path / "runs/whole/manifest.json").read_text()
    assert not list(folder.glob(".*"))
