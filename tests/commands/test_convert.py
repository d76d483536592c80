"""`ldm convert`, and what an imported autoencoder is good for."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import save_file
from support.tiny import CPU, TINY_AUTOENCODER, fails

from ldm.checkpoint import CARD, load_autoencoder
from ldm.exchange.unet_weights import UNET_PREFIX
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet

SHAPE = {"channels": 32, "channel_mult": [1, 2, 2], "num_res_blocks": 1, "latent_channels": 4}


@pytest.fixture
def published(ldm):
    """A safetensors file as published ones are, in the working folder."""
    save_file({f"first_stage_model.{k}": v for k, v in Autoencoder(**SHAPE).state_dict().items()}, "sd.safetensors")
    return Path("sd.safetensors")


def test_import_cache_tune_and_export(ldm, published):
    ldm("convert", "run=sd", f"source={published}")
    imported = load_autoencoder("runs/sd")
    assert imported.card["autoencoder"] == SHAPE | {"in_channels": 3, "attention_resolutions": []}
    with pytest.raises(SystemExit, match="nothing says how these latents are scaled: pass latents=RUN"):
        ldm("convert", "run=out", "source=runs/sd", "to=diffusers")
    ldm("cache-latents", "run=latents", "autoencoder=runs/sd", "shard_size=2000")
    ldm("convert", "run=out", "source=runs/sd", "to=diffusers", "latents=runs/latents")
    manifest = json.loads(Path("runs/latents/manifest.json").read_text())
    exported = AutoencoderKL.from_pretrained("runs/out").eval()
    assert (exported.config.latents_mean, exported.config.latents_std) == (manifest["mean"], manifest["std"])
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        ours, theirs = imported.model.encode(x).mean, exported.encode(x).latent_dist.mean
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    small = [option for option in TINY_AUTOENCODER if not option.startswith("autoencoder.")]
    ldm(
        "train-autoencoder",
        *small,
        *CPU,
        "run=tuned",
        "init=runs/sd",
        "trained=decoder",
        "steps=2",
        "autoencoder.norm_groups=32",
    )
    tuned = load_autoencoder("runs/tuned").model
    assert torch.equal(tuned.encoder.conv_in.weight, imported.model.encoder.conv_in.weight)
    with pytest.raises(SystemExit, match="made with the autoencoder"):
        ldm("convert", "run=wrong", "source=runs/tuned", "to=diffusers", "latents=runs/latents")


@pytest.mark.slow
def test_scores_an_autoencoder_alone_and_by_tiles(ldm, published):
    ldm("convert", "run=sd", f"source={published}")
    scores = {}
    for run, options in (("whole", ["lpips=false"]), ("tiles", ["lpips=null", "tile=16"])):
        ldm("evaluate", f"run={run}", "samples=null", "autoencoder=runs/sd", *options)
        scores[run] = json.loads(Path(f"runs/{run}/metrics.json").read_text())["reconstruction"]
    assert scores["whole"].keys() >= {"psnr", "ssim", "lpips", "rfd"}
    assert scores["tiles"]["depends"]["tile"] == 16
    assert scores["tiles"]["psnr"] == pytest.approx(scores["whole"]["psnr"], abs=1.5)
    with pytest.raises(SystemExit, match="tile=10 must be a multiple of 16"):
        ldm("evaluate", "run=x", "samples=null", "autoencoder=runs/sd", "lpips=null", "tile=10")
    with pytest.raises(SystemExit, match="pass autoencoder=PATH"):
        ldm("evaluate", "run=x", "samples=null")


def test_mistakes(ldm, published):
    for source, said in (("nowhere.ckpt", "nowhere.ckpt does not exist"), (".", "config.json does not exist")):
        with pytest.raises(SystemExit, match=said):
            ldm("convert", f"source={source}")
    with pytest.raises(SystemExit, match="to=onnx must be ldm, diffusers or dit"):
        ldm("convert", f"source={published}", "to=onnx")


def test_a_whole_model_from_elsewhere_samples(ldm):
    """A CompVis checkpoint of both stages: import each, sample, and export the U-Net again."""
    unet = UNet(
        in_channels=4, num_classes=1, model_channels=32, channel_mult=[1, 2], num_res_blocks=1,
        attention_resolutions=[2], head_channels=16,
    )  # fmt: skip
    state = {f"first_stage_model.{k}": v for k, v in Autoencoder(**SHAPE).state_dict().items()}
    state |= {f"{UNET_PREFIX}{k}": v for k, v in unet.state_dict().items() if k != "label_emb.weight"}
    torch.save({"state_dict": state | {"scale_factor": torch.tensor(0.5)}}, "ldm.ckpt")
    ldm("convert", "run=ae", "source=ldm.ckpt")
    options = ["run=flow", "what=diffusion", "source=ldm.ckpt", "latent_size=8"]
    for more, said in (
        ([], "needs autoencoder=RUN"),
        (["autoencoder=runs/ae"], "pass num_heads= or head_channels="),
        (["autoencoder=runs/ae", "head_channels=16"], "pass attention_order=new"),
    ):
        with pytest.raises(SystemExit, match=said):
            ldm("convert", *options, *more)
    ldm("convert", *options, "autoencoder=runs/ae", "head_channels=16", "attention_order=legacy")
    ldm("sample", "model=runs/flow", "num=2", "guidance=1", "sampler=ddim", "sampler.steps=2")
    assert json.loads(Path("runs/samples/sample.json").read_text())["evaluations"] == 2
    with pytest.raises(SystemExit, match=r"needs label_dropout > 0 in training"):
        ldm("sample", "model=runs/flow", "num=2", "guidance=2")
    ldm("convert", "run=out", "what=diffusion", "to=diffusers", "source=runs/flow")
    assert UNet2DModel.from_pretrained("runs/out").config.block_out_channels == [32, 64]


@pytest.fixture
def both_stages(ldm):
    """A file of an autoencoder and a U-Net of one level, the former imported to runs/ae."""
    unet = UNet(in_channels=4, num_classes=1, model_channels=32, channel_mult=[1, 1], num_res_blocks=1,
                attention_resolutions=[], head_channels=32)  # fmt: skip
    parts = {"first_stage_model.": Autoencoder(**SHAPE), UNET_PREFIX: unet}
    state = {f"{prefix}{k}": v for prefix, model in parts.items() for k, v in model.state_dict().items()}
    torch.save({"state_dict": state}, "whole.ckpt")
    ldm("convert", "run=ae", "source=whole.ckpt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scaling_factor=0"], "scaling_factor=0 must be more than 0"),
        (["scaling_factor=-1"], "scaling_factor=-1 must be more than 0"),
        (["scaling_factor=nan"], "scaling_factor=NaN must be a finite number"),
        (["scaling_factor=inf"], "scaling_factor=Infinity must be a finite number"),
        (["scaling_factor=much"], "scaling_factor=much must be a number"),
        (["scaling_factor=1e-320"], "its card holds the number inf"),
        (["scaling_factor=1", "latent_size=100000"], "latent_size=100000 must be at most 2048"),
        (["scaling_factor=1", "latent_size=0"], "latent_size=0 must be at least 1"),
        (["scaling_factor=1", "latent_size=9"], "latent_size=9 is no multiple of this network's factor 2"),
        (["scaling_factor=1", "num_heads=1000000000"], "num_heads=1000000000"),
        (["scaling_factor=1", "head_channels=5"], "head_channels=5"),
    ],
)
def test_options_that_make_no_model(ldm, both_stages, words, said):
    heads = [] if any("head" in word for word in words) else ["head_channels=32"]
    options = ["run=x", "what=diffusion", "source=whole.ckpt", "autoencoder=runs/ae", *heads]
    assert said in fails("convert", *options, *words)
    assert not Path("runs/x").exists()


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"scaling_factor": 0.0}, "scaling.scaling_factor is 0.0, not more than 0"),
        ({"scaling_factor": "0.5"}, "scaling.scaling_factor is 0.5, not a number"),
        ({"scaling_factor": float("nan")}, "holds the number nan"),
        ({"latents_std": [1.0, -1.0]}, "scaling.latents_std[1] is -1.0, not more than 0"),
        ({"factor": 1.0}, "scaling.factor is no key"),
        ([0.5], "scaling is [0.5], not a group of keys"),
    ],
)
def test_scaling_in_a_card(ldm, published, scaling, said):
    ldm("convert", "run=sd", f"source={published}")
    file = Path("runs/sd/checkpoints/00000000.ckpt")
    content = torch.load(file, weights_only=True)
    content[CARD]["scaling"] = scaling
    torch.save(content, file)
    assert said in fails("convert", "run=out", "source=runs/sd", "to=diffusers")
    assert not Path("runs/out").exists()


def test_an_earlier_import_is_not_overwritten(ldm, published, monkeypatch):
    """It is refused before the file is read; the same import again, or overwrite=true, may replace it."""
    Path("other.safetensors").write_bytes(published.read_bytes())
    ldm("convert", "run=sd", f"source={published}")
    file = Path("runs/sd/checkpoints/00000000.ckpt")
    before = file.read_bytes(), file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("ldm.commands.convert.import_autoencoder", None)
        line = fails("convert", "run=sd", "source=other.safetensors")
    assert "runs/sd holds results of source=sd.safetensors (now other.safetensors): choose another run=" in line
    assert "holds results of to=ldm" in fails("convert", "run=sd", f"source={published}", "to=diffusers")
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    ldm("convert", "run=sd", f"source={published}")
    ldm("convert", "run=sd", "source=other.safetensors", "overwrite=true")
    assert torch.load(file, weights_only=True)[CARD]["imported_from"] == "other.safetensors"


def test_a_flipped_bit_is_refused(ldm, both_stages):
    whole = bytearray(Path("whole.ckpt").read_bytes())
    whole[len(whole) // 2] ^= 1
    Path("bit.ckpt").write_bytes(whole)
    assert "bit.ckpt is damaged or no checkpoint" in fails("convert", "run=x", "source=bit.ckpt")
    assert not Path("runs/x").exists()
