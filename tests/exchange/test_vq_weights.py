"""VQ autoencoders: CompVis' file and diffusers' VQModel do what ours does, both ways through files."""

import pytest
import torch
from diffusers import VQModel

from ldm.exchange.autoencoder_weights import FIRST_STAGE_PREFIX, export_diffusers, import_autoencoder
from ldm.models.autoencoder import Autoencoder

TINY = {
    "channels": 32,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "latent_channels": 3,
    "attention_resolutions": [4],
}
CODES = {"variational": False, "quantizer": {"kind": "vq", "codes": 20}}


def theirs():
    torch.manual_seed(0)
    model = VQModel(
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        block_out_channels=[32, 64, 64],
        layers_per_block=1,
        latent_channels=3,
        num_vq_embeddings=20,
        norm_num_groups=32,
        scaling_factor=1.0,
    ).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def assert_same(ours, diffusers):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = diffusers.encode(x).latents
        for found, wanted in (
            (ours.encode(x).mean, latents),
            (ours.decode(latents), diffusers.decode(latents).sample),
            (ours.quantize(latents).codes.flatten(), diffusers.quantize(latents)[2][2].flatten()),
        ):
            assert (found - wanted).float().norm() <= 1e-5 * wanted.float().norm()


def test_a_vqmodel_comes_in(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    ours, shape, scaling = import_autoencoder(tmp_path)
    assert {key: shape[key] for key in TINY} == TINY
    assert shape["quantizer"]["codes"] == 20
    assert scaling == {"scaling_factor": 1.0}
    assert_same(ours.eval(), model)


def test_and_goes_out(tmp_path):
    torch.manual_seed(1)
    ours = Autoencoder(**TINY, **CODES).eval()
    torch.nn.init.normal_(ours.quantize.embedding.weight)
    export_diffusers(ours, TINY | CODES, {"scaling_factor": 1.0}, tmp_path, 32)
    assert_same(ours, VQModel.from_pretrained(tmp_path).eval())
    again, _, _ = import_autoencoder(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("prefix", ["", FIRST_STAGE_PREFIX])
def test_compvis_file_comes_in(tmp_path, prefix):
    """Of the autoencoder alone, with its loss beside, and of a whole model."""
    ours = Autoencoder(**TINY, **CODES).eval()
    state = {f"{prefix}{name}": tensor for name, tensor in ours.state_dict().items()}
    state[f"{prefix}loss.discriminator.main.0.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    again, shape, _ = import_autoencoder(tmp_path / "model.ckpt")
    assert shape["quantizer"] == {"kind": "vq", "codes": 20, "legacy": True}
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_running_means_and_shares_of_use_stay_here(tmp_path):
    codes = {"variational": False, "quantizer": {"kind": "vq", "codes": 20, "ema": 0.9, "restart": 0.1}}
    ours = Autoencoder(**TINY, **codes).eval()
    export_diffusers(ours, TINY | codes, {"scaling_factor": 1.0}, tmp_path, 32)
    assert_same(ours, VQModel.from_pretrained(tmp_path).eval())


@pytest.mark.parametrize(
    ("quantizer", "scaling", "said"),
    [
        ({"kind": "vq", "codes": 8, "cosine": True}, {"scaling_factor": 1.0}, "codes by distance alone"),
        ({"kind": "fsq", "levels": [5, 5, 5]}, {"scaling_factor": 1.0}, "codes by distance alone"),
        ({"kind": "vq", "codes": 8}, {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "pass scaling_factor="),
    ],
)
def test_what_vqmodel_has_no_place_for_is_said(quantizer, scaling, said, tmp_path):
    shape = TINY | {"variational": False, "quantizer": quantizer}
    with pytest.raises(ValueError, match=said):
        export_diffusers(Autoencoder(**shape), shape, scaling, tmp_path, 32)
