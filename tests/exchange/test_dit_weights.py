"""DiTs in their authors' layout and in diffusers', and the whole model as a pipeline."""

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file
from support.pipelines import FLOW, LDM, LINEAR, assert_same, node, objective, pipeline
from support.tiny import fails
from support.whole_models import load, write_model

from ldm.diffusion.samplers import jump
from ldm.exchange import dit_weights
from ldm.exchange.dit_weights import export_dit, import_dit
from ldm.exchange.pipeline_folder import PipelineExport
from ldm.exchange.weight_files import read_tensors
from ldm.generate.model import LatentDiffusionModel
from ldm.models.dit import DiT

TINY = {
    "in_channels": 4, "num_classes": 5, "latent_size": [8, 8], "patch": 2, "model_channels": 32, "depth": 3,
    "head_channels": 16, "time_offset": 1.0,
}  # fmt: skip
PUBLISHED = {"S": (384, 12, 64), "B": (768, 12, 64), "L": (1024, 24, 64), "XL": (1152, 28, 72)}


def random(**shape):
    torch.manual_seed(0)
    net = DiT(**TINY | shape).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    return net


def theirs_of(folder):
    model = DiTTransformer2DModel.from_pretrained(folder).eval()
    return lambda x, t, y: model(x, timestep=1000 * t - 1, class_labels=y).sample


def inputs(channels=4, size=8):
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.3, 0.9]), torch.tensor([1, 5])


@pytest.mark.parametrize("patch", [1, 2])
def test_diffusers_computes_the_same_and_comes_back(patch, tmp_path):
    net = random(patch=patch)
    shape = TINY | {"patch": patch}
    export_dit(net, shape, tmp_path, "diffusers")
    with torch.no_grad():
        torch.testing.assert_close(theirs_of(tmp_path)(*inputs()), net(*inputs()), rtol=1e-5, atol=1e-5)
    again, found = import_dit(tmp_path, None, {})
    assert {key: found[key] for key in shape} == shape
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_published_shapes_have_the_names_of_diffusers(name, patch):
    channels, depth, head = PUBLISHED[name]
    shape = TINY | {
        "model_channels": channels, "depth": depth, "head_channels": head, "num_classes": 1000, "patch": patch,
        "latent_size": [32, 32],
    }  # fmt: skip
    with torch.device("meta"):
        ours = dit_weights.to_diffusers(DiT(**shape).state_dict(), shape)
        config = {key: value for key, value in dit_weights.diffusers_config(shape).items() if key[0] != "_"}
        theirs = DiTTransformer2DModel(**config).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S", "B"])  # L and XL take gigabytes; their shapes are held above
def test_published_sizes_compute_the_same(name, tmp_path):
    channels, depth, head = PUBLISHED[name]
    shape = {
        "model_channels": channels,
        "depth": depth,
        "head_channels": head,
        "num_classes": 1000,
        "latent_size": [32, 32],
    }
    net = random(**shape)
    export_dit(net, TINY | shape, tmp_path, "diffusers")
    x = inputs(size=32)
    with torch.no_grad():
        torch.testing.assert_close(theirs_of(tmp_path)(*x), net(*x), rtol=1e-5, atol=1e-5)


def test_published_weights_of_diffusers_come_in(tmp_path):
    """With a variance beside the target, norms of 1e-5, fp16 and rows for 1,000 classes and none."""
    torch.manual_seed(1)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=8, sample_size=8
    ).eval()
    for block in model.transformer_blocks[1:]:  # as published: each block has the first one's
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    net, shape = import_dit(dit_weights.dit_folder(tmp_path), None, {})
    assert (shape["num_classes"], shape["norm_eps"], shape["latent_size"]) == (1000, 1e-5, [8, 8])
    x, t, y = inputs()
    y[1] = 1000
    with torch.no_grad():
        theirs = model(x, timestep=1000 * t - 1, class_labels=y).sample[:, :4]
        torch.testing.assert_close(net(x, t, y), theirs, rtol=1e-5, atol=1e-5)


def as_authors(net, folder, learn_sigma=True):
    """A checkpoint as facebookresearch/DiT's train.py writes it."""
    export_dit(net, TINY | {"time_periods": "dit"}, folder, "dit")
    state = torch.load(folder / "dit.pt", weights_only=True)
    if learn_sigma:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            mean = state[name].unflatten(0, (4, 4))
            state[name] = torch.cat([mean, torch.randn_like(mean)], dim=1).flatten(0, 1)
    torch.save({"model": {}, "ema": state, "opt": {"state": {}}}, folder / "ckpt.pt")
    return folder / "ckpt.pt"


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_the_authors_checkpoints_come_in(learn_sigma, tmp_path):
    net = random(time_periods="dit")
    path = as_authors(net, tmp_path, learn_sigma)
    again, shape = import_dit(path, read_tensors(path), {"num_heads": 2})
    assert {key: shape[key] for key in TINY} == TINY
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs()), net(*inputs()))


def test_the_authors_embedding_of_time():
    """t_i = cos(t 1e4^(-i / 128)), then sin, as their TimestepEmbedder has it; diffusers divides by 127."""
    found = []
    for periods in ("dit", "diffusers"):
        net = random(time_periods=periods)
        net.t_embedder["mlp"].register_forward_hook(lambda _, given, __: found.append(given[0]))
        net(*inputs())
    t = 1000 * torch.tensor([0.3, 0.9], dtype=torch.float64) - 1
    for value, divisor in zip(found, (128, 127), strict=True):
        arguments = t[:, None] * 1e4 ** (-torch.arange(128, dtype=torch.float64) / divisor)
        torch.testing.assert_close(value.double(), torch.cat([arguments.cos(), arguments.sin()], 1), rtol=0, atol=1e-3)


def test_in_and_out_by_the_command(ldm, tmp_path, monkeypatch):
    write_model(tmp_path / "runs", FLOW, {})
    net = random(in_channels=2, time_periods="dit")
    path = as_authors_of_two(net, tmp_path)
    given = ["what=diffusion", "run=dit", f"source={path}", "autoencoder=runs/ae", "scaling_factor=1", "num_heads=2"]
    ldm("convert", *given)
    ldm("sample", "model=runs/dit", "num=2", "sampler.steps=2", "batch_size=2")
    ldm("convert", "what=diffusion", "run=out", "source=runs/dit", "to=dit")
    state, again = (torch.load(file, weights_only=True) for file in (path, "runs/out/dit.pt"))
    assert state.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    refused = fails("convert", "what=diffusion", "run=x", "source=runs/dit", "to=diffusers")
    assert "embeds times as net.time_periods=diffusers does, and not as dit" in refused
    assert "pass num_heads=" in fails("convert", *given[:-1], "overwrite=true")
    assert "DiT's authors have not" in fails("convert", "what=diffusion", "run=x", "source=runs/flow", "to=dit")


def as_authors_of_two(net, folder):
    export_dit(net, TINY | {"in_channels": 2, "time_periods": "dit"}, folder, "dit")
    return folder / "dit.pt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("pos_embed"), "lacks pos_embed"),
        (lambda state: state.update(pos_embed=torch.randn(1, 16, 32)), "does not hold the sinusoids of 4 x 4 patches"),
        (lambda state: state.pop("blocks.1.attn.qkv.weight"), "lacks blocks.1.attn.qkv.weight"),
        (lambda state: state.update({"blocks.9.attn.proj.bias": torch.zeros(32)}), "lacks blocks"),
        (lambda state: state["x_embedder.proj.weight"].fill_(float("nan")), "not finite"),
    ],
)
def test_damaged_files_are_refused(change, said, tmp_path):
    state = {"pos_embed": dit_weights._positions((4, 4), 32)} | random(time_periods="dit").state_dict()
    change(state)
    with pytest.raises(ValueError, match=said):
        import_dit(tmp_path / "x.pt", state, {"num_heads": 2})


def test_blocks_that_differ_in_their_embedding_are_refused(tmp_path):
    export_dit(random(), TINY, tmp_path, "diffusers")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    from safetensors.torch import save_file

    save_file(state, file)
    with pytest.raises(ValueError, match="is not that of the first block"):
        import_dit(tmp_path, None, {})


@pytest.mark.parametrize("option", [{"positions": "rotary"}, {"mlp": "swiglu"}, {"norm": "rms"}, {"qk_norm": True}])
def test_what_diffusers_has_not_is_named(option, tmp_path):
    (name,) = option
    with pytest.raises(ValueError, match=f"diffusers' DiT has no place for net.{name}="):
        export_dit(random(**option), TINY | option, tmp_path, "diffusers")


DIT = {"model_channels": 32, "depth": 2, "head_channels": 16}
MEANFLOW = objective(LINEAR, "velocity", average=True)
JUMP = {"function": node("samplers.jump", _partial_=True), "steps": 2}


@pytest.mark.parametrize(
    ("objective", "sampling", "net", "sampler"),
    [
        (FLOW, {}, {}, "euler"),
        (objective(LDM, "eps"), {}, {}, "ddim"),
        (MEANFLOW, JUMP, {"second_time": True}, jump),
        (MEANFLOW, JUMP, {"second_time": True, "takes_guidance": True}, jump),
    ],
    ids=["flow", "ddpm", "meanflow", "meanflow, told"],
)
def test_a_whole_model_is_a_pipeline(objective, sampling, net, sampler, tmp_path):
    told = {"method": {}, "teacher": None, "teacher_path": None, "guidance": 1.0, "guidance_max": 4.0}
    student = told if "takes_guidance" in net else None
    loaded, autoencoder = load(write_model(tmp_path, objective, sampling, student, **DIT, **net))
    PipelineExport.of(loaded, autoencoder, "ddim" if sampler == "ddim" else None).write(tmp_path / "out")
    assert json.loads((tmp_path / "out/model_index.json").read_text())["transformer"][1] == "DiTTransformer2DModel"
    model, pipe = LatentDiffusionModel.of(loaded, autoencoder, torch.device("cpu")), pipeline(tmp_path / "out")
    assert_same(model, pipe, sampler, "uniform", steps=4)
    pipe.save_pretrained(tmp_path / "again")
    assert_same(model, pipeline(tmp_path / "again"), sampler, "uniform", steps=4)
