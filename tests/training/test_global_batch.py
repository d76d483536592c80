"""`global_batch=` and `accumulate=`: however many ranks and parts there are, and whatever becomes of them, one run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.processes import ranks
from support.runs import assert_close_weights, checkpoint, learned, rows
from support.tiny import CPU, EXACT_AUTOENCODER, TINY_DIFFUSION, fails

from ldm.training import trainer
from ldm.training.trainer import ranks_of

EXACT = [*TINY_DIFFUSION, *CPU, "schedule.decay=constant", "+optimizer.eps=1e-3"]  # Adam's first steps are signs


def options(pipeline, *more):
    own = [word for word in EXACT if not word.startswith("batch_size=")]
    return [*own, f"latents={pipeline}/runs/latents", *more]


@pytest.mark.parametrize(
    "more",
    [[], ["condition=infill"], ["objective=ot_flow"], ["objective=meanflow", "objective.student.same=0.25"]],
    ids=["flow", "infill", "ot_flow", "meanflow"],
)
def test_a_batch_in_parts_is_the_whole_batch(ldm, pipeline, more):
    given = [word for word in options(pipeline, *more) if "meanflow" not in str(more) or not word.startswith("sampler")]
    ldm("train-diffusion", *given, "batch_size=6", "run=whole")
    ldm("train-diffusion", *given, "batch_size=6", "accumulate=3", "run=parts")
    ldm("train-diffusion", *given, "batch_size=4", "global_batch=6", "run=shared")
    for run in ("parts", "shared"):  # of three parts, and of two
        for a, b in zip(rows("runs/whole"), rows(f"runs/{run}"), strict=True):
            for key in ("train/loss", "train/grad_norm"):
                assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4), key
        assert_close_weights("runs/whole", f"runs/{run}", "diffusion", rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_ranks_that_come_and_go_are_one_run(ldm, pipeline):
    given = options(pipeline, "global_batch=6", "steps=6", "every=2")
    ldm("train-diffusion", *given, "batch_size=6", "run=one")
    ranks("train-diffusion", *given, "batch_size=2", "run=many", "steps=2")  # of two parts each
    ranks("train-diffusion", *given, "batch_size=6", "run=many", "steps=4", world=3)
    ranks("train-diffusion", *given, "batch_size=2", "trainer.strategy=fsdp", "run=sharded")
    ldm("train-diffusion", *given, "batch_size=6", "run=many")
    assert "the global batch was" not in Path("runs/many/log.txt").read_text()
    for run in ("many", "sharded"):
        assert_close_weights("runs/one", f"runs/{run}", "diffusion", rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_stage_1_shares_a_batch_likewise(ldm):
    given = [*EXACT_AUTOENCODER, "global_batch=8", "trainer.limit_val_batches=0"]
    ldm("train-autoencoder", *given, "batch_size=8", "run=one")
    ranks("train-autoencoder", *given, "batch_size=2", "run=two")
    assert_close_weights("runs/one", "runs/two", "autoencoder", rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_torchrun_goes_on_after_a_lost_worker_and_after_a_lost_node(ldm, pipeline):
    """Two agents of torchrun stand for two nodes; the second is killed with its worker, and later the last worker."""
    given = options(pipeline, "global_batch=8", "batch_size=8", "steps=160", "every=4", "trainer.limit_val_batches=0")
    ldm("train-diffusion", *given, "run=whole")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5"]
    launch += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic"]
    launch += ["--rdzv-conf=last_call_timeout=30,keep_alive_interval=1,keep_alive_max_attempt=2"]
    words = [*launch, "-m", "ldm", "train-diffusion", *given, "run=elastic"]
    first = subprocess.Popen(words, start_new_session=True)
    wait_for(lambda: listens(port), first)  # it holds the store
    second = subprocess.Popen(words, start_new_session=True)
    try:
        wait_for(lambda: "4 images x 2 ranks" in said("elastic"), first)
        before = seen("elastic")
        wait_for(lambda: seen("elastic") > before, first)
        node = (child_of(second.pid), second.pid)  # its worker has a session of its own
        for process in node:
            os.kill(process, signal.SIGKILL)
        second.wait()
        wait_for(lambda: "8 images x 1 ranks" in said("elastic"), first)
        before = seen("elastic")
        wait_for(lambda: seen("elastic") > before, first)
        os.kill(child_of(first.pid), signal.SIGKILL)
        assert first.wait(300) == 0
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert len(re.findall("resumes from", said("elastic"))) >= 2
    assert_close_weights("runs/whole", "runs/elastic", "diffusion", rtol=1e-5, atol=1e-5)
    assert [row["images"] for row in learned("runs/whole")] == [row["images"] for row in learned("runs/elastic")]


def seen(run):
    """Batches of its newest checkpoint."""
    return max((int(file.stem) for file in Path("runs", run, "checkpoints").glob("0*.ckpt")), default=0)


def said(run):
    """Its log, so far."""
    file = Path("runs", run, "log.txt")
    return file.read_text() if file.exists() else ""


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(arrived, process):
    while not arrived():
        assert process.poll() is None, "torchrun has ended"
        time.sleep(0.05)


def child_of(parent):
    """The worker of an agent."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=True
    )
    return next(int(line.split()[0]) for line in listed.stdout.splitlines() if "train-diffusion" in line)


def test_what_cannot_be_shared_is_said_in_a_line(ldm, pipeline, monkeypatch):
    given = ["train-diffusion", *options(pipeline), "run=x"]
    assert "leave accumulate= out" in fails(*given, "global_batch=8", "batch_size=8", "accumulate=2")
    assert "can't be divided into accumulate=3 equal parts" in fails(*given, "batch_size=8", "accumulate=3")
    assert "is accumulate= here" in fails(*given, "batch_size=8", "+trainer.accumulate_grad_batches=2")
    assert "can't be shared by 2 ranks" in fails(*given, "batch_size=8", "global_batch=9", "trainer.devices=2")
    assert not Path("runs/x").exists()
    ldm(*given[:-1], "run=x", "batch_size=8", "global_batch=8")
    assert checkpoint("runs/x", "diffusion")["ldm"]["global_batch"] == 8
    chosen = {"devices": "auto", "accelerator": "cpu", "num_nodes": "auto"}
    assert [ranks_of(chosen | {"devices": n}) for n in ("auto", 3, "2", [0, 1])] == [1, 3, 2, 2]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert ranks_of(chosen | {"accelerator": "auto"}) == 4
    monkeypatch.setattr(trainer, "launch", lambda: trainer.Launch("torchrun", 0, 16, 0, 2))
    assert ranks_of(chosen) == 16
    assert trainer.devices_named("0,1") == 2
    graphs = ["accumulate=2", "batch_size=8", "trainer.compile=reduce-overhead"]
    assert "pass trainer.compile=true or max-autotune-no-cudagraphs" in fails(*given, *graphs)
