"""`ldm estimate`: against what the commands then count and write, and what each recipe by budget says of itself."""

import math
import re
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from support.config import CONF, composed
from support.tiny import CPU, TINY_AUTOENCODER, TINY_DIFFUSION, fails, inside

from ldm.commands import completion
from ldm.commands.cli import COMMANDS
from ldm.commands.config_files import ESTIMATED, of_estimate
from ldm.commands.estimate import COSTS, given_by, options_of
from ldm.runtime.gpus import GPUS, named
from ldm.training.cost import GIB

ROOT = Path(__file__).parents[2]


def cost_of(command, *words):
    own, others = of_estimate(command, list(words))
    given = given_by(own)
    return COSTS[command](options_of(command, others), given, gpu=given.gpu != "cpu"), given


# recipes by budget


@pytest.mark.parametrize(
    "recipe", ["photos256_12gb", *(pytest.param(f"photos256_{r}", marks=pytest.mark.slow) for r in ("24gb", "decoder"))]
)
def test_a_recipe_fits_its_card_in_the_hours_that_it_says(recipe):
    text = " ".join((CONF / f"experiment/{recipe}.yaml").read_text().replace("\n#", "").split())
    line = re.search(r"Not measured, estimated by `ldm estimate (\S+) (.*?)`: (\d+) GiB, (\d+) hours at 15 %", text)
    command, words, gib, hours = line[1], line[2].split(), int(line[3]), int(line[4])
    cost, given = cost_of(command, *words)
    device = given.device()
    assert cost.fits(device)
    assert device.memory == {"photos256_24gb": 24}.get(recipe, 12)
    assert cost.peak / GIB == pytest.approx(gib, abs=1)
    assert hours - 1 < cost.hours(device, given.share) <= hours


def test_the_laptops_recipe_takes_half_an_hour_at_the_speed_that_was_measured():
    minutes = 0.0
    for recipe in ("photos64_cpu_autoencoder", "photos64_cpu"):
        text = " ".join((CONF / f"experiment/{recipe}.yaml").read_text().replace("\n#", "").split())
        command = text.split("ldm ")[1].split()[0]
        said, rate = map(int, re.search(r"(\d+) minutes at the (\d+) images/s", text).groups())
        extra = ["latent_shape=[4,16,16]", "ae=small_f4"] if command == "train-diffusion" else []
        cost, _ = cost_of(command, f"experiment={recipe}", "gpu=cpu", "tflops=0.1", *extra)
        assert cost.images / rate / 60 == pytest.approx(said, abs=0.6)
        assert cost.peak < 2 * GIB
        minutes += said
    assert minutes <= 30


@pytest.mark.slow
@pytest.mark.parametrize(("f", "extra"), [("f8", []), ("f4", ["ae=kl_f4"])])
def test_imagenets_recipes_cost_what_their_heads_say(f, extra):
    cost, given = cost_of("train-diffusion", f"experiment=imagenet256_{f}", "num_classes=1000", "gpu=h100", *extra)
    text = " ".join((CONF / f"experiment/imagenet256_{f}.yaml").read_text().replace("\n#", "").split())
    hours = cost.hours(given.device(), given.share)
    said = [float(n) for n in re.search(r"([\d.]+) hours, (\d+) GPU-hours", text).groups()]
    assert [hours, hours * cost.ranks] == pytest.approx(said, rel=0.02)
    assert cost.fits(given.device())


def test_the_share_of_peak_is_assumed_in_one_place():
    share = composed("estimate").share
    said = re.search(r"A GPU does (\d+) % of its dense peak", (ROOT / "docs/scale.md").read_text())
    assert share == int(said[1]) / 100


# what is counted


def test_a_cache_tells_shape_and_classes_and_a_checkpoint_takes_the_room_that_was_said(ldm, pipeline):
    inside(pipeline, ldm)
    cost, _ = cost_of("train-diffusion", *TINY_DIFFUSION, *CPU, "gpu=cpu", "tflops=1")
    assert not [line for line in cost.said if "is not there" in line]
    (disk,) = cost.disk.values()
    file = sorted(Path("runs/diffusion/checkpoints").glob("*.ckpt"))[-1]
    assert disk / 3 == pytest.approx(file.stat().st_size, rel=0.1)  # keep=2, and the one that is being written
    assert cost.images == 4 * 8


def test_stage_1s_checkpoint_too(ldm, pipeline):
    inside(pipeline, ldm)
    cost, _ = cost_of("train-autoencoder", *TINY_AUTOENCODER, *CPU, "gpu=cpu", "tflops=1")
    file = sorted(Path("runs/autoencoder/checkpoints").glob("*.ckpt"))[-1]
    assert next(iter(cost.disk.values())) / 3 == pytest.approx(file.stat().st_size, rel=0.1)


def test_the_caches_room_is_that_of_its_shards(ldm, pipeline):
    inside(pipeline, ldm)
    cost, _ = cost_of("cache-latents", "gpu=cpu", "tflops=1")
    assert cost.images == 1797
    assert cost.disk["cache"] == pytest.approx(
        sum(f.stat().st_size for f in Path("runs/latents").glob("*.tar")), rel=0.05
    )


@pytest.mark.parametrize(("sampler", "steps", "evaluations"), [("euler", 7, 7), ("heun", 5, 10), ("rk4", 3, 11)])
def test_a_sample_costs_its_evaluations(ldm, pipeline, sampler, steps, evaluations):
    inside(pipeline, ldm)
    words = [f"sampler={sampler}", f"sampler.steps={steps}", "num=10", "gpu=cpu", "tflops=1"]
    unguided, guided = (cost_of("sample", *words, f"guidance={g}")[0] for g in (1, 2))
    assert f"{evaluations} evaluations" in unguided.said[0]
    network = (guided.flops - unguided.flops) / evaluations
    once, _ = cost_of("train-diffusion", *TINY_DIFFUSION, "gpu=cpu", "tflops=1")
    assert network == pytest.approx(once.flops / 3)


def test_ranks_share_images_and_hold_buckets_or_shards():
    words = ["net.model_channels=24", "ae=digits", "resolution=32", "gpu=a100", "batch_size=8"]
    one, ddp = cost_of("train-diffusion", *words)[0], cost_of("train-diffusion", *words, "trainer.devices=4")[0]
    fsdp, given = cost_of("train-diffusion", *words, "trainer.devices=4", "trainer.strategy=fsdp")
    assert ddp.images == 4 * one.images
    assert ddp.peak - one.peak == one.memory["gradients"]
    assert fsdp.memory["optimizer"] == one.memory["optimizer"] / 4
    assert ddp.hours(given.device(), 0.2) == pytest.approx(one.hours(given.device(), 0.2))
    assert one.hours(given.device(), 0.2) == 2 * one.hours(given.device(), 0.4)


@pytest.mark.parametrize(
    ("name", "lightnings"), [("v100", "v100-sxm2"), ("t4", "t4"), ("a100", "a100"), ("a100_80gb", "a100"), ("l4", "l4")]
)
def test_the_table_is_lightnings_where_that_is_dense(name, lightnings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: lightnings)
    kind = torch.float16 if named(name).half_type == "fp16" else torch.bfloat16
    known = get_available_flops(torch.device("cuda"), kind)
    assert known / 1e12 == pytest.approx(named(name).half, rel=0.01)


# as a user meets it


def test_it_says_what_does_not_fit_and_what_to_turn(ldm, capsys):
    ldm("estimate", "train-diffusion", "net=small", "batch_size=64", "tflops=20", "memory_gb=3")
    said = capsys.readouterr().out
    assert "it does NOT fit (a GPU: 3 GiB, 1 of them for CUDA itself)" in said
    turns = re.findall(r"turn (\S+): ([\d.]+) GiB, (which fits|too much)", said)
    assert {"trainer.precision=bf16-mixed", "net.checkpoint=true"} <= {key for key, *_ in turns}
    assert all((float(gib) <= 2) == (fits == "which fits") for _, gib, fits in turns)
    assert not list(Path().iterdir())  # it writes nothing


def test_data_and_weights_need_not_be_there(ldm, capsys):
    ldm(
        "estimate",
        "train-autoencoder",
        "data=folder",
        "data.resolution=32",
        "loss.perceptual_pretrained=true",
        "gpu=t4",
    )
    assert "GFLOP an image trained" in capsys.readouterr().out
    ldm(
        "estimate",
        "cache-latents",
        "data=folder",
        "data.resolution=64",
        "autoencoder=runs/none",
        "images=1000",
        "gpu=l4",
    )
    said = capsys.readouterr().out
    assert "cache 2.05 MB" in said  # 1,000 images, two views of 8 x 8 x 8 numbers of 2 bytes
    assert math.prod([1000, 2, 8, 8, 8, 2]) == 2_048_000
    assert not list(Path().iterdir())


def test_mistakes_are_told_in_a_line(ldm):
    assert "the command must be one of train-autoencoder" in fails("estimate", "evaluate", "gpu=a100")
    line = fails("estimate", "train-diffusion", "gpu=rtx9999")
    assert all(name in line for name in GPUS)
    assert "pass memory_gb=, too" in fails("estimate", "train-diffusion", "tflops=20")
    assert "share" in fails("estimate", "train-diffusion", "gpu=a100", "share=15")
    assert "did you mean" in fails("estimate", "train-diffusion", "gpu=a100", "batchsize=3")
    assert "is for another command" in fails("estimate", "train-diffusion", "experiment=kl_f8", "gpu=a100")
    assert "takes KEY=VALUE" in fails("estimate", "train-diffusion", "-m", "gpu=a100")
    assert not list(Path().iterdir())


def test_completion_knows_both_commands_words():
    def found(line):
        return completion.candidates(line, list(COMMANDS))

    assert found("ldm estimate train-d") == ["train-diffusion"]
    assert found("ldm estimate ") == list(ESTIMATED)
    assert found("ldm estimate train-diffusion gp") == ["gpu="]
    assert found("ldm estimate train-diffusion net.ch") == ["net.channel_mult=", "net.checkpoint="]
