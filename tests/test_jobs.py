"""What jobs/ holds beside the chain that test_slurm.py runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
        for who in ("ours", "theirs"):
            assert row[who]["gflop_per_image"] == pytest.approx(row["ours"]["gflop_per_image"], rel=0.01)
    (trained,) = (row for row in rows if row["section"] == "train")
    assert trained["speed/images_per_s"] > 0
    assert {path.name for path in tmp_path.iterdir()} >= {"unet_step.json.gz", "unet_step.txt", "encoding.json.gz"}
    assert "compile=reduce-overhead: passed over" in said


def test_the_dashboard_is_made_offline_and_shows_what_is_logged(pipeline):
    command = [sys.executable, ROOT / "jobs/dashboard.py", "--print"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
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
