"""Weights under the names that torch.compile and DDP give them, and in several files with an index."""

import json
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.foreign import SHAPE, STATE

from ldm.exchange.autoencoder_weights import export_diffusers, import_autoencoder
from ldm.exchange.diffusers_folders import read_weights
from ldm.exchange.unet_weights import UNET_PREFIX, import_unet
from ldm.exchange.weight_files import read_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_names_that_compile_and_ddp_put_before(autoencoder, unet, tmp_path):
    """However the network, a part of it, or the whole model is wrapped, the same weights come out."""
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        state = {prefix + name: tensor for name, tensor in autoencoder.state_dict().items()}
        torch.save(state, tmp_path / "x.pt")
        assert same(import_autoencoder(tmp_path / "x.pt")[0].state_dict(), autoencoder.state_dict())
    parts = {f"encoder._orig_mod.{k.removeprefix('encoder.')}" if k.startswith("encoder.") else k: v
             for k, v in autoencoder.state_dict().items()}  # fmt: skip
    torch.save(parts, tmp_path / "x.pt")
    assert same(import_autoencoder(tmp_path / "x.pt")[0].state_dict(), autoencoder.state_dict())
    shaken = {name: torch.randn_like(tensor) for name, tensor in unet.state_dict().items()}
    whole = {f"{UNET_PREFIX}_orig_mod.{name}": torch.zeros_like(tensor) for name, tensor in shaken.items()}
    whole |= {"model_ema.diffusion_model_orig_mod" + k.replace(".", ""): v for k, v in shaken.items()}
    whole |= {"scale_factor": torch.tensor(0.5), "first_stage_model._orig_mod.x": torch.zeros(1)}
    torch.save({"state_dict": whole}, tmp_path / "x.ckpt")
    loaded, _, factor = import_unet(tmp_path / "x.ckpt", {"num_heads": 2}, True, "legacy")
    assert factor == 0.5
    assert same(loaded.state_dict(), shaken)  # the averaged weights, not the zeros


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    """Where others of its prefix are not in it, and where it is a tensor itself."""
    state = OrderedDict((name, torch.zeros(1)) for name in ("a.module.b", "a.c", "d.module", "e._orig_mod.f"))
    torch.save(state, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt").keys() == {"a.module.b", "a.c", "d.module", "e.f"}


def in_shards(folder, state, kind="safetensors"):
    """Two files and their index, as save_pretrained(max_shard_size=...) writes them."""
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.{kind}" for i in (1, 2)]
    places = {tensor: names[i % 2] for i, tensor in enumerate(sorted(state))}
    for name in names:
        part = {tensor: state[tensor] for tensor, place in places.items() if place == name}
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)
    index = folder / f"diffusion_pytorch_model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index, names


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_several_shards_are_read_as_one_file(autoencoder, kind, tmp_path):
    export_diffusers(autoencoder, SHAPE, {"scaling_factor": 0.5}, tmp_path, 32)
    state = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    in_shards(tmp_path, {f"module.{name}": tensor for name, tensor in state.items()}, kind)
    loaded, _, scaling = import_autoencoder(tmp_path)
    assert scaling == {"scaling_factor": 0.5}
    assert same(loaded.state_dict(), autoencoder.state_dict())


def test_diffusers_own_shards(tmp_path):
    from diffusers import UNet2DModel

    model = UNet2DModel(
        in_channels=4, out_channels=4, block_out_channels=(32,), layers_per_block=1, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), attention_head_dim=16, num_class_embeds=3,
    )  # fmt: skip
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    assert same(read_weights(tmp_path), model.state_dict())
    assert import_unet(tmp_path, {}, True)[1]["num_classes"] == 2


def changed(index, change):
    content = json.loads(index.read_text())
    index.write_text(json.dumps(change(content)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {}, "weight_map is missing"),
        (lambda c: [], "it is [], not a group of keys"),
        (lambda c: {"weight_map": None}, "weight_map is null, not a group of keys"),
        (lambda c: {"weight_map": {}}, "weight_map is {}, not at least 1 values"),
        (lambda c: {"weight_map": c["weight_map"] | {"a.bias": 3}}, "weight_map.a.bias is 3, not text"),
        (lambda c: {"weight_map": {"x": "../x.safetensors"}}, "not the name of a file in this folder"),
        (lambda c: {"weight_map": {"x": "/etc/passwd"}}, "not the name of a file in this folder"),
        (lambda c: {"weight_map": {"x": "pipe:touch x"}}, "not the name of a file in this folder"),
        (lambda c: {"weight_map": {"x": ""}}, "not a file's name"),
        (lambda c: {"weight_map": c["weight_map"] | {"more": "none.safetensors"}}, "none.safetensors does not exist"),
        (lambda c: {"weight_map": c["weight_map"] | {"more": c["weight_map"]["a.bias"]}}, "lacks more, as"),
        (lambda c: {"weight_map": dict.fromkeys(c["weight_map"], c["weight_map"]["a.bias"])}, "lacks a.weight, as"),
        (lambda c: {"weight_map": {"a.bias": c["weight_map"]["a.bias"], "a.weight": c["weight_map"]["a.bias"]}},
         "lacks a.weight, as"),
    ],
)  # fmt: skip
def test_indices_of_shards(change, said, tmp_path):
    index, _ = in_shards(tmp_path, STATE)
    changed(index, change)
    with pytest.raises(ValueError) as info:
        read_weights(tmp_path)
    assert said in str(info.value)
    assert str(tmp_path) in str(info.value)


def test_a_tensor_that_two_shards_hold(tmp_path):
    _, names = in_shards(tmp_path, STATE)
    save_file(STATE, tmp_path / names[0])
    with pytest.raises(ValueError, match=r"00001-of-00002\.safetensors should not hold a\.weight, as .*index"):
        read_weights(tmp_path)


def test_shards_without_their_index_and_a_shard_that_is_gone(tmp_path):
    index, names = in_shards(tmp_path, STATE)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors does not exist"):
        read_weights(tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match=r"00001-of-00002\.safetensors needs its index"):
        read_weights(tmp_path)


def test_what_is_read_first(tmp_path):
    """safetensors before .bin, full precision before a variant, a whole file before shards."""
    for i, name in enumerate(
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "shards", WEIGHTS)
    ):
        state = {name: tensor + i for name, tensor in STATE.items()}
        if name == "shards":
            in_shards(tmp_path, state)
        else:
            save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
        assert same(read_weights(tmp_path), state), name
