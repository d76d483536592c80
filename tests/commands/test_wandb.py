"""wandb's offline file, read back: config, steps, pictures, lineage; and each sweep's point a run of its own."""

import json
import os
import signal
from pathlib import Path

import pytest
from support.interruptions import hook
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION
from wandb.proto import wandb_internal_pb2

from ldm.checkpoint import load_autoencoder, load_diffusion
from ldm.training.diffusion_module import DiffusionModule


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def chunks(data):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, type) after 7 bytes."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:  # too little for a header: padding
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def records(folder):
    """All records of the offline runs in a folder, in the order of their starts."""
    found = []
    for file in sorted(Path(folder, "wandb").glob("offline-run-*/*.wandb")):
        for chunk in chunks(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(chunk)
            found.append(record)
    return found


def history(found):
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return rows


def runs(found):
    return [record.run for record in found if record.WhichOneof("record_type") == "run"]


def artifacts(found):
    """{(type, name): made or used}"""
    out = {}
    for record in found:
        if record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact"):
            made = record.request.log_artifact.artifact
            out[made.type, made.name] = "used" if made.use_after_commit else "made"
        elif record.WhichOneof("record_type") == "artifact":
            out[record.artifact.type, record.artifact.name] = "used" if record.artifact.use_after_commit else "made"
    return out


@pytest.mark.slow
def test_both_stages_and_what_follows_them(ldm):
    ldm("train-autoencoder", *TINY_AUTOENCODER, *CPU, "logger=wandb")
    ldm("cache-latents", "shard_size=600", "logger=wandb")
    ldm("train-diffusion", *TINY_DIFFUSION, *CPU, "logger=wandb")
    ldm("sample", "num=4", "sampler.steps=2", "logger=wandb")
    ldm("evaluate", "lpips=null", "logger=wandb")
    found = {run: records(f"runs/{run}") for run in ("autoencoder", "latents", "diffusion", "samples", "metrics")}

    one, two = history(found["autoencoder"]), history(found["diffusion"])
    for rows in (one, two):
        steps = [row["trainer/global_step"] for row in rows]
        assert steps == sorted(steps)
        assert set(steps) == {0, 1, 2, 3}  # batches, though stage 1 has two optimisers
    assert [row["images"] for row in one if "train/lr" in row] == [4, 8, 12, 16]
    scalars = [row for row in [*one, *two] if any(key.startswith(("train/", "val/", "val_by_time/")) for key in row)]
    assert all("images" in row and "batches" in row for row in scalars)
    assert all(row["images"] == 2 * 4 * (row["batches"] / 2) for row in one if "val/psnr" in row)
    logged = [{key for row in rows for key in row} for rows in (one, two)]
    speed = {"speed/images_per_s", "speed/data_s", "speed/forward_s", "speed/backward_s", "speed/optimizer_s"}
    assert logged[0] >= speed | {
        "reconstructions",
        "logits",
        "train/loss",
        "train/grad_norm",
        "val/psnr",
        "latent_std/0",
    }
    assert logged[1] >= speed | {"samples", "train/loss", "train/grad_norm", "val/loss", "speed/tflops"}
    assert any(key.startswith("val_by_time/") for key in logged[1])
    pictures = list(Path("runs/diffusion/wandb").glob("offline-*/files/media/images/samples*.png"))
    assert len(pictures) == 2

    config = {item.key: json.loads(item.value_json) for run in runs(found["diffusion"]) for item in run.config.update}
    for record in found["diffusion"]:
        if record.WhichOneof("record_type") == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
    assert config["batch_size"] == 8
    assert config["objective"]["parameterization"] == "velocity"

    links = {run: artifacts(found[run]) for run in found}
    autoencoder = ("autoencoder", f"autoencoder-{load_autoencoder('runs/autoencoder').fingerprint}")
    diffusion = ("diffusion", f"diffusion-{load_diffusion('runs/diffusion').fingerprint}")
    assert links["autoencoder"] == {autoencoder: "made"}
    assert links["latents"][autoencoder] == "used"
    latents = next(key for key, how in links["latents"].items() if how == "made")
    assert links["diffusion"] == {latents: "used", diffusion: "made"}
    samples = next(key for key, how in links["samples"].items() if how == "made")
    assert links["samples"] == {diffusion: "used", samples: "made"}
    assert links["metrics"][samples] == "used"
    assert "metrics" in {kind for (kind, _), how in links["metrics"].items() if how == "made"}


def test_a_stopped_run_goes_on_in_the_same_run_and_its_steps_rise(ldm, pipeline, monkeypatch):
    options = [*TINY_DIFFUSION, *CPU, "steps=6", "every=3", "logger=wandb", f"latents={pipeline}/runs/latents"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        ask = lambda: os.kill(os.getpid(), signal.SIGUSR1)  # noqa: E731
        hook(patch, DiffusionModule, "training_step", lambda m: m.batches_seen == 3, ask)
        ldm("train-diffusion", *options)
    ldm("train-diffusion", *options)
    found = records("runs/diffusion")
    assert {run.run_id for run in runs(found)} == {Path("runs/diffusion/wandb-id.txt").read_text()}
    assert len(list(Path("runs/diffusion/wandb").glob("offline-run-*"))) == 2
    batches = [row["batches"] for row in history(found) if "train/lr" in row]
    assert batches == [1, 2, 3, 4, 5, 6]


def test_each_point_of_a_sweep_is_a_run_of_its_own_in_one_group(ldm, pipeline):
    options = [*TINY_DIFFUSION, *CPU, "steps=2", "logger=[wandb,tensorboard]", f"latents={pipeline}/runs/latents"]
    ldm("train-diffusion", "-m", "run=sweep", *options, "seed=0,1", "hydra.sweep.subdir=seed${seed}")
    found = [runs(records(f"runs/sweep/seed{seed}")) for seed in (0, 1)]
    assert {run.run_group for point in found for run in point} == {"sweep"}
    assert [{run.display_name for run in point} for point in found] == [{"seed0"}, {"seed1"}]
    assert len({run.run_id for point in found for run in point}) == 2
    assert list(Path("runs/sweep/seed0/tensorboard").glob("events.*"))
