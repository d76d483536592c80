"""What jobs/ holds beside the chain that test_slurm.py runs."""

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from string import Template

import kubernetes_validate
import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from ldm.commands.train_diffusion import TrainDiffusionOptions

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "script", sorted(ROOT.glob("jobs/*.sh")) + sorted(ROOT.glob("jobs/*.sbatch")), ids=lambda p: p.name
)
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", sorted(ROOT.glob("jobs/*.sbatch")), ids=lambda p: p.name)
def test_each_sbatch_script_says_its_cost_result_and_line(script):
    head = script.read_text().split("#SBATCH")[0]
    assert "# Cost: " in head
    assert "# Result: " in head
    assert f"sbatch jobs/{script.name} run=" in head


def load(script, monkeypatch):
    """A script of jobs/ as a module, beside which its own imports lie."""
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, Path(script).stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
@pytest.mark.parametrize(
    "sections",  # and how many ratios each has
    [
        {"sampler": 0, "cache": 1, "latents": 6},
        pytest.param({"unet": 3, "averages": 1, "autoencoder": 2, "memory": 2, "encoding": 1}, marks=pytest.mark.slow),
    ],
)
def test_the_bench_prints_its_table(sections, monkeypatch, capsys):
    """A line for each comparison, and in all but the sampler's a ratio."""
    monkeypatch.setattr(sys, "argv", ["bench.py", *sections, "--tiny"])
    load("jobs/bench/bench.py", monkeypatch).main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    ratios = [float(ratio) for line in table for ratio in re.findall(r"\*\*([\d.]+)\*\*", line)]
    assert len(ratios) == sum(sections.values())
    assert min(ratios) > 0
    assert len(table) == len(ratios) + 3 * ("sampler" in sections)


def test_the_toy_draws_and_scores(monkeypatch, capsys, tmp_path):
    load("jobs/toy.py", monkeypatch).main(tmp_path / "toy.png", steps=2, samples=200, likelihood_steps=2)
    assert (tmp_path / "toy.png").stat().st_size > 10_000
    assert re.search(r"\| OT-flow \|( \d\.\d{3} \|){6}", capsys.readouterr().out)


def test_samplers_are_compared(monkeypatch, pipeline, capsys, tmp_path):
    for objective in ("ddpm", "flow", "ot_flow"):
        (pipeline / f"runs/compare-{objective}").symlink_to("diffusion")
    load("jobs/compare.py", monkeypatch).main(pipeline / "runs", tmp_path / "compare.png", budgets=(2,), num=20)
    table = json.loads((tmp_path / "compare.json").read_text())
    assert len(table) == 5
    assert all(0 <= row["accuracy"] <= 1 and row["distance"] > 0 for (row,) in table.values())
    assert (tmp_path / "compare.png").stat().st_size > 5_000
    assert "| flow, heun |" in capsys.readouterr().out


def test_students_are_compared(monkeypatch, pipeline, capsys, tmp_path):
    runs = tmp_path / "runs"
    (runs / "students").mkdir(parents=True)
    for name in ("diffusion", "reflow", "meanflow", "consistent", "students/1"):  # one network stands for all
        (runs / name).symlink_to(pipeline / "runs/diffusion")
    load("jobs/students.py", monkeypatch).main(runs, tmp_path / "students.png", num=20)
    table = json.loads((tmp_path / "students.json").read_text())
    assert {name: len(rows) for name, rows in table.items()} == {
        "teacher": 4, "progressive": 1, "reflow": 4, "MeanFlow": 4, "consistency": 4,
    }  # fmt: skip
    assert [row["evaluations"] for row in table["consistency"]] == [1, 2, 4, 8]
    assert (tmp_path / "students.png").stat().st_size > 5_000
    (runs / "students/1").unlink()  # whose picture would be missing among those by one evaluation
    with pytest.raises(ValueError, match="students/1 holds no checkpoint"):
        load("jobs/students.py", monkeypatch).main(runs, tmp_path / "students.png", num=20)
    assert "| MeanFlow |" in capsys.readouterr().out


def test_sheets_become_a_folder(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    for i, sheet in enumerate((images[:3], images[3:])):
        Image.fromarray(sheet.reshape(-1, 8, 3)).save(tmp_path / f"sheet{i}.png")
    (tmp_path / "train_labels.txt").write_text("1\n0\n1\n1\n0\n")
    options = ["--pattern", "sheet{}.png", "--size", "8", "--classes", "cat,dog"]
    monkeypatch.setattr(sys, "argv", ["sheets_to_folder.py", str(tmp_path), str(tmp_path / "out"), *options])
    load("jobs/sheets_to_folder.py", monkeypatch).main()
    files = {path.stem: path for path in (tmp_path / "out").rglob("*.png")}
    for i, name in enumerate(("dog", "cat", "dog", "dog", "cat")):
        assert files[f"{i:06d}"].parent.name == name
        assert np.array_equal(np.asarray(Image.open(files[f"{i:06d}"])), images[i])


@pytest.mark.slow
def test_the_gpu_bench_runs_its_sections_on_a_cpu(tmp_path):
    command = [sys.executable, ROOT / "jobs/bench/bench_gpu.py", "--tiny", "--device", "cpu", "--out", tmp_path]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in (tmp_path / "bench_gpu.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "error" in row]
    compared = [row for row in rows if row["section"] in ("step", "encode", "factors")]
    assert len(compared) == 7
    for row in compared:
        assert 0 < row["min"] <= row["ratio"] <= row["max"]
        for who in ("ldm", "diffusers"):
            assert row[who]["gflop_per_image"] == pytest.approx(row["ldm"]["gflop_per_image"], rel=0.01)
    (trained,) = (row for row in rows if row["section"] == "train")
    assert trained["speed/images_per_s"] > 0
    assert {path.name for path in tmp_path.iterdir()} >= {"unet_step.json.gz", "unet_step.txt", "encoding.json.gz"}
    assert "compile=reduce-overhead: passed over" in said


def test_the_dashboard_is_made_offline_and_shows_what_is_logged(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", "--print"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what wandb_workspaces asks of pydantic
        runpy.run_path(str(ROOT / "jobs/dashboard.py"), run_name="__main__")
    made = capsys.readouterr().out
    json.loads(made)
    header = [
        (pipeline / f"runs/{run}/metrics.csv").read_text().splitlines()[0] for run in ("autoencoder", "diffusion")
    ]
    logged = {name for line in header for name in line.split(",")} | {"reconstructions", "logits", "samples", "images"}
    elsewhere = {"val/rfd", "speed/mfu", "speed/gpu_memory_gb"}  # with features, on a GPU
    shown = set(re.findall(r'"((?:train|val|speed|val_by_time|latent_std)/[\w.]+)"', made))
    channels_and_times = {name for name in shown if name.startswith(("latent_std/", "val_by_time/"))}
    assert shown - elsewhere - channels_and_times <= logged
    assert len(shown) > 30


def in_clouds(name):
    """A cloud's file of jobs/, and the shell that it runs, with what its environment gives."""
    whole = yaml.safe_load((ROOT / "jobs" / name).read_text())
    if name == "skypilot.yaml":
        return whole, whole["run"], whole["envs"]
    (container,) = whole["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    return whole, container["args"][0], {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("name", ["skypilot.yaml", "jobset.yaml"])
def test_a_cloud_s_command_composes(name):
    _, shell, given = in_clouds(name)
    subprocess.run(["bash", "-n"], input=shell, text=True, check=True)
    words = shlex.split(shell.replace("\\\n", " "))
    overrides = [Template(word).substitute(given) for word in words[words.index("train-diffusion") + 1 :]]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train_diffusion", overrides)
    options = TrainDiffusionOptions.of(OmegaConf.to_container(config, resolve=True))
    assert options.store == given["STORE"]
    assert options.global_batch == 512


def test_skypilot_reads_its_file():
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    task = sky.Task.from_yaml(str(ROOT / "jobs/skypilot.yaml"))
    assert task.num_nodes == 2


def test_the_pods_of_the_jobset_are_as_its_controller_makes_them():
    whole, shell, _ = in_clouds("jobset.yaml")
    (nodes,) = whole["spec"]["replicatedJobs"]
    job = nodes["template"]["spec"]
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["completions"] == job["parallelism"] == int(re.search(r"--nnodes=(\d+)", shell)[1])
    name = whole["metadata"]["name"]  # JobSet's name of the first pod, and of its service
    assert f"--master-addr={name}-{nodes['name']}-0-0.{name}" in shell
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(re.search(r"--nproc-per-node=(\d+)", shell)[1])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_takes_the_jobset_s_job():
    whole, _, _ = in_clouds("jobset.yaml")
    for each in whole["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": each["name"]}}
        kubernetes_validate.validate(job | {"spec": each["template"]["spec"]}, "1.33", strict=True)
