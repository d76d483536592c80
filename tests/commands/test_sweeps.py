"""Sweeps: stable folders, points that fail or are finished, what is optimised, the summary, the probe."""

import csv
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION

from ldm.commands.sweep_points import point_name

POINT = [*TINY_DIFFUSION, *CPU, "steps=2"]


def points(run):
    """{folder name: its card}"""
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs", run).glob("*/point.json")}


def table(run):
    with open(f"runs/{run}/summary.csv") as file:
        return list(csv.DictReader(file))


def test_points_that_fail_or_are_finished(ldm, pipeline, capsys):
    sweep = ["-m", "run=sweep", *POINT, f"latents={pipeline}/runs/latents", "label_dropout=7,0.1", "seed=0,1"]
    with pytest.raises(SystemExit, match="label_dropout=7 must lie in"):
        ldm("train-diffusion", *sweep)
    cards = points("sweep")
    assert len(cards) == 4
    assert sorted(card["finished"] for card in cards.values()) == [False, False, True, True]
    for name, card in cards.items():
        assert f"seed={card['config']['seed']}" in name
        assert (card["error"] is not None) == ("label_dropout=7" in name)
    done = [name for name, card in cards.items() if card["finished"]]
    before = {p: p.stat().st_mtime_ns for name in done for p in Path("runs/sweep", name).rglob("*.ckpt")}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ldm("train-diffusion", *sweep)
    assert capsys.readouterr().out.count("is finished: skipped") == 2
    assert before == {p: p.stat().st_mtime_ns for p in before}
    # a point with more to do is not finished: it goes on
    with pytest.raises(SystemExit):
        ldm("train-diffusion", *sweep[:-2], "label_dropout=0.1,7", "seed=0", "hydra.sweep.subdir=${seed}")
    capsys.readouterr()
    ldm("summarize", "run=sweep", "columns=[val/loss]")
    found = table("sweep")
    assert [row["state"] for row in found[:4]].count("finished") >= 2
    values = [float(row["returned"]) for row in found if row["returned"]]
    assert values == sorted(values)
    assert all(row["returned"] == row["val/loss"] for row in found if row["returned"])
    assert "failed: label_dropout=7 must lie in [0, 1]" in capsys.readouterr().out
    with Image.open("runs/sweep/summary.png") as picture:
        assert min(picture.size) > 100


def test_an_unfinished_point_resumes(ldm, pipeline):
    sweep = ["-m", "run=sweep", *TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "seed=0,1"]
    folder = ["hydra.sweep.subdir=seed${seed}"]
    ldm("train-diffusion", *sweep, "steps=2", *folder)
    ldm("train-diffusion", *sweep, "steps=4", *folder)
    for seed in (0, 1):
        log = Path(f"runs/sweep/seed{seed}/log.txt").read_text()
        assert "resumes from 00000002.ckpt" in log
        assert json.loads(Path(f"runs/sweep/seed{seed}/point.json").read_text())["finished"]


def test_names_of_points_are_names_of_folders():
    assert point_name("a=1,b=runs/x") == "a=1,b=runs%2Fx"
    long = ",".join(f"key{i}=value" for i in range(50))
    assert len(point_name(long)) < 255
    assert point_name(long) != point_name(long + "x")


def test_optuna_searches_what_the_command_returns(ldm, pipeline):
    search = ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.n_trials=3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the sweeper asks of optuna
        ldm("train-diffusion", "-m", "sweep=optuna", "run=search", *POINT, f"latents={pipeline}/runs/latents", *search)
    found = {card["config"]["optimizer"]["lr"]: card["value"] for card in points("search").values()}
    assert len(found) == 3
    best = Path("runs/search/optimization_results.yaml").read_text()
    assert f"best_value: {min(found.values())}" in best


@pytest.mark.slow
def test_points_side_by_side(ldm, pipeline):
    """joblib's workers are processes of their own; two points, two folders, one group."""
    sweep = ["-m", "launcher=joblib", "run=sweep", *POINT, f"latents={pipeline}/runs/latents", "seed=0,1"]
    ldm("train-diffusion", *sweep)
    assert sorted(card["config"]["seed"] for card in points("sweep").values() if card["finished"]) == [0, 1]


@pytest.mark.slow
def test_the_probe_ranks_autoencoders_and_resumes(ldm):
    quoted = ",".join(f"'{option}'" for option in [*TINY_DIFFUSION, *CPU])
    small = [f"probe.diffusion=[{quoted}]", "probe.samples=['num=64','sampler.steps=2','guidance=1']"]
    options = [*TINY_AUTOENCODER, *CPU, *small, "regularizer.weight=1e-6,1"]
    for _ in range(2):
        ldm("probe", "-m", "run=probe", "hydra.sweep.subdir=${regularizer.weight}", *options)
    cards = points("probe")
    assert len(cards) == 2
    for name, card in cards.items():
        metrics = json.loads(Path(f"runs/probe/{name}/metrics/metrics.json").read_text())
        assert metrics["frechet_distance"]["value"] == card["value"]
        assert metrics["frechet_distance"]["depends"]["samples"] == 64
    ldm("summarize", "run=probe", "columns=[reconstruction/psnr]")
    assert all(float(row["reconstruction/psnr"]) > 0 for row in table("probe"))
