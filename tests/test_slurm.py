"""jobs/ on a real SLURM: `make test-slurm`. Two nodes of at least two CPUs, without GPUs; sbatch on PATH."""

import csv
import json
import os
import re
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
PATIENCE = 1800  # seconds
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


def until(condition):
    """Wait for a condition; show the jobs' logs where it takes so long that on any machine something hangs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail("\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in sorted(Path().glob("slurm-*.log"))))
        time.sleep(0.2)


def have_ended(*jobs, tasks=None):
    """Whether accounting has every task of these jobs as ended; tasks: how many they are, where one is an array.

    Accounting learns of each task by itself, seconds late and in no order: what it does not list may be running.
    """
    known = [state for job in jobs for state in states(job)]
    unfinished = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING")
    return len(known) >= (tasks or len(jobs)) and not any(state in unfinished for state in known)


def wait(*jobs, tasks=None):
    """Wait until all have ended; their logs if one failed."""
    until(lambda: have_ended(*jobs, tasks=tasks))
    ends = {state for job in jobs for state in states(job)}
    logs = "\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in sorted(Path().glob("slurm-*.log")))
    assert ends == {"COMPLETED"}, f"{jobs}: {ends}\n{logs}"


def trains(run):
    """Whether a training run has logged its first batches."""
    return bool(list(Path("runs", run).glob("csv/version_0/metrics.csv")))


def interrupted(tell, *options, nodes=1):
    """Submit a training run and tell(job) something once it trains; with more steps where it was over before that.

    Returns its id, its folder's name, its steps, the batch after which it saved, and its log once it has ended.
    """
    for steps in (400, 1600, 6400):  # no number of them is enough for every machine
        run, every = f"interrupted{steps}", steps // 2
        job = sbatch("train_diffusion", *options, f"steps={steps}", f"every={every}", f"run={run}",
                     options=(f"--nodes={nodes}",))  # fmt: skip
        until(lambda run=run: trains(run))
        tell(job)
        wait(job)
        text = Path(f"slurm-ldm-train-diffusion-{job}.log").read_text()
        saved = re.search(r"saved after batch (\d+)", text)
        if saved and int(saved[1]) % every:
            return job, run, steps, int(saved[1]), text
    pytest.fail("each run was over, or between two stretches, when it was told to stop")


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
    wait(*jobs.values(), tasks=len(jobs) + 1)  # the cache is an array of two
    metrics = json.loads(Path("runs/chain/metrics/metrics.json").read_text())
    assert metrics["samples"]["num"] == 20
    assert metrics["class_accuracy"]["classifier_on_held_out_images"] > 0.97
    assert "2 ranks" in next(Path().glob(f"slurm-*-{jobs['diffusion']}.log")).read_text()


def test_a_requeued_job_goes_on_bit_for_bit_in_the_same_wandb_run(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "logger=wandb"]

    def preempt(job):
        subprocess.run(["scancel", "--signal=USR1", job], check=True)

    # two nodes: ranks, which must agree on where to stop
    job, run, steps, saved, text = interrupted(preempt, *options, nodes=2)
    assert f"stopped by SIGUSR1: saved after batch {saved}" in text
    assert f"job {job} is requeued" in text
    assert f"resumes from {saved:08d}.ckpt" in text
    whole = ["run=whole", f"steps={steps}", f"every={steps // 2}"]
    wait(sbatch("train_diffusion", *options, *whole, options=("--nodes=2",)))
    assert_same_training(f"runs/{run}", "runs/whole", "diffusion")
    name = Path(f"runs/{run}/wandb-id.txt").read_text()
    starts = sorted(Path(f"runs/{run}/wandb").glob("offline-run-*"))
    assert len(starts) == 2
    assert all(start.name.endswith(name) for start in starts)


def test_a_job_that_somebody_requeues_saves_goes_on_and_says_so(site, pipeline):
    def requeue(job):
        subprocess.run(["scontrol", "requeue", job], check=True)

    job, _, _, _, text = interrupted(requeue, *TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents")
    assert f"job {job} is requeued" in text
    assert "could not be requeued" not in text
    assert "resumes from" in text


def test_a_cancelled_job_saves_and_is_not_requeued(site, pipeline):
    options = [*TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "steps=4000", "every=2000"]
    job = sbatch("train_diffusion", *options, "run=cancelled")
    until(lambda: trains("cancelled"))
    subprocess.run(["scancel", job], check=True)
    until(lambda: have_ended(job))
    assert states(job)[0].startswith("CANCELLED")
    log = site / f"slurm-ldm-train-diffusion-{job}.log"
    until(lambda: "not requeued" in log.read_text())  # accounting is ahead of the job, which saves
    assert newest(Path("runs/cancelled")) is not None


def test_the_caches_array_with_one_task_killed_and_run_again(site, pipeline):
    options = ["run=array", f"autoencoder={pipeline}/runs/autoencoder", "shard_size=20", "batch_size=2"]
    job = sbatch("cache_latents", *options, options=("--array=0-1",))
    until(lambda: list(site.glob("runs/array/*-000003.json")))  # task 1 has written a shard or two
    subprocess.run(["scancel", "--signal=KILL", f"{job}_1"], check=True)
    until(lambda: have_ended(job, tasks=2))
    assert sorted(states(job))[1:] == ["COMPLETED"], "one is killed, one is not"
    assert "COMPLETED" not in sorted(states(job))[:1]
    assert not Path("runs/array/manifest.json").exists()
    wait(sbatch("cache_latents", *options, options=("--array=0-1",)), tasks=2)
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
    until(lambda: trains("sweep/seed0"))
    job = next(Path("runs/sweep/.submitit").glob("*_0")).name
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    assert running.wait(timeout=PATIENCE) == 0
    log = Path("runs/sweep/seed0/log.txt").read_text()
    saved = [line for line in log.splitlines() if "resumes from" in line]
    assert len(saved) == 1
    assert "00000200.ckpt" not in saved[0]
    assert json.loads(Path("runs/sweep/seed0/point.json").read_text())["finished"]
