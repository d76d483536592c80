"""jobs/ on a real SLURM: `make test-slurm`. Two nodes of at least two CPUs, without GPUs; sbatch on PATH."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import assert_close_weights, assert_same_training
from support.tiny import CPU, EXACT_AUTOENCODER, TINY_AUTOENCODER, TINY_DIFFUSION

from ldm.checkpoint import newest

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch on PATH: needs a SLURM cluster of two nodes"),
]
JOBS = Path(__file__).parents[1] / "jobs"
LDM = [str(Path(sys.executable).with_name("ldm"))]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder to submit from, with an env.sh for machines without GPUs."""
    options = "(--gpus-per-task=0 --cpus-per-task=1 --ntasks-per-node=1)"
    binaries = Path(sys.executable).parent
    (tmp_path / "env.sh").write_text(f'export PATH="{binaries}:$PATH" OMP_NUM_THREADS=1\nLDM_SBATCH={options}\n')
    monkeypatch.setenv("LDM_ENV", str(tmp_path / "env.sh"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sbatch(script, *overrides, options=()):
    """Submit one of jobs/; its id."""
    plain = ["--gpus-per-task=0", "--cpus-per-task=1", "--ntasks-per-node=1", *options]
    command = ["sbatch", "--parsable", *plain, str(JOBS / f"{script}.sbatch"), *overrides]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def states(job):
    """State of the job or of each task of an array, as accounting has it."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", job]
    return [line.split()[0] for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]


def wait(*jobs, seconds=300):
    """Wait until all have ended; their logs if one failed."""
    until = time.time() + seconds
    while time.time() < until:
        found = [state for job in jobs for state in states(job)]
        if found and all(state not in ("PENDING", "RUNNING", "REQUEUED", "COMPLETING") for state in found):
            if set(found) != {"COMPLETED"}:
                break
            return
        time.sleep(1)
    logs = "\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in sorted(Path().glob("slurm-*.log")))
    pytest.fail(f"{jobs}: {found}\n{logs}")


def alone(name, *overrides):
    """The same command in one process, without SLURM."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*LDM, name, *overrides], check=True, capture_output=True, env=env)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_two_nodes_of_two_tasks_equal_one_process(site, pipeline, stage):
    if stage == "autoencoder":
        name, options = "train_autoencoder", EXACT_AUTOENCODER
    else:
        name = "train_diffusion"
        options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "optimizer._target_=torch.optim.SGD"]
        options += ["~optimizer.fused", "optimizer.lr=0.1", "schedule.decay=constant"]
    job = sbatch(name, *options, "run=four", "batch_size=2", options=("--nodes=2", "--ntasks-per-node=2"))
    alone(name.replace("_", "-"), *options, "run=one", "batch_size=8")
    wait(job)
    assert_close_weights("runs/one", "runs/four", stage, rtol=1e-5, atol=1e-5)
    log = next(Path().glob(f"slurm-ldm-*-{job}.log")).read_text()
    assert "4 x cpu" in log
    assert "global batch 8 = 2 images x 4 ranks" in log


def test_the_pipeline_end_to_end(site, monkeypatch):
    given = {
        "AUTOENCODER": [*TINY_AUTOENCODER, *CPU],
        "LATENTS": ["shard_size=300"],
        "DIFFUSION": [*TINY_DIFFUSION, *CPU],
        "SAMPLES": ["num=20", "sampler.steps=2"],
        "METRICS": ["classifier=svc"],
    }
    environment = os.environ | {key: " ".join(value) for key, value in given.items()} | {"ARRAY": "2"}
    environment["TRAIN_SBATCH"] = "--nodes=2"
    done = subprocess.run([JOBS / "pipeline.sh", "chain"], check=True, capture_output=True, text=True, env=environment)
    jobs = dict(line.split() for line in done.stdout.splitlines())
    assert list(jobs) == ["autoencoder", "cache", "manifest", "diffusion", "samples", "metrics"]
    wait(*jobs.values())
    metrics = json.loads(Path("runs/chain/metrics/metrics.json").read_text())
    assert metrics["samples"]["num"] == 20
    assert metrics["class_accuracy"]["classifier_on_held_out_images"] > 0.97
    assert "2 ranks" in next(Path().glob(f"slurm-*-{jobs['diffusion']}.log")).read_text()


def test_a_requeued_job_goes_on_bit_for_bit_in_the_same_wandb_run(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "steps=400", "every=200", "logger=wandb"]
    two = ("--nodes=2",)  # ranks, which must agree on where to stop
    job = sbatch("train_diffusion", *options, "run=requeued", options=two)
    log = site / f"slurm-ldm-train-diffusion-{job}.log"
    until = time.time() + 120
    while not list(site.glob("runs/requeued/csv/version_0/metrics.csv")):  # it trains
        assert time.time() < until, log.read_text()
        time.sleep(0.2)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait(job, sbatch("train_diffusion", *options, "run=whole", options=two))
    text = log.read_text()
    saved = int(text.split("stopped by SIGUSR1: saved after batch ")[1].split(";")[0])
    assert saved % 200 != 0, "the signal came too late to show anything: in mid-epoch it must be"
    assert f"job {job} is requeued" in text
    assert f"resumes from {saved:08d}.ckpt" in text
    assert_same_training("runs/requeued", "runs/whole", "diffusion")
    name = Path("runs/requeued/wandb-id.txt").read_text()
    starts = sorted(Path("runs/requeued/wandb").glob("offline-run-*"))
    assert len(starts) == 2
    assert all(start.name.endswith(name) for start in starts)


def test_a_job_that_somebody_requeues_saves_goes_on_and_says_so(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "steps=400", "every=200"]
    job = sbatch("train_diffusion", *options, "run=requeued")
    until = time.time() + 120
    while not list(site.glob("runs/requeued/csv/version_0/metrics.csv")):
        assert time.time() < until
        time.sleep(0.2)
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait(job)
    text = (site / f"slurm-ldm-train-diffusion-{job}.log").read_text()
    assert f"job {job} is requeued" in text
    assert "could not be requeued" not in text
    assert "resumes from" in text


def test_a_cancelled_job_saves_and_is_not_requeued(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "steps=4000", "every=2000"]
    job = sbatch("train_diffusion", *options, "run=cancelled")
    until = time.time() + 120
    while not list(site.glob("runs/cancelled/csv/version_0/metrics.csv")):
        assert time.time() < until
        time.sleep(0.2)
    subprocess.run(["scancel", job], check=True)
    while any(state in ("PENDING", "RUNNING", "COMPLETING") for state in states(job)):
        assert time.time() < until + 60
        time.sleep(0.5)
    assert states(job)[0].startswith("CANCELLED")
    log = site / f"slurm-ldm-train-diffusion-{job}.log"
    while "not requeued" not in log.read_text():  # accounting is ahead of the job, which saves
        assert time.time() < until + 60, log.read_text()
        time.sleep(0.5)
    assert newest(Path("runs/cancelled")) is not None


def test_the_caches_array_with_one_task_killed_and_run_again(site, pipeline):
    options = ["run=array", f"autoencoder={pipeline}/runs/autoencoder", "shard_size=20", "batch_size=2"]
    job = sbatch("cache_latents", *options, options=("--array=0-1",))
    until = time.time() + 120
    while not list(site.glob("runs/array/*-000003.json")):  # task 1 has written a shard or two
        assert time.time() < until
        time.sleep(0.05)
    subprocess.run(["scancel", "--signal=KILL", f"{job}_1"], check=True)
    while any(state in ("PENDING", "RUNNING", "COMPLETING") for state in states(job)):
        assert time.time() < until
        time.sleep(0.5)
    assert sorted(states(job))[1:] == ["COMPLETED"], "one is killed, one is not"
    assert "COMPLETED" not in sorted(states(job))[:1]
    assert not Path("runs/array/manifest.json").exists()
    wait(sbatch("cache_latents", *options, options=("--array=0-1",)))
    alone("cache-latents", *options[1:], "run=whole")
    array, whole = (json.loads(Path(f"runs/{run}/manifest.json").read_text()) for run in ("array", "whole"))
    assert array == whole


def test_the_cache_by_several_ranks(site, pipeline):
    options = [f"autoencoder={pipeline}/runs/autoencoder", "shard_size=300"]
    wait(sbatch("cache_latents", "run=ranks", *options, options=("--array=0-0", "--nodes=2", "--ntasks-per-node=2")))
    alone("cache-latents", *options, "run=whole")
    ranks, whole = (json.loads(Path(f"runs/{run}/manifest.json").read_text()) for run in ("ranks", "whole"))
    assert ranks == whole


def test_a_command_without_srun_in_a_job_of_several_tasks_is_refused(site):
    script = site / "wrong.sbatch"
    script.write_text(f"#!/bin/bash\n{LDM[0]} train-autoencoder\n")
    command = ["sbatch", "--wait", "--ntasks=2", f"--output={site}/wrong.log", str(script)]
    assert subprocess.run(command, capture_output=True).returncode == 1
    assert "start the command by srun" in (site / "wrong.log").read_text()


def test_a_sweep_of_two_by_two_as_slurm_jobs(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "objective=flow,ddpm", "seed=0,1"]
    launcher = ["launcher=slurm", *(f"hydra.launcher.{key}" for key in ("gpus_per_node=null", "cpus_per_task=1"))]
    alone("train-diffusion", "-m", "run=sweep", *launcher, *options)
    cards = [json.loads(path.read_text()) for path in Path("runs/sweep").glob("*/point.json")]
    assert sorted((c["config"]["seed"], c["config"]["objective"]["parameterization"]) for c in cards) == [
        (0, "eps"),
        (0, "velocity"),
        (1, "eps"),
        (1, "velocity"),
    ]
    assert all(card["finished"] for card in cards)
    jobs = {path.name.split("_")[0] for path in Path("runs/sweep/.submitit").glob("*_[0-9]")}
    assert len(jobs) == 1, "an array of four tasks"
    alone("summarize", "run=sweep")
    with open("runs/sweep/summary.csv") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_a_sweeps_point_that_is_preempted_is_requeued_by_its_launcher(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "steps=400", "every=200", "seed=0,1"]
    launcher = ["launcher=slurm", *(f"hydra.launcher.{key}" for key in ("gpus_per_node=null", "cpus_per_task=1"))]
    command = [*LDM, "train-diffusion", "-m", "run=sweep", "hydra.sweep.subdir=seed${seed}", *launcher, *options]
    running = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    until = time.time() + 120
    while not list(site.glob("runs/sweep/seed0/csv/version_0/metrics.csv")):
        assert time.time() < until
        time.sleep(0.2)
    job = next(Path("runs/sweep/.submitit").glob("*_0")).name
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    assert running.wait(timeout=300) == 0
    log = Path("runs/sweep/seed0/log.txt").read_text()
    saved = [line for line in log.splitlines() if "resumes from" in line]
    assert len(saved) == 1
    assert "00000200.ckpt" not in saved[0]
    assert json.loads(Path("runs/sweep/seed0/point.json").read_text())["finished"]
