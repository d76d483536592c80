"""A command that is refused leaves nothing behind that was not there, whichever command and whatever the reason."""

import logging
from pathlib import Path

import pytest
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails, inside

from ldm.commands.hydra_errors import check_command_line
from ldm.commands.refusal import Before
from ldm.commands.run_folder import RunLog

LOGGERS = "logger=[wandb,tensorboard]"


def contents(folder="."):
    """Every path below a folder, with what the files hold; but for what a reader notes of a cache's checksums."""
    paths = [path for path in Path(folder).rglob("*") if path.name != "verified.json"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    "words",
    [
        ["train-autoencoder", *TINY_AUTOENCODER, *CPU, "optimizer.lr=-1"],
        ["train-autoencoder", *TINY_AUTOENCODER, *CPU, LOGGERS, "steps=5"],
        ["train-autoencoder", *TINY_AUTOENCODER, *CPU, LOGGERS, "+trainer.max_epochs=3"],
        ["train-autoencoder", "data=folder", "data.root=nope"],
        ["train-autoencoder", "data=folder", "data.root=empty"],
        ["cache-latents", LOGGERS],
        ["cache-latents", "slice=2/2"],
        ["train-diffusion", LOGGERS],
        ["sample", LOGGERS],
        ["sample", "model=garbage.ckpt"],
        ["evaluate", LOGGERS],
        ["evaluate", "samples=garbage.npz"],
        ["likelihood"],
        ["probe", "data=folder", "data.root=nope"],
        ["probe", "probe.diffusion=['stpes=3']"],
        ["probe", "probe.samples=['num=0']"],
        ["summarize"],
        ["convert", "source=nope"],
        ["convert", "source=garbage.ckpt"],
        ["convert", "source=garbage.ckpt", "what=diffusion"],
        ["convert", "source=runs/nope", "to=diffusers"],
        ["pack", "data.root=nope"],
        ["pack", "data.root=empty"],
        ["train-diffusion", "-m", "objective=flow,flwo"],
        ["train-diffusion", "-m", "launcher=slurm", "seed=0,1"],
    ],
    ids=" ".join,
)
def test_a_refusal_leaves_nothing(ldm, monkeypatch, words):
    monkeypatch.setenv("PATH", "")  # without sbatch
    Path("empty").mkdir()
    Path("garbage.ckpt").write_bytes(b"no checkpoint")
    Path("garbage.npz").write_bytes(b"no arrays")
    before = contents()
    fails(*words, "run=deep/er")
    assert contents() == before


def test_the_probe_refuses_what_its_last_command_would(ldm):
    line = fails("probe", "probe.metrics=['keep=none']")
    assert "ldm evaluate, which ldm probe calls: keep=none must be a whole number" in line
    line = fails("probe", "probe.diffusion=['stpes=3']")
    assert "stpes is no key of ldm train-diffusion: did you mean steps?" in line


@pytest.mark.parametrize("choice", ["experiment=mnist_cpu", "experiment=cifar10_cpu"])
def test_the_probe_hands_its_own_choices_on(choice):
    """They are for `ldm probe` alone, and yet for the commands that it calls."""
    with pytest.raises(ValueError, match="is for another command: ldm probe"):
        check_command_line("train-autoencoder", [choice])
    check_command_line("train-autoencoder", [choice], within="probe")


def test_a_refusal_changes_nothing_in_a_run(ldm, pipeline):
    inside(pipeline, ldm)
    before = contents("runs")
    fails("train-autoencoder", *TINY_AUTOENCODER, *CPU, "ema_decay=0.5")
    fails("train-diffusion", *TINY_DIFFUSION, *CPU, "label_dropout=0.2", "schedule.warmup=1")
    fails("cache-latents", "shard_size=1000")
    fails("sample", "run=diffusion")
    assert contents("runs") == before


def test_what_was_there_stays(ldm):
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/notes.txt").write_text("mine")
    Path("runs/empty").mkdir()
    before = contents()
    for run in ("mine", "empty", "mine/inner"):
        fails("sample", f"run={run}")
    fails("sample", "-m", "run=mine", "sampler=heun,hune")
    assert contents() == before


def test_another_command_that_has_begun_meanwhile_is_left_alone(tmp_path):
    noted = Before.of(tmp_path / "runs/a", of_sweep=False)
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.yaml").touch()
    (tmp_path / "runs/a/000000.tar").touch()
    noted.restore()
    assert len(list((tmp_path / "runs/a").iterdir())) == 2
    noted = Before.of(tmp_path / "runs/sweep", of_sweep=True)
    (tmp_path / "runs/sweep/seed=0").mkdir(parents=True)
    (tmp_path / "runs/sweep/seed=0/point.json").touch()
    noted.restore()
    assert (tmp_path / "runs/sweep/seed=0/point.json").exists()
    noted = Before.of(tmp_path / "new/b", of_sweep=False)
    (tmp_path / "new/b").mkdir(parents=True)
    (tmp_path / "new/c").mkdir()
    noted.restore()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c"]


def test_the_log_holds_what_was_said_before_the_command_began(tmp_path):
    log = RunLog(str(tmp_path / "log.txt"))
    say = lambda text: log.handle(logging.makeLogRecord({"msg": text}))  # noqa: E731
    say("one")
    say("two")
    assert not (tmp_path / "log.txt").exists()
    log.begin()
    say("three")
    log.close()
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\n"
