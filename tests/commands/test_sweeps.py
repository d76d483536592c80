"""Sweeps: stable folders, points that fail or are finished, what is optimised, the summary, the probe."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails

from ldm.commands.sweep_points import LONGEST, PointCard

POINT = [*TINY_DIFFUSION, *CPU, "steps=2"]


def points(run):
    """{folder name: its card}"""
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs", run).glob("*/point.json")}


def table(run):
    with open(f"runs/{run}/summary.csv") as file:
        return list(csv.DictReader(file))


def test_points_that_fail_or_are_finished(ldm, pipeline, capsys):
    sweep = ["-m", "run=sweep", *POINT, f"latents={pipeline}/runs/latents", "label_dropout=7,0.1", "seed=0,1"]
    with pytest.raises(SystemExit, match="label_dropout=7 must be at most 1"):
        ldm("train-diffusion", *sweep)
    cards = points("sweep")
    assert sorted(cards) == [f"label_dropout={share},seed={seed}" for share in (0.1, 7) for seed in (0, 1)]
    for name, card in cards.items():
        assert card["swept"] == {
            "label_dropout": f"{card['config']['label_dropout']:g}",
            "seed": str(card["config"]["seed"]),
        }
        assert (card["error"] is not None) == (not card["finished"]) == ("label_dropout=7" in name)
    done = [name for name, card in cards.items() if card["finished"]]
    before = {p: p.stat().st_mtime_ns for name in done for p in Path("runs/sweep", name).rglob("*.ckpt")}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ldm("train-diffusion", *sweep)
    assert capsys.readouterr().out.count("is finished: skipped") == 2
    assert before == {p: p.stat().st_mtime_ns for p in before}
    ldm("summarize", "run=sweep", "columns=[val/loss,val/nothing]")
    found = table("sweep")
    assert list(found[0]) == ["state", "label_dropout", "seed", "returned", "val/loss", "val/nothing", "folder"]
    assert [row["state"] for row in found] == ["finished"] * 2 + ["failed"] * 2
    values = [float(row["returned"]) for row in found if row["returned"]]
    assert values == sorted(values)
    assert all(row["returned"] == row["val/loss"] for row in found)
    said = capsys.readouterr().out
    assert "failed: label_dropout=7 must be at most 1" in said
    assert "in the order of val/loss, the smallest first" in said
    assert "no point has a val/nothing" in said
    with Image.open("runs/sweep/summary.png") as picture:
        assert min(picture.size) > 100


def test_an_unfinished_point_resumes(ldm, pipeline):
    """What is not swept does not name the folder: more steps go on with the same points."""
    sweep = ["-m", "run=sweep", *TINY_DIFFUSION, *CPU, f"latents={pipeline}/runs/latents", "seed=0,1"]
    ldm("train-diffusion", *sweep, "steps=2")
    ldm("train-diffusion", *sweep, "steps=4")
    for seed in (0, 1):
        assert "resumes from 00000002.ckpt" in Path(f"runs/sweep/seed={seed}/log.txt").read_text()
        assert json.loads(Path(f"runs/sweep/seed={seed}/point.json").read_text())["finished"]
    assert len(list(Path("runs/sweep").glob("*/"))) == 2


def test_a_sweep_from_before_goes_on_in_its_folders(ldm, pipeline):
    """Points used to be named by all overrides."""
    ldm("sample", "-m", "run=sweep", f"model={pipeline}/runs/diffusion", "num=1", "sampler.steps=1", "seed=0,1")
    words = ["sampler.steps=1", f"model={pipeline}/runs/diffusion".replace("/", "%2F"), "num=1"]
    old = {seed: Path("runs/sweep", ",".join(sorted([*words, f"seed={seed}"]))) for seed in (0, 1)}
    Path("runs/sweep/seed=0").rename(old[0])
    before = (old[0] / "samples.npz").stat().st_mtime_ns
    ldm("sample", "-m", "run=sweep", f"model={pipeline}/runs/diffusion", "num=1", "sampler.steps=1", "seed=0,1,2")
    assert sorted(path.name for path in Path("runs/sweep").glob("*/")) == sorted([old[0].name, "seed=1", "seed=2"])
    assert (old[0] / "samples.npz").stat().st_mtime_ns == before  # finished: skipped
    ldm("summarize", "run=sweep")
    assert [row["seed"] for row in table("sweep")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["num=7", "sampler=euler,ddim"], ["sampler=ddim", "sampler=euler"]),
        (["seed=0,1", "num=1,2"], ["num=1,seed=0", "num=1,seed=1", "num=2,seed=0", "num=2,seed=1"]),
        (["seed=choice(3)", "num=7"], ["seed=3"]),
        (["seed=3", "device=cpu"], ["seed=3"]),
        ([], ["point"]),
        (["num_workers=0,1"], None),  # no key of ldm sample's: refused before anything is made
        (["batch_size=1,2", "device=cpu"], ["batch_size=1", "batch_size=2"]),
        (["model='a b','c/d'"], ["model=a b", "model=c%2Fd"]),
        (["run=a,b"], []),  # runs/a/point, runs/b/point
        (["hydra.sweep.subdir=by_${seed}", "seed=4,5"], ["by_4", "by_5"]),
    ],
)
def test_points_are_named_by_what_the_sweep_varies(ldm, words, names):
    with pytest.raises(SystemExit):  # there is no model: the cards say so
        ldm("sample", "-m", "run=sweep", *words)
    assert Path("runs/sweep").exists() == bool(names)
    assert sorted(points("sweep")) == sorted(names or [])


def test_names_of_folders_are_counted_in_bytes_and_unique(ldm):
    folders = ["图像" * 40, "图像" * 40 + "一", "图像" * 39, "a%2Fb", "a/b"]
    listed = ",".join(f'"{folder}"' for folder in folders)
    with pytest.raises(SystemExit):
        ldm("sample", "-m", "run=sweep", f"model={listed}")
    cards = points("sweep")
    assert sorted(card["config"]["model"] for card in cards.values()) == sorted(folders)
    assert max(len(name.encode()) for name in cards) <= LONGEST


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of optuna's plugin
def test_optuna_searches_what_the_command_returns(ldm, pipeline):
    search = [
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "hydra.sweeper.n_trials=3",
        f"latents={pipeline}/runs/latents",
    ]
    ldm("train-diffusion", "-m", "sweep=optuna", "run=search", *POINT, *search)
    cards = points("search")
    found = {card["config"]["optimizer"]["lr"]: card["value"] for card in cards.values()}
    assert len(found) == 3
    assert sorted(cards) == sorted(f"optimizer.lr={rate}" for rate in found)
    best = Path("runs/search/optimization_results.yaml").read_text()
    assert f"best_value: {min(found.values())}" in best


@pytest.mark.slow
def test_points_side_by_side(ldm, pipeline):
    """joblib's workers are processes of their own; two points, two folders."""
    options = [f"model={pipeline}/runs/diffusion", "num=1", "sampler.steps=1"]
    ldm("sample", "-m", "launcher=joblib", "run=sweep", *options, "seed=0,1")
    assert {name: card["finished"] for name, card in points("sweep").items()} == {"seed=0": True, "seed=1": True}


def point(folder, config, value, *, command="train_diffusion", error=None, **about):
    """A point's card, as `run_point` writes it; `about` is what version 0.2 added."""
    state = {"finished": error is None, "value": value, "error": error}
    about = {"command": command, "choices": {}, "log": None, **about} if "swept" in about else about
    Path("runs/sweep", folder).mkdir(parents=True)
    Path("runs/sweep", folder, "point.json").write_text(json.dumps({"config": config, **state, **about}))


def objective(name, weight):
    return {"parameterization": name, "weighting": {"_target_": weight}, "sampling": {"steps": len(name)}}


def test_losses_of_unlike_objectives_are_not_ranked(ldm, capsys):
    for name, loss in (("flow", 0.9), ("ddpm", 0.1), ("edm", 0.5)):
        config = {"objective": objective(name, "W"), "returns": "val/loss", "seed": 0}
        point(f"objective={name}", config, loss, swept={"objective": name})
        Path(f"runs/sweep/objective={name}/metrics").mkdir()
        score = {"frechet_distance": {"value": {"flow": 1.0, "ddpm": 3.0, "edm": 2.0}[name]}}
        score |= {"samples": {}, "versions": {}}
        Path(f"runs/sweep/objective={name}/metrics/metrics.json").write_text(json.dumps(score))
    ldm("summarize", "run=sweep")
    assert list(table("sweep")[0]) == ["state", "objective", "returned", "folder"]
    assert [row["objective"] for row in table("sweep")] == ["ddpm", "edm", "flow"]  # by name
    said = capsys.readouterr().out
    assert "val/loss is another function for points that differ in objective, so they are not ranked by it" in said
    assert "columns=[frechet_distance]" in said
    assert "first" not in said
    ldm("summarize", "run=sweep", "columns=[frechet_distance]")
    assert [row["objective"] for row in table("sweep")] == ["flow", "edm", "ddpm"]
    assert "in the order of frechet_distance, the smallest first" in capsys.readouterr().out


def test_losses_of_one_objective_are_ranked_whatever_samples_it(ldm):
    for steps, loss in ((1, 0.9), (10, 0.1), (2, 0.5)):
        config = {"objective": {"parameterization": "v", "sampling": {"steps": steps}}, "returns": "val/loss"}
        point(f"{steps}", config, loss, swept={"objective.sampling.steps": f"{steps}"})
    ldm("summarize", "run=sweep")
    assert [row["objective.sampling.steps"] for row in table("sweep")] == ["10", "2", "1"]
    ldm("summarize", "run=sweep", "best=max")
    assert [row["objective.sampling.steps"] for row in table("sweep")] == ["1", "2", "10"]


def test_a_metric_says_itself_which_way_is_better(ldm):
    for rate, psnr in ((0.1, 20.0), (0.2, 30.0), (0.4, None)):
        error = None if psnr else "no memory"
        point(
            f"{rate}",
            {"optimizer": {"lr": rate}, "returns": "val/psnr"},
            psnr,
            swept={"optimizer.lr": f"{rate}"},
            error=error,
        )
    ldm("summarize", "run=sweep")
    assert [row["optimizer.lr"] for row in table("sweep")] == ["0.2", "0.1", "0.4"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_point_that_returns_what_is_not_finite_has_failed(tmp_path, value):
    card = PointCard(tmp_path, writes=True)
    card.start({"seed": 0}, {"command": "train_diffusion"})
    with pytest.raises(ValueError, match=f"returns {value}, which no sweep can rank: its metrics.csv says since when"):
        card.finish(value)
    card.fail("so it is")  # as `run_point` does then
    content = json.loads((tmp_path / "point.json").read_text())
    assert (content["finished"], content["value"], content["error"]) == (False, None, "so it is")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("point.json", "", "is damaged, not JSON"),
        ("point.json", "[]", "it is [], not a group of keys"),
        ("point.json", '{"value": "3"}', "value is 3, not a number: remove it, and run the same sweep again"),
        ("point.json", '{"value": NaN}', "NaN is no number of JSON"),
        ("point.json", '{"finished": 1}', "finished is 1, not true or false"),
        ("metrics.json", "{", "is damaged, not JSON"),
        ("metrics.json", '{"samples": {}, "versions": {}, "x": {"value": NaN}}', "NaN is no number of JSON"),
        ("metrics.json", '{"samples": {}, "versions": {}, "x": 3}', "x is 3, not a group of keys"),
        ("metrics.json", '{"samples": {}, "versions": {}, "x": {"value": "3"}}', "x.value is 3, not a number"),
    ],
)
def test_damaged_files_of_a_point(ldm, name, content, said):
    point("a", {}, 1.0, swept={"seed": "0"})
    Path("runs/sweep/a", name).write_text(content)
    line = fails("summarize", "run=sweep", "columns=[x]")
    assert f"runs/sweep/a/{name}" in line
    assert said in line


def test_damaged_rows_and_what_is_not_finite_come_last(ldm, capsys):
    """Points of unlike losses are ranked by a column, here of metrics.csv."""
    tables = {"a": "nan", "b": "2.0", "c": "inf", "d": "1.0", "e": "-inf"}
    for name, value in tables.items():
        config = {"objective": objective(name, name), "returns": "val/loss"}
        point(name, config, 1.0, swept={"objective": name})
        Path(f"runs/sweep/{name}/metrics.csv").write_text(f"step,val/x\n1,{value}\n")
    with Path("runs/sweep/b/metrics.csv").open("ab") as file:
        file.write(b"\xff\x00,\n2,")
    ldm("summarize", "run=sweep", "columns=[val/x]")
    assert [row["val/x"] for row in table("sweep")] == ["1.0", "2.0", "nan", "inf", "-inf"]
    assert "runs/sweep/b/metrics.csv is damaged: 1 of its 3 rows can't be read" in capsys.readouterr().out


def test_what_differs_beside_the_swept_keys_is_a_column_too(ldm):
    """Two lines have filled the sweep, the second with more steps; the first one's cards do not say what was swept."""
    point("seed=0", {"seed": 0, "steps": 10, "net": {"width": 1}, "returns": "val/loss"}, 1.0)
    point("seed=1", {"seed": 1, "steps": 20, "net": {"width": 1}, "returns": "val/loss"}, 2.0, swept={"seed": "1"})
    ldm("summarize", "run=sweep")
    assert [(row["seed"], row["steps"]) for row in table("sweep")] == [("0", "10"), ("1", "20")]
    assert "width" not in ",".join(table("sweep")[0])


def test_labels_of_the_picture_are_whole(ldm):
    """The picture is as much wider as its longest label needs."""
    widths = []
    for length in (5, 80):
        for i in range(2):
            name = "$" + "x" * length + f"${i}"  # which is no formula
            point(f"{length}-{i}", {"net": {"name": name}}, 1.0, swept={"net.name": name})
        ldm("summarize", "run=sweep")
        with Image.open("runs/sweep/summary.png") as picture:
            widths.append(picture.width)
            border = np.asarray(picture.convert("L"))
        assert border[:, :8].min() == border[:, -8:].min() == 255  # nothing is cut at the sides
        shutil.rmtree("runs/sweep")
    assert widths[1] - widths[0] > 75 * 4


@pytest.mark.slow
def test_the_probe_ranks_autoencoders_and_resumes(ldm):
    quoted = ",".join(f"'{option}'" for option in [*TINY_DIFFUSION, *CPU])
    samples, metrics = "probe.samples=['num=64','sampler.steps=2','guidance=1']", "probe.metrics=['lpips=null']"
    small = [f"probe.diffusion=[{quoted}]", samples, metrics]
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\n# ldm probe experiment=mine\nseed: 3\n")
    options = [*TINY_AUTOENCODER, *CPU, *small, "regularizer.weight=1e-6,1", "experiment=mine"]
    for _ in range(2):
        ldm("probe", "-m", "--config-dir", "own", "run=probe", "hydra.sweep.subdir=${regularizer.weight}", *options)
    cards = points("probe")
    assert len(cards) == 2
    for name, card in cards.items():
        metrics = json.loads(Path(f"runs/probe/{name}/metrics/metrics.json").read_text())
        assert metrics["frechet_distance"]["value"] == card["value"]
        assert metrics["frechet_distance"]["depends"]["samples"] == 64
    ldm("summarize", "run=probe", "columns=[reconstruction/psnr]")
    assert all(float(row["reconstruction/psnr"]) > 0 for row in table("probe"))
