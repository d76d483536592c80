"""Signals and kills: whatever happens and whenever, the run goes on as if it had not."""

import math
import multiprocessing
import os
import random
import signal
import zlib
from pathlib import Path

import pytest
import torch
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, run_command
from training.test_resume import COMPARED, assert_equal, read

from ldm import checkpoint as checkpoints
from ldm.data.cache_reader import LatentCache
from ldm.runtime import stop
from ldm.runtime.files import read_json, sha256
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.saves import AtomicCheckpointIO

OPTIONS = [*TINY_DIFFUSION, *CPU, "steps=6", "every=3", "net.dropout=0.3", "trainer.limit_val_batches=2"]


def assert_same_run(one, other, kind):
    one, other = (read(Path("runs", run), kind) for run in (one, other))
    for key in COMPARED:
        assert_equal(one[key], other[key], key)


def hook(monkeypatch, cls, name, when, do):
    """Have cls.name call do() where when(self) says so."""
    method = getattr(cls, name)

    def hooked(self, *args, **kwargs):
        if when(self):
            do()
        return method(self, *args, **kwargs)

    monkeypatch.setattr(cls, name, hooked)


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
        ("last", 3, signal.SIGUSR1),
        ("validation", 3, signal.SIGUSR1),
        ("last validation", 6, signal.SIGUSR1),
        ("save", 2, signal.SIGUSR1),
        ("save", 2, signal.SIGINT),  # twice within a moment: torchrun passes on what the terminal has sent, too
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(ldm, pipeline, monkeypatch, capsys, where, saved_at, signum):
    options = [*OPTIONS, f"latents={pipeline}/runs/latents"]
    ldm("train-diffusion", "run=whole", *options)
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
    assert_same_run("parts", "whole", "diffusion")
    assert sorted(p.name for p in Path("runs/parts/checkpoints").iterdir()) == ["00000003.ckpt", "00000006.ckpt"]
    assert metrics("parts") == metrics("whole")


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


def metrics(run):
    """RUN/metrics.csv without what depends on the machine."""
    lines = [line.split(",") for line in Path(f"runs/{run}/metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if not name.startswith("speed/")]
    return [[line[i] for i in kept] for line in lines]


def test_a_signal_waits_for_accumulated_gradients(ldm, pipeline, monkeypatch):
    options = [*TINY_DIFFUSION, *CPU, "steps=8", "every=4", f"latents={pipeline}/runs/latents"]
    options.append("+trainer.accumulate_grad_batches=2")
    ldm("train-diffusion", "run=whole", *options)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):

        def ask():
            os.kill(os.getpid(), signal.SIGTERM)

        hook(patch, DiffusionModule, "training_step", lambda m: m.batches_seen == 4, ask)
        ldm("train-diffusion", "run=parts", *options)
    assert checkpoints.newest(Path("runs/parts")).stem == "00000006"
    ldm("train-diffusion", "run=parts", *options)
    assert_same_run("parts", "whole", "diffusion")


def digesting(module_class, file):
    """Note in a file what each batch was made of."""
    step = module_class.training_step

    def training_step(self, batch, batch_idx):
        with open(file, "a") as stream:
            crc = zlib.crc32(batch[0].numpy().tobytes() + batch[1].numpy().tobytes())
            stream.write(f"{self.batches_seen} {crc}\n")
        return step(self, batch, batch_idx)

    module_class.training_step = training_step


def child(folder, name, options, seed_file):
    from ldm.training.autoencoder_module import AutoencoderModule

    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for module in (AutoencoderModule, DiffusionModule):
        digesting(module, seed_file)
    run_command(name, *options)


def start(folder, name, options, seed_file=os.devnull):
    """A process that starts in a moment: forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.test_preemption", "ldm.data.cache_reader", "ldm.training.run"])
    process = context.Process(target=child, args=(folder, name, options, seed_file))
    process.start()
    return process


def killed_often(folder, name, options, kills, longest, check, seed_file=os.devnull, steps=None):
    """Start and SIGKILL at random moments, `kills` times, then let it end. A training run that ends before that is
    given more steps, since no number of them is enough for every machine; returns how many it had."""
    moments, done, given = random.Random(0), 0, steps
    while True:
        process = start(folder, name, [*options, *([f"steps={given}"] if given else [])], seed_file)
        process.join(moments.uniform(0, longest) if done < kills else None)
        if process.is_alive():
            process.kill()
            process.join()
            done += 1
            check()
            continue
        assert process.exitcode == 0
        if done == kills:
            return given
        assert given, f"it ended after {done} kills: make the job longer"
        given += steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        (
            "train-autoencoder",
            "autoencoder",
            [*TINY_AUTOENCODER, "loss.perceptual_weight=0", "disc_schedule.decay=constant"],
        ),
        ("train-diffusion", "diffusion", [*TINY_DIFFUSION, "net.dropout=0.3"]),
    ],
)
def test_sigkill_at_25_random_moments(tmp_path, pipeline, name, kind, options):
    options = [*options, *CPU, "every=10", "schedule.decay=constant"]
    options += [f"latents={pipeline}/runs/latents"] if kind == "diffusion" else []

    def check():
        for file in (tmp_path / "runs/killed/checkpoints").glob("*.ckpt"):
            checkpoints.read(file, kind)

    steps = killed_often(tmp_path, name, [*options, "run=killed"], 25, 5.0, check, tmp_path / "killed.txt", 300)
    whole = start(tmp_path, name, [*options, f"steps={steps}", "run=whole"], tmp_path / "whole.txt")
    whole.join()
    assert whole.exitcode == 0
    os.chdir(tmp_path)
    assert_same_run("killed", "whole", kind)
    order = set((tmp_path / "whole.txt").read_text().splitlines())
    assert len(order) == steps
    assert set((tmp_path / "killed.txt").read_text().splitlines()) == order
    assert not list(Path("runs/killed/checkpoints").glob(".*"))  # nothing of an unfinished write is left


@pytest.mark.slow
def test_the_cache_survives_10_kills(tmp_path, pipeline):
    options = [f"autoencoder={pipeline}/runs/autoencoder", "shard_size=20", "batch_size=10"]
    whole = start(tmp_path, "cache-latents", [*options, "run=whole"])
    whole.join()
    folder = tmp_path / "runs/killed"

    def check():
        assert not (folder / "manifest.json").exists()
        for card in folder.glob("*-*.json"):
            assert read_json(card)["sha256"] == sha256(card.with_suffix(".tar"))

    killed_often(tmp_path, "cache-latents", [*options, "run=killed"], 10, 1.5, check)
    assert (folder / "manifest.json").read_text() == (tmp_path / "runs/whole/manifest.json").read_text()
    assert not list(folder.glob(".*"))
