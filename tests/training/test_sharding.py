"""Two processes (gloo): fsdp and ddp train what one process trains."""

from pathlib import Path

import pytest
import torch
from support.processes import ranks
from support.runs import assert_close_weights, checkpoint, rows
from support.tiny import CPU, TINY_DIFFUSION
from torch import nn

from ldm.checkpoint import load_diffusion
from ldm.models.unet import UNet
from ldm.training import sharding
from ldm.training.trainer import tune

OPTIONS = [*TINY_DIFFUSION, *CPU, "schedule.decay=constant", "+optimizer.eps=1e-3"]  # Adam's first steps are signs


class Blocks(nn.Module):
    """A network with a part that is sharded with the whole, and two that are sharded by themselves."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(2, 2) for _ in range(3))
        self.blocks = [self.first, self.third]


def test_a_network_says_which_of_its_modules_are_sharded_by_themselves(monkeypatch):
    calls = []
    monkeypatch.setattr(sharding, "fully_shard", lambda module, **_: calls.append(module))
    net, plain, empty = Blocks(), nn.Linear(2, 2), nn.Identity()
    for module in (net, plain, empty):
        sharding.shard(module, None)
    assert calls == [net.first, net.third, net, plain]  # a block before what holds it, as fully_shard wants it
    unet = UNet(
        in_channels=4,
        num_classes=2,
        model_channels=32,
        channel_mult=[1, 2],
        num_res_blocks=1,
        attention_resolutions=[],
        head_channels=32,
    )
    blocks = [unet.middle_block, *unet.input_blocks, *unet.output_blocks]
    assert {id(block) for block in unet.blocks} == {id(block) for block in blocks}


def test_what_is_no_list_of_modules_is_refused():
    plain = nn.Linear(2, 2)
    plain.blocks = 3
    with pytest.raises(ValueError, match=r"net: Linear\.blocks must be modules that it calls one after the other"):
        sharding.blocks_of(plain)


def test_a_sharded_network_is_compiled_block_by_block():
    chosen = {"channels_last": False, "compile": True, "strategy": "fsdp"}
    net, plain = Blocks(), nn.Linear(2, 2)
    _, (callback,) = tune([net], chosen)
    assert callback.modules == [net.first, net.third]
    with pytest.raises(ValueError, match=r"Linear has no attribute blocks: pass trainer.compile=false"):
        tune([plain], chosen)


@pytest.mark.slow
def test_ranks_change_nothing_sharded_or_not(ldm, pipeline):
    latents, scored = f"latents={pipeline}/runs/latents", ["features=pixels", "scored=21"]  # an odd number for two
    ldm("train-diffusion", *OPTIONS, *scored, latents, "run=one")
    ranks("train-diffusion", *OPTIONS, *scored, "batch_size=4", latents, "run=ddp")
    ranks("train-diffusion", *OPTIONS, *scored, "batch_size=4", latents, "run=fsdp", "trainer.strategy=fsdp")
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=parts", "trainer.strategy=fsdp", "steps=2")
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=parts", "trainer.strategy=fsdp")
    found = {run: checkpoint(f"runs/{run}", "diffusion") for run in ("one", "ddp", "fsdp", "parts")}
    for key in ("state_dict", "current_model_state"):
        for run in (
            "ddp",
            "fsdp",
            "parts",
        ):  # shards that were loaded lie elsewhere, and round otherwise: not bit for bit
            for name, tensor in found["one"][key].items():
                torch.testing.assert_close(found[run][key][name], tensor, rtol=1e-5, atol=1e-5)
    distances = [float(rows(f"runs/{run}")[-1]["val/fd"]) for run in ("one", "ddp", "fsdp")]
    assert distances[1:] == pytest.approx([distances[0]] * 2, rel=1e-3)
    load_diffusion("runs/fsdp", "raw")  # the same file as any other
    ranks("train-diffusion", *OPTIONS, "batch_size=4", latents, "run=fsdp", "steps=6")  # goes on by ddp
    assert "resumes from 00000004.ckpt" in Path("runs/fsdp/log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("student", [
    ["objective=meanflow", "objective.student.same=0.25"],
    ["objective=progressive", "net=teacher", "objective.student.steps=2", "objective.student.guidance=2"],
    ["objective=consistency", "objective.student.derivative=0.02", "objective.student.warmup=2"],
], ids=["meanflow", "progressive", "consistency"])  # fmt: skip
def test_ranks_change_no_student_sharded_or_not(ldm, pipeline, student):
    """By differences in place of a derivative, as shards have no forward mode; divided by 2 x 0.02, they round 25 times
    as much, which consistency adds to its targets whole."""
    latents = f"latents={pipeline}/runs/latents"
    own = [word for word in OPTIONS if not word.startswith(("net.", "sampler"))]
    own += [] if "net=teacher" in student else ["net.model_channels=24"]
    taught = [f"teacher={pipeline}/runs/diffusion"] * (student[0] != "objective=meanflow")
    words = ["train-diffusion", *own, latents, *student, *taught]
    ldm(*words, "run=one")
    ranks(*words, "batch_size=4", "run=ddp")
    ranks(*words, "batch_size=4", "run=fsdp", "trainer.strategy=fsdp")
    one, *others = (checkpoint(f"runs/{run}", "diffusion") for run in ("one", "ddp", "fsdp"))
    rounding = 1e-4 if student[0] == "objective=consistency" else 1e-5
    for other in others:
        for name, tensor in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][name], tensor, rtol=rounding, atol=rounding)


NETS = pytest.mark.parametrize(
    "net", [["net.model_channels=24"], ["net=dit_digits", "net.depth=2"]], ids=["unet", "dit"]
)


@pytest.mark.slow
def test_groups_of_ranks_hold_a_copy_each(ldm, pipeline):
    latents = f"latents={pipeline}/runs/latents"
    ldm("train-diffusion", *OPTIONS, latents, "run=one")
    hybrid = ["trainer.strategy=fsdp", "trainer.shard_within=2", "batch_size=2", "run=hybrid"]
    ranks("train-diffusion", *OPTIONS, latents, *hybrid, world=4)
    assert_close_weights("runs/one", "runs/hybrid", "diffusion", rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@NETS
def test_weights_travel_in_half_precision_as_autocast_has_them(net, ldm, pipeline):
    """Autocast rounds weights before each product; here they are rounded before they travel. Samples are drawn, too."""
    own = [word for word in OPTIONS if not word.startswith("net.")]
    own += [*net, f"latents={pipeline}/runs/latents", "batch_size=4", "trainer.precision=bf16-mixed"]
    ranks("train-diffusion", *own, "run=ddp")
    ranks("train-diffusion", *own, "trainer.strategy=fsdp", "features=pixels", "scored=21", "run=fsdp")
    assert_close_weights("runs/ddp", "runs/fsdp", "diffusion", rtol=1e-4, atol=2e-5)
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint("runs/fsdp", "diffusion")["state_dict"].values()
               if tensor.is_floating_point() and tensor.dtype != torch.float64)  # fmt: skip


@pytest.mark.long  # the compiler takes minutes on a slow core
@NETS
def test_compiled_blocks_train_the_same(net, ldm, pipeline):
    own = [word for word in OPTIONS if not word.startswith("net.")]
    own += [*net, f"latents={pipeline}/runs/latents", "batch_size=4", "trainer.strategy=fsdp", "sampler.steps=2"]
    ranks("train-diffusion", *own, "run=eager")
    ranks("train-diffusion", *own, "trainer.compile=true", "run=compiled")
    assert_close_weights("runs/eager", "runs/compiled", "diffusion", rtol=1e-4, atol=1e-5)
