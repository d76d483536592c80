"""A run folder's defence: against a second command, a read-only disk, links, and files that no command wrote."""

import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support.refusals import assert_refused, contents
from support.tiny import CPU, TINY_DIFFUSION, fails, inside

from ldm.commands.refusal import Before
from ldm.commands.run_folder import RunLog, own_id, read_config
from ldm.runtime.files import CONFIG
from ldm.runtime.lock import held

CONFIGS = {
    "empty": ("", "it names no command"),
    "list": ("- command: sample\n", "it names no command"),
    "text": ("sample", "it names no command"),
    "number": ("7", "it names no command"),
    "no command": ("steps: 7\n", "it names no command"),
    "command of another type": ("command: [sample]\n", "it names no command"),
    "tag": ("command: sample\nx: !!python/object/apply:os.system ['touch pwned']\n", "it has references or tags"),
    "own tag": ("command: !x sample\n", "it has references or tags"),
    "cycle": ("command: sample\nx: &a [*a]\n", "it has references or tags"),
    "laughs": (
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [{9 * f'*{p}, '}]\n" for p, c in pairwise("abcdefghi")),
        "it has references or tags",
    ),
    "no yaml": ("{", "is damaged"),
    "binary": ("\0\1", "is damaged"),
    "deep": (3000 * "[", "is damaged"),
    "large": ("x: " + 5_000_000 * "y", "it is no file of a config's size"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_no_command_wrote_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, said = CONFIGS[kind]
    (tmp_path / CONFIG).write_text(text)
    assert_refused(lambda: read_config(tmp_path), said, tmp_path, CONFIG)
    assert not (tmp_path / "pwned").exists()


def test_a_config_is_read_without_resolving_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    (tmp_path / CONFIG).write_text("command: sample\nx: ${oc.env:SECRET}\n")
    assert read_config(tmp_path) == {"command": "sample", "x": "${oc.env:SECRET}"}


def test_a_config_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / CONFIG)
    assert_refused(lambda: read_config(tmp_path), "it is no file of a config's size", tmp_path)


@pytest.mark.parametrize("text", ["../../x", "a/b", "", "x\ny", 100 * "x", "\xff"])
def test_a_loggers_id_is_an_id(text, tmp_path):
    path = tmp_path / "wandb-id.txt"
    path.write_bytes(text.encode("latin-1"))
    assert_refused(lambda: own_id(path), "which is no run's id: remove it", tmp_path, "wandb-id.txt")


def test_a_second_command_in_the_same_folder_is_told_of_the_first(ldm, pipeline):
    ldm = inside(pipeline, ldm)
    ldm("sample", "model=runs/diffusion", "run=both", "num=2", "sampler.steps=2")
    before = contents(Path("runs/both"))
    with held(Path("runs/both"), "sample"):
        line = fails("sample", "model=runs/diffusion", "run=both", "num=2", "sampler.steps=2")
    assert f"runs/both is in use by ldm sample, process {os.getpid()} on" in line
    assert contents(Path("runs/both")) == before


@pytest.mark.parametrize("slot", ["", "slice-0-of-2"])
def test_a_refused_command_takes_nothing_from_the_one_that_came_first(slot, tmp_path):
    """Both started where there was no folder yet; the first has not written its config."""
    folder = tmp_path / "runs" / "both"
    before = Before.of(folder, of_sweep=False)
    folder.mkdir(parents=True)
    with held(folder, "cache-latents", slot):
        (folder / "train-000000.tar").write_text("x")
        here = contents(folder)
        before.restore()
        assert contents(folder) == here
    before.restore()
    assert not folder.exists()


def test_a_killed_commands_folder_goes_on(ldm, pipeline):
    """A training that is killed holds no lock for the next."""
    inside(pipeline, ldm)
    code = f"""
import os, signal, sys
sys.argv = ["ldm", "train-diffusion", "run=killed", *{[*TINY_DIFFUSION, *CPU]}]
from ldm.training.diffusion_module import DiffusionModule
DiffusionModule.training_step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from ldm.commands.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert Path("runs/killed/.lock").exists()
    Path("runs/killed/.samples.npz.abcdefgh.tmp").write_text("half")
    ldm("train-diffusion", "run=killed", *TINY_DIFFUSION, *CPU)
    assert not [path for path in Path("runs/killed").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["samples.npz", "grid.png", "sample.json", "config.yaml"])
def test_a_link_in_a_run_folder_is_not_written_through(name, ldm, pipeline, tmp_path):
    ldm = inside(pipeline, ldm)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    folder = Path(f"runs/links-{name}")
    folder.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    words = ["sample", "model=runs/diffusion", f"run={folder.name}", "num=2", "sampler.steps=2", "overwrite=true"]
    (folder / name).symlink_to(elsewhere)
    if name == "config.yaml":
        fails(*words)
    else:
        ldm(*words)
        assert not (folder / name).is_symlink()
    assert elsewhere.read_text() == "mine"


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "log.txt").symlink_to("elsewhere")
    handler = RunLog(str(tmp_path / "log.txt"))
    handler.emit(logging.makeLogRecord({"msg": "hello"}))
    assert_refused(handler.begin, "it is a link, which is not followed for writing: remove it", tmp_path, "log.txt")


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A file system that can't be written, and the current folder on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    (disk / "runs" / "there").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.chdir(disk)
    yield disk
    monkeypatch.undo()
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("run", ["new", "there"])
@pytest.mark.parametrize("command", ["sample", "train-diffusion", "cache-latents", "pack"])
def test_a_read_only_folder_is_named_in_one_line(command, run, ldm, pipeline, read_only):
    words = {
        "sample": [f"model={pipeline}/runs/diffusion", "num=2"],
        "train-diffusion": [f"latents={pipeline}/runs/latents", *TINY_DIFFUSION, *CPU],
        "cache-latents": [f"autoencoder={pipeline}/runs/autoencoder"],
        "pack": ["data=digits"],
    }[command]
    line = fails(command, f"run={run}", *words)
    assert "Read-only file system: start the command in a folder that can be written" in line
    assert f"runs/{run}" in line
