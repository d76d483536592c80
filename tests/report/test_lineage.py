"""From any run to its whole chain: which runs, by whose fingerprints, with which figures; and what is said of holes."""

import csv
import shutil
from pathlib import Path

import pytest
from support.tiny import inside, run_command

from ldm.checkpoint import load_autoencoder, load_diffusion
from ldm.commands.recipes import lineage_of
from ldm.evaluation.result_files import MetricsFile, SampleStamp

CHAIN = ["autoencoder", "latents", "diffusion", "samples", "scores"]


def kinds(lineage):
    return [stage.kind for stage in lineage.stages]


@pytest.mark.parametrize("start", ["autoencoder", "latents", "diffusion", "samples", "metrics"])
def test_each_run_leads_to_the_whole_chain(whole, monkeypatch, start):
    monkeypatch.chdir(whole)
    lineage = lineage_of(Path("runs", start))
    assert kinds(lineage) == CHAIN
    assert lineage.problems == ()
    assert [problem for stage in lineage.stages for problem in stage.problems] == []
    assert {stage.run for stage in lineage.stages} == {
        Path("runs", name) for name in ("autoencoder", "latents", "diffusion", "samples", "metrics")
    }


def test_stages_are_what_their_files_say(whole, monkeypatch):
    monkeypatch.chdir(whole)
    autoencoder, latents, diffusion, samples, scores = lineage_of(Path("runs/metrics")).stages
    assert autoencoder.fingerprints[0] == load_autoencoder("runs/autoencoder").fingerprint
    assert diffusion.fingerprints == (
        load_diffusion("runs/diffusion").fingerprint,
        load_diffusion("runs/diffusion", weights="raw").fingerprint,
    )
    net = load_diffusion("runs/diffusion").net
    assert diffusion.facts["parameters"] == sum(p.numel() for p in net.state_dict().values())
    assert (diffusion.facts["batches"], diffusion.facts["images"]) == (4, 32)
    assert latents.facts["images"] == 1500
    assert samples.facts["guidance"] == 1.5
    assert samples.fingerprints == (SampleStamp.read(Path("runs/samples/sample.json")).sha256,)
    metrics = MetricsFile.read(Path("runs/metrics/metrics.json"))
    values = {score.name: score.value for score in scores.scores}
    assert values["frechet_distance"] == metrics.value("frechet_distance")
    assert values["reconstruction psnr"] == metrics.value("reconstruction/psnr")
    assert {score.name: score.depends for score in scores.scores}["class_accuracy"]["samples"] == 23
    assert [picture.kind for picture in samples.pictures] == ["samples", "trajectory"]
    assert [picture.path.name for picture in autoencoder.pictures] == ["00000002.png", "00000004.png"]
    assert "guidance=1.5" in samples.recipe.words


def test_cost_is_what_was_logged(whole, monkeypatch):
    monkeypatch.chdir(whole)
    cost = lineage_of(Path("runs/diffusion")).of_kind("diffusion")[0].cost
    with open("runs/diffusion/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["speed/images_per_s"]]
    parts = ("data", "forward", "backward", "optimizer", "rest")
    assert len(rows) == 4  # one a batch
    assert cost.seconds == pytest.approx(sum(float(row[f"speed/{part}_s"]) for row in rows for part in parts), rel=1e-3)
    assert (cost.images, cost.batches, cost.ranks) == (32, 4, 1)
    total = sum(float(row["speed/tflops"]) * 1e12 * 8 / float(row["speed/images_per_s"]) for row in rows)
    assert cost.flops == pytest.approx(total, rel=1e-3)
    samples = lineage_of(Path("runs/diffusion")).of_kind("samples")[0].cost
    assert (samples.seconds, samples.flops, samples.evaluations) == (None, None, 4)


def test_a_chain_that_was_moved_is_found_again(runs, monkeypatch):
    runs.rename("elsewhere")
    assert kinds(lineage_of(Path("elsewhere/metrics"))) == CHAIN
    monkeypatch.chdir("elsewhere/metrics")
    assert kinds(lineage_of(Path("."))) == CHAIN


@pytest.mark.parametrize(
    ("gone", "left", "said"),
    [
        ("samples", ["autoencoder", "latents", "diffusion", "scores"], "The samples that runs/metrics were made from"),
        ("diffusion", ["autoencoder", "samples", "scores"], "The diffusion model that runs/samples were made from"),
        ("latents", ["autoencoder", "diffusion", "samples", "scores"], "The latent cache that runs/diffusion was made"),
        ("autoencoder", CHAIN[1:], "The autoencoder that runs/latents were made from"),
    ],
)
def test_a_run_that_is_gone_is_named(runs, gone, left, said):
    shutil.rmtree(runs / gone)
    lineage = lineage_of(runs / "metrics")
    assert kinds(lineage) == left
    assert any(said in problem for problem in lineage.problems), lineage.problems


@pytest.mark.parametrize(
    "file",
    [
        "autoencoder/checkpoints/00000004.ckpt",
        "latents/manifest.json",
        "diffusion/checkpoints/00000004.ckpt",
        "samples/sample.json",
        "metrics/metrics.json",
    ],
)
def test_a_damaged_file_is_named(runs, file):
    content = (runs / file).read_bytes()
    (runs / file).write_bytes(content[: len(content) // 2])
    lineage = lineage_of(runs / "metrics")
    said = [problem for stage in lineage.stages for problem in stage.problems] + [*lineage.problems]
    assert [problem for problem in said if f"runs/{file}" in problem], said
    assert all("\n" not in problem for problem in said)
    assert kinds(lineage) == CHAIN  # an older checkpoint, or none, and the paths that are left


def test_a_config_that_is_damaged_is_named(runs):
    (runs / "latents/config.yaml").write_text("a: [")
    lineage = lineage_of(runs / "metrics")
    assert "latents" not in kinds(lineage)
    assert any("runs/latents/config.yaml is damaged" in problem for problem in lineage.problems)


def test_a_model_that_was_trained_on_is_not_taken_for_what_it_was(runs):
    stamp = SampleStamp.read(runs / "samples/sample.json").model_dump() | {"model": 16 * "0"}
    SampleStamp(**stamp).write(runs / "samples/sample.json")
    lineage = lineage_of(runs / "samples")
    assert any("no longer the diffusion model" in problem and 16 * "0" in problem for problem in lineage.problems)


def test_a_run_that_has_only_begun(runs):
    for name in ("checkpoints", "samples", "reconstructions"):
        shutil.rmtree(runs / "diffusion" / name, ignore_errors=True)
    (runs / "diffusion/metrics.csv").unlink()
    lineage = lineage_of(runs / "diffusion")
    (stage,) = lineage.of_kind("diffusion")
    assert "holds no checkpoint" in stage.problems[0]
    assert (stage.cost.seconds, stage.cost.images, stage.cost.flops) == (None, None, None)


def test_what_is_no_run_is_refused(ldm, pipeline):
    inside(pipeline, ldm)
    Path("empty").mkdir()
    for path in (Path("nowhere"), Path("empty"), Path("runs/autoencoder/log.txt")):
        with pytest.raises(ValueError, match=f"^{path} ") as info:
            lineage_of(path)
        assert "\n" not in str(info.value)


def test_other_commands_lead_up_too(runs):
    run_command("sample", "run=strips", "num=2", "sampler.steps=1", "guidance=1", "classes=[3,5]", "interpolation=3")
    run_command("reconstruct", "run=pairs", "autoencoder=runs/autoencoder", "images=runs/samples/grid.png")
    strips = lineage_of(runs / "strips")
    assert [picture.kind for picture in strips.of_kind("samples")[0].pictures] == [
        "samples",
        "trajectory",
        "interpolation",
    ]
    pairs = lineage_of(runs / "pairs")
    assert kinds(pairs) == ["autoencoder", "other"]
    assert [picture.kind for picture in pairs.of_kind("other")[0].pictures] == ["pairs"]
    assert pairs.problems == ()
