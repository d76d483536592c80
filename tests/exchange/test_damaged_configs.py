"""diffusers' config.json, damaged: one line that names the file and the key; nothing is built of it."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from ldm.exchange.autoencoder_weights import import_autoencoder
from ldm.exchange.diffusers_folders import AutoencoderConfig
from ldm.exchange.unet_weights import import_unet

SMALL = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (32,), "layers_per_block": 1,
    "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",), "attention_head_dim": 16,
}  # fmt: skip
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",), "attention_head_dim": 2,
    "cross_attention_dim": 8,
}  # fmt: skip
REMOVED = object()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("autoencoder", "unet", "cross")}
    AutoencoderKL(latent_channels=4, block_out_channels=(32,), scaling_factor=0.5).save_pretrained(
        folders["autoencoder"]
    )
    UNet2DModel(**SMALL).save_pretrained(folders["unet"])
    UNet2DConditionModel(**SMALL | CROSS).save_pretrained(folders["cross"])
    return folders


def take(name, folder):
    return import_autoencoder(folder) if name == "autoencoder" else import_unet(folder, {}, True)


def refused(name, folder, text):
    """What is said of a folder's config.json with this text."""
    file = folder / "config.json"
    whole = file.read_text()
    try:
        file.write_text(text)
        with pytest.raises(ValueError) as info:
            take(name, folder)
    finally:
        file.write_text(whole)
    line = str(info.value)
    assert "\n" not in line
    assert len(line) < 600
    assert str(file) in line
    return line


@pytest.mark.parametrize("name", ["autoencoder", "unet", "cross"])
def test_whole_ones_are_read(name, folders):
    assert take(name, folders[name])


@pytest.mark.parametrize("name", ["autoencoder", "unet", "cross"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged, not JSON"),
        ("[]", "it is [], not a group of keys"),
        ("null", "it is null, not a group of keys"),
        ("3", "it is 3, not a group of keys"),
        ('{"a": NaN}', "is damaged, not JSON (NaN is no number of JSON)"),
        ("[" * 100_000, "is damaged, not JSON"),
        ("\xff\xfe", "is damaged, not JSON"),
        ('{"_class_name": "VQVAE"}', "it describes a VQVAE, not a "),
        ('{"_class_name": 3}', "it describes a 3, not a "),
        ('{"_class_name": null}', "it describes a null, not a "),
    ],
)
def test_what_is_no_config(name, text, said, folders):
    assert said in refused(name, folders[name], text)


BOTH = [
    ("block_out_channels", [0], "block_out_channels[0] is 0, not at least 1"),
    ("block_out_channels", [], "block_out_channels is [], not at least 1 values"),
    ("block_out_channels", [32] * 17, "not at most 16 values"),
    ("block_out_channels", 32, "block_out_channels is 32, not a list"),
    ("block_out_channels", "32", "block_out_channels is 32, not a list"),
    ("block_out_channels", [32.5], "block_out_channels[0] is 32.5, not a whole number"),
    ("block_out_channels", [True], "block_out_channels[0] is true, not a whole number"),
    ("block_out_channels", [10**9], "block_out_channels[0] is 1000000000, not at most 65536"),
    ("block_out_channels", [33], "block_out_channels is [33], of which a norm's 32 groups are no divisor"),
    ("layers_per_block", 10**6, "layers_per_block is 1000000, not at most 64"),
    ("layers_per_block", 0, "layers_per_block is 0, not at least 1"),
    ("layers_per_block", -1, "layers_per_block is -1, not at least 1"),
    ("layers_per_block", [1], "layers_per_block is [1], not a whole number"),
    ("layers_per_block", "1", "layers_per_block is 1, not a whole number"),
    ("layers_per_block", True, "layers_per_block is true, not a whole number"),
    ("act_fn", "relu", "has act_fn=relu; LDM's architecture has silu"),
    ("act_fn", ["x"] * 10_000, "has act_fn=['x', 'x'"),
]
AUTOENCODER = [
    ("block_out_channels", [64], "has block_out_channels=[64], and its weights [32]"),
    ("layers_per_block", 2, "has layers_per_block=2, and its weights 1"),
    ("latent_channels", 8, "has latent_channels=8, and its weights 4"),
    ("latent_channels", None, "latent_channels is null, not a whole number"),
    ("latent_channels", -4, "latent_channels is -4, not at least 1"),
    ("norm_num_groups", 0, "norm_num_groups is 0, not at least 1"),
    ("norm_num_groups", None, "norm_num_groups is null, not a whole number"),
    ("norm_num_groups", 5, "of which a norm's 5 groups are no divisor"),
    ("scaling_factor", 0, "scaling_factor is 0, not more than 0"),
    ("scaling_factor", -0.2, "scaling_factor is -0.2, not more than 0"),
    ("scaling_factor", "0.18", "scaling_factor is 0.18, not a number"),
    ("scaling_factor", True, "scaling_factor is true, not a number"),
    ("scaling_factor", [0.18], "scaling_factor is [0.18], not a number"),
    ("shift_factor", "0", "shift_factor is 0, not a number"),
    ("latents_mean", 0.0, "latents_mean is 0.0, not a list"),
    ("latents_mean", [0.0] * 3, "latents_mean has 3 numbers, and latent_channels is 4"),
    ("latents_mean", [0.0, None, 0.0, 0.0], "latents_mean[1] is null, not a number"),
    ("latents_std", [1.0] * 5, "latents_std has 5 numbers, and latent_channels is 4"),
    ("latents_std", [1.0, 0.0, 1.0, 1.0], "latents_std[1] is 0.0, not more than 0"),
    ("latents_std", ["1"] * 4, "latents_std[0] is 1, not a number"),
    ("mid_block_add_attention", False, "has mid_block_add_attention=False; LDM's architecture has True"),
]
UNET = [
    ("block_out_channels", [32, 64], "down_block_types has 1 values, and block_out_channels 2"),
    ("block_out_channels", REMOVED, "block_out_channels is missing"),
    ("layers_per_block", REMOVED, "layers_per_block is missing"),
    ("layers_per_block", None, "layers_per_block is null, not a whole number"),
    ("down_block_types", "AttnDownBlock2D", "down_block_types is AttnDownBlock2D, not a list"),
    ("down_block_types", [1], "down_block_types[0] is 1, not text"),
    ("down_block_types", [], "down_block_types is [], not at least 1 values"),
    ("in_channels", "4", "in_channels is 4, not a whole number"),
    ("out_channels", 0, "out_channels is 0, not at least 1"),
    ("attention_head_dim", None, "attention_head_dim is null, not the size or the number of heads"),
    ("attention_head_dim", 0, "attention_head_dim is 0, not at least 1"),
    ("attention_head_dim", "16", "attention_head_dim is 16, not a whole number or a list"),
    ("attention_head_dim", [16, 16], "attention_head_dim has 2 values, and block_out_channels 1"),
    ("attention_head_dim", [7], "has [7] heads for [32] channels"),
    ("num_attention_heads", -2, "num_attention_heads is -2, not at least 1"),
    ("resnet_time_scale_shift", 3, "resnet_time_scale_shift is 3, not text"),
    ("norm_eps", "1e-5", "has norm_eps=1e-5; LDM's architecture has 1e-05"),
    ("norm_num_groups", None, "has norm_num_groups=None; LDM's architecture has 32"),
]


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        *(("autoencoder", *case) for case in BOTH + AUTOENCODER),
        *(("unet", *case) for case in BOTH + UNET),
        ("cross", "cross_attention_dim", None, "cross_attention_dim is missing"),
        ("cross", "cross_attention_dim", 0, "cross_attention_dim is 0, not at least 1"),
        ("cross", "cross_attention_dim", [8], "cross_attention_dim is [8], not a whole number"),
    ],
)
def test_keys(name, key, value, said, folders):
    config = json.loads((folders[name] / "config.json").read_text())
    config = {k: v for k, v in config.items() if k != key} | ({} if value is REMOVED else {key: value})
    assert said in refused(name, folders[name], json.dumps(config))


@pytest.mark.parametrize("key", ["scaling_factor", "shift_factor", "latents_mean", "latents_std"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(key, value, folders):
    config = json.loads((folders["autoencoder"] / "config.json").read_text())
    text = json.dumps(config | {key: value if key.endswith("factor") else [value] * 4})
    assert "is no number of JSON" in refused("autoencoder", folders["autoencoder"], text)
    with pytest.raises(ValueError):  # nor is it written
        AutoencoderConfig(**config | {key: value if key.endswith("factor") else [value] * 4})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers_per_block": 60}, "lacks input_blocks."),  # of a network that takes no memory yet
        ({"block_out_channels": [65536]}, "time_embed.0.weight is [128, 32], not [262144, 65536]"),
        ({"attention_head_dim": 5}, "to_q.weight is [32, 32], which no attention of such heads has"),
        ({"cross_attention_dim": 8, "_class_name": "UNet2DConditionModel"}, "a network of its shape"),
        ({"num_attention_heads": 64}, "to_q.weight is [32, 32], which no attention of such heads has"),
    ],
)
def test_configs_of_other_networks(change, said, folders):
    """Right in themselves, and not of these weights."""
    folder = folders["unet"]
    file = folder / "config.json"
    whole = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(ValueError) as info:
            import_unet(folder, {}, True)
    finally:
        file.write_text(whole)
    assert said in str(info.value)
    assert str(folder) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("shape", [(), (32,), (31, 32), (33, 32)])
def test_queries_that_can_not_be_joined(shape, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    name = "down_blocks.0.attentions.0.to_q.weight"
    state = load_file(folders["unet"] / "diffusion_pytorch_model.safetensors")
    save_file(state | {name: torch.zeros(shape)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folders["unet"] / "config.json").read_text())
    with pytest.raises(ValueError, match=r"down_blocks\.0\.attentions\.0\.to_.*no attention of such heads has"):
        import_unet(tmp_path, {}, True)
    save_file(state | {"more.weight": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"holds more\.weight, which a network of its shape"):
        import_unet(tmp_path, {}, True)
