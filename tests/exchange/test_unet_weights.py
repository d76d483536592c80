"""The same weights in diffusers' U-Nets and in ours do the same, both ways through files and from CompVis' names."""

import json
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file

from ldm.condition import Condition
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import BetaTablePath
from ldm.diffusion.samplers import ddim
from ldm.diffusion.times import Discrete, leading_grid
from ldm.diffusion.weighting import Unweighted
from ldm.exchange.unet_weights import LABELS, UNET_PREFIX, export_unet, import_unet

PLAIN = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "num_class_embeds": 6,
}
CROSS = PLAIN | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
}
KINDS = {
    "adm": (UNet2DModel, PLAIN),
    "scale shift": (UNet2DModel, PLAIN | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}),
    "resnet up and down": (
        UNet2DModel,
        PLAIN
        | {
            "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        },
    ),
    "attention and resnet up and down": (
        UNet2DModel,
        PLAIN
        | {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
    ),
    "no classes": (UNet2DModel, PLAIN | {"num_class_embeds": None}),
    "concatenation": (UNet2DModel, PLAIN | {"in_channels": 9}),
    "cross-attention": (UNet2DConditionModel, CROSS),
    "heads of a size, linear projections": (
        UNet2DConditionModel,
        CROSS | {"attention_head_dim": (2, 4), "use_linear_projection": True},
    ),
}


def shaken(model):
    """Random values where the network starts at zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.abs().max() == 0 else None
    return model.eval()


def outputs(ours, theirs):
    x, t, y = torch.randn(3, theirs.config.in_channels, 8, 8), torch.rand(3), torch.tensor([0, 2, 5])
    labels = {"class_labels": y} if theirs.config.num_class_embeds else {}
    context = torch.randn(3, 7, 24) if "cross_attention_dim" in theirs.config else None
    more = {} if context is None else {"encoder_hidden_states": context}
    with torch.no_grad():
        expected = theirs(x, 1000 * t - 1, **labels, **more).sample
        concat = x[:, 4:] if x.shape[1] > 4 else None
        found = ours(x[:, :4], t, Condition(y if labels else torch.zeros_like(y), context, concat=concat))
    return found, expected


def assert_same(ours, theirs):
    found, expected = outputs(ours, theirs)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert expected.norm() > 0.1


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Of a kind: diffusers' network, and what is imported of its folder: the network and its shape."""

    @cache
    def make_and_import(kind):
        make, options = KINDS[kind]
        theirs, folder = shaken(make(**options)), tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, *import_unet(folder, {}, True)[:2]

    return make_and_import


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_through_the_files(kind, imported, tmp_path):
    theirs, ours, shape = imported(kind)
    assert_same(ours, theirs)
    export_unet(ours, shape, tmp_path / "ours", 8)
    again = KINDS[kind][0].from_pretrained(tmp_path / "ours").eval()
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key].flatten(), tensor.flatten(), rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(
    ("kind", "averaged"),
    [
        *((kind, False) for kind in KINDS if kind not in ("no classes", "heads of a size, linear projections")),
        ("adm", True),
        ("cross-attention", True),
    ],
)
def test_compvis_names(kind, averaged, imported, tmp_path):
    theirs, model, shape = imported(kind)
    state = {UNET_PREFIX + k: v for k, v in model.state_dict().items()}
    if averaged:
        state |= {"model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in state.items()}
        state |= {
            k: v + 1 for k, v in state.items() if k.startswith(UNET_PREFIX)
        }  # the raw ones, which are passed over
    torch.save({"state_dict": state | {"scale_factor": torch.tensor(0.18)}}, tmp_path / "model.ckpt")
    heads = {k: shape[k] for k in ("num_heads", "head_channels") if k in shape}
    loaded, found, factor = import_unet(tmp_path / "model.ckpt", heads, True, "legacy")
    assert (found, factor) == (shape, pytest.approx(0.18))
    assert_same(loaded, theirs)


def test_ldms_label_is_a_token_of_the_context(tmp_path):
    """cin256-v2: the class embedding lies outside of the U-Net, which has no label_emb."""
    theirs = shaken(UNet2DConditionModel(**CROSS | {"num_class_embeds": None}))
    theirs.save_pretrained(tmp_path / "theirs")
    model, _, _ = import_unet(tmp_path / "theirs", {}, True)
    state = {UNET_PREFIX + k: v for k, v in model.state_dict().items() if k != "label_emb.weight"}
    table = torch.randn(6, 24)
    save_file(state | {LABELS: table}, tmp_path / "cin.safetensors")
    ours, shape, _ = import_unet(tmp_path / "cin.safetensors", {"num_heads": 2}, True)
    assert (shape["label_as"], shape["num_classes"]) == ("context", 5)
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 5])
    with torch.no_grad():
        expected = theirs(x, 1000 * t - 1, encoder_hidden_states=table[y][:, None]).sample
        assert (ours(x, t, y) - expected).norm() <= 1e-5 * expected.norm()
    with pytest.raises(ValueError, match=r"no place for this U-Net's label_as=context: export the whole model"):
        export_unet(ours, shape, tmp_path, 8)


def test_a_label_table_without_a_null_class_gets_one(tmp_path):
    """diffusers' and ADM's class-conditional networks: six classes, and none of them is lost."""
    theirs = shaken(UNet2DModel(**PLAIN))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, shape, _ = import_unet(tmp_path / "theirs", {}, False)
    assert shape["num_classes"] == ours.null_class == 6
    assert_same(ours, theirs)
    assert ours.label_emb.weight[6].abs().max() == 0


def test_an_imported_network_walks_as_in_diffusers(tmp_path):
    """DDIM steps of a discrete model, end to end: their timesteps count from 0."""
    theirs = shaken(UNet2DModel(**PLAIN))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _, _ = import_unet(tmp_path / "theirs", {}, False)
    betas = {"beta_start": 0.0015, "beta_end": 0.0195}
    scheduler = DDIMScheduler(
        **betas, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="leading", steps_offset=1
    )
    scheduler.set_timesteps(4)
    path = BetaTablePath(schedule="scaled_linear", num_steps=1000, **betas)
    objective = Objective(
        path=path, parameterization="eps", weighting=Unweighted(), time_sampler=Discrete(num_steps=1000)
    )
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 5])
    with torch.no_grad():
        found = ddim(objective.denoiser(ours, y), path, x, leading_grid(path, 4))
        for timestep in scheduler.timesteps:
            x = scheduler.step(theirs(x, timestep, class_labels=y).sample, timestep, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_what_is_not_ldms_is_named(tmp_path):
    UNet2DModel(**PLAIN | {"freq_shift": 1}).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match=r"config\.json has freq_shift=1; LDM's architecture has 0"):
        import_unet(tmp_path / "ddpm", {}, True)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="describes a AutoencoderKL"):
        import_unet(tmp_path, {}, True)
    torch.save({"state_dict": {"first_stage_model.x": torch.zeros(1)}}, tmp_path / "ae.ckpt")
    with pytest.raises(ValueError, match="holds no U-Net of LDM's or ADM's architecture"):
        import_unet(tmp_path / "ae.ckpt", {"head_channels": 32}, True)
