"""Published weights: the same tensors in diffusers' AutoencoderKL and in ours do the same, both ways through files."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.exchange.autoencoder_weights import FIRST_STAGE_PREFIX, export_diffusers, import_autoencoder
from ldm.models.autoencoder import Autoencoder

CONF = Path(__file__).parents[2] / "conf" / "ae"
SHAPES = sorted(path.stem for path in CONF.glob("*.yaml"))
TINY = {
    "channels": 32,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "latent_channels": 4,
    "attention_resolutions": [4],
}


def theirs(channels, channel_mult, num_res_blocks, latent_channels, attention_resolutions=(), norm_groups=32):
    attends = ["Attn" * (2**i in attention_resolutions) for i in range(len(channel_mult))]
    return AutoencoderKL(
        down_block_types=[f"{a}DownEncoderBlock2D" for a in attends],
        up_block_types=[f"{a}UpDecoderBlock2D" for a in reversed(attends)],
        block_out_channels=[channels * m for m in channel_mult],
        layers_per_block=num_res_blocks,
        latent_channels=latent_channels,
        norm_num_groups=norm_groups,
        scaling_factor=0.5,
    ).eval()


def shape_of(name):
    shape = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert not shape.pop("shortcut")  # diffusers has none
    return shape


def assert_same(ours, diffusers, side=32):
    x = torch.rand(1, 3, side, side) * 2 - 1
    with torch.no_grad():
        posterior, expected = ours.encode(x), diffusers.encode(x).latent_dist
        pairs = [(posterior.mean, expected.mean), (posterior.std, expected.std)]
        pairs.append((ours.decode(posterior.mean), diffusers.decode(expected.mean).sample))
    for found, wanted in pairs:
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", ["kl_f4", "kl_f8", "kl_f16", "small_f4"])
def test_both_ways_through_the_files(name, tmp_path):
    """Each with its levels, blocks and attention, and with as few channels as its norms allow."""
    shape = shape_of(name)
    diffusers = theirs(**shape | {"channels": shape["norm_groups"]})
    diffusers.save_pretrained(tmp_path / "theirs")
    ours, shape, scaling = import_autoencoder(tmp_path / "theirs")
    assert scaling == {"scaling_factor": 0.5}
    assert Autoencoder(**shape).state_dict().keys() == ours.state_dict().keys()
    assert_same(ours, diffusers)
    measured = {"latents_mean": [0.1] * shape["latent_channels"], "latents_std": [2.0] * shape["latent_channels"]}
    export_diffusers(ours, shape, measured | {"scaling_factor": 1.0}, tmp_path / "ours", 256)
    again = AutoencoderKL.from_pretrained(tmp_path / "ours").eval()
    assert (again.config.latents_mean, again.config.latents_std) == tuple(measured.values())
    for key, tensor in diffusers.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_as_many_parameters_as_diffusers(name):
    with torch.device("meta"):
        ours, diffusers = Autoencoder(**shape_of(name)), theirs(**shape_of(name))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in diffusers.parameters())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Autoencoder(**TINY)


@pytest.mark.parametrize("prefix", ["", FIRST_STAGE_PREFIX])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_compvis_files(model, tmp_path, prefix, suffix):
    file = tmp_path / f"model.{suffix}"
    state = {f"{prefix}{k}": v for k, v in model.state_dict().items()}
    state |= {"model.diffusion_model.out.0.weight": torch.zeros(1)} if prefix else {"loss.logvar": torch.zeros(())}
    if suffix == "ckpt":
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        save_file(state, file)
    loaded, shape, _ = import_autoencoder(file)
    assert shape == TINY | {"in_channels": 3}
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_old_names_of_diffusers_attention(model, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    export_diffusers(model, TINY, {"scaling_factor": 1.0}, tmp_path, 32)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for new, name in old.items():
        state = {k.replace(f".{new}.", f".{name}."): v for k, v in state.items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = import_autoencoder(tmp_path)[0]
    assert torch.equal(loaded.encoder.mid.attn_1.q.weight, model.encoder.mid.attn_1.q.weight)


def test_what_lightning_1_left_beside_the_weights(model, tmp_path, monkeypatch):
    """LDM's own checkpoints name a callback's class and hold a NumPy scalar: neither is run, both are passed over."""
    import sys
    from types import ModuleType

    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    cls = type("ModelCheckpoint", (), {"__module__": names[-1]})
    sys.modules[names[-1]].ModelCheckpoint = cls
    callbacks = {cls: {"best_model_score": np.float64(0.3)}}
    torch.save({"state_dict": model.state_dict(), "callbacks": callbacks}, tmp_path / "model.ckpt")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert import_autoencoder(tmp_path / "model.ckpt")[1]["latent_channels"] == 4


def test_whole_models_give_their_scale_and_their_average(model, tmp_path):
    state = {f"{FIRST_STAGE_PREFIX}{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state | {"scale_factor": torch.tensor(0.22)}}, tmp_path / "full.ckpt")
    assert import_autoencoder(tmp_path / "full.ckpt")[2] == {"scaling_factor": pytest.approx(0.22)}
    averaged = {"model_ema." + k.replace(".", ""): v + 1 for k, v in model.state_dict().items()}
    torch.save({"state_dict": model.state_dict() | averaged}, tmp_path / "sgm.ckpt")
    found = import_autoencoder(tmp_path / "sgm.ckpt")[0]
    torch.testing.assert_close(found.quant_conv.weight, model.quant_conv.weight + 1)


def test_other_layouts_of_diffusers(model, tmp_path):
    """A pipeline's vae/, a half-precision variant, the weights file alone, no quant_conv (SD 3), other norms."""
    export_diffusers(model, TINY, {"scaling_factor": 1.0}, tmp_path / "pipeline" / "vae", 32)
    folder = tmp_path / "pipeline" / "vae"
    plain = folder / "diffusion_pytorch_model.safetensors"
    same = [import_autoencoder(tmp_path / "pipeline")[0], import_autoencoder(plain)[0]]
    plain.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    same.append(import_autoencoder(folder)[0])
    for other in same:
        assert torch.equal(other.quant_conv.weight, model.quant_conv.weight)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"act_fn": "relu"}))
    with pytest.raises(ValueError, match="act_fn=relu"):
        import_autoencoder(folder)
    without = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    without.save_pretrained(tmp_path / "sd3")
    assert_same(import_autoencoder(tmp_path / "sd3")[0], without)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_refused_and_not_executed(model, tmp_path):
    victim = tmp_path / "executed"
    torch.save({"state_dict": model.state_dict(), "x": Code(victim)}, tmp_path / "zip.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps({"state_dict": {}, "x": Code(victim)}, protocol=2))
    for name in ("zip.ckpt", "raw.ckpt"):
        with pytest.raises(ValueError, match=r"refers to posix\.mkdir, which is no tensor: nothing of it was executed"):
            import_autoencoder(tmp_path / name)
    assert not victim.exists()


def test_wrong_files_are_named(model, tmp_path):
    def message(state, name="model.ckpt"):
        torch.save({"state_dict": state}, tmp_path / name)
        with pytest.raises(ValueError) as info:
            import_autoencoder(tmp_path / name)
        assert str(tmp_path / name) in str(info.value)
        return str(info.value)

    state = model.state_dict()
    missing = {k: v for k, v in state.items() if k != "decoder.mid.block_1.conv2.bias"}
    assert "lacks decoder.mid.block_1.conv2.bias" in message(missing)
    assert "lacks encoder.conv_in.weight" in message({k: v for k, v in state.items() if k != "encoder.conv_in.weight"})
    assert "holds encoder.extra" in message(state | {"encoder.extra": torch.zeros(1)})
    other = state | {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}
    assert "decoder.conv_in.weight is [8, 4, 3, 3], not [64, 4, 3, 3]" in message(other)
    assert "quantize.embedding.weight" in message(state | {"quantize.embedding.weight": torch.zeros(1)})
    assert "lacks" in message({})
    assert "not finite" in message(state | {"quant_conv.bias": torch.full((8,), torch.nan)})
    for name in ("cut.safetensors", "empty.ckpt"):
        (tmp_path / name).write_bytes(b"12345678" * name.startswith("cut"))
    with pytest.raises(ValueError, match=r"empty\.ckpt is damaged or no checkpoint"):
        import_autoencoder(tmp_path / "empty.ckpt")
    torch.save({"state_dict": torch.zeros(1)}, tmp_path / "tensor.ckpt")
    with pytest.raises(ValueError, match="lacks"):
        import_autoencoder(tmp_path / "tensor.ckpt")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="pass to=diffusers"):
        import_autoencoder(tmp_path / "run")
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
        import_autoencoder(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        import_autoencoder(tmp_path / "nowhere.ckpt")


def test_what_diffusers_can_not_hold_is_not_exported(tmp_path):
    narrow = TINY | {"channels": 8}
    with pytest.raises(ValueError, match="32 groups"):
        export_diffusers(Autoencoder(**narrow), narrow, {}, tmp_path, None)
    with pytest.raises(ValueError, match="plain autoencoder"):
        export_diffusers(Autoencoder(**TINY, variational=False), TINY, {}, tmp_path, None)
    with pytest.raises(ValueError, match=r"autoencoder\.shortcut=true"):
        export_diffusers(Autoencoder(**TINY, shortcut=True), TINY | {"shortcut": True}, {}, tmp_path, None)
