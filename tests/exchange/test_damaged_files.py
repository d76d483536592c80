"""Damaged files of weights: each refusal is one line that names the file and the tensor."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.foreign import STATE

from ldm.exchange.autoencoder_weights import import_autoencoder
from ldm.exchange.unet_weights import UNET_PREFIX, import_unet
from ldm.exchange.weight_files import read_tensors


def refused(read, path, *more):
    with pytest.raises(ValueError) as info:
        read(path, *more)
    line = str(info.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_no_flipped_byte_of_a_checkpoint_passes(tmp_path):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": STATE}, file)
    whole = file.read_bytes()
    refusals = 0
    for i in range(0, len(whole), 7):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        try:
            tensors = read_tensors(file)
        except ValueError as error:
            refusals += 1
            assert str(file) in str(error)
            assert "\n" not in str(error)
        else:  # of what zip does not check: times, versions, padding
            assert same(tensors, STATE), i
    assert refusals > len(whole) // 21


@pytest.mark.parametrize("kind", ["pickle", "safetensors"])
def test_damage_to_files_without_checksums_is_no_trace(kind, tmp_path):
    file = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    if kind == "pickle":
        torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=False)
    else:
        save_file(STATE, file)
    assert same(read_tensors(file), STATE)  # they still load
    whole = file.read_bytes()
    for i in range(0, len(whole), 3):
        for damaged in (whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :], whole[:i]):
            file.write_bytes(damaged)
            try:
                read_tensors(file)
            except ValueError as error:
                assert str(file) in str(error)
                assert "\n" not in str(error)


def safetensors(header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),  # overlapping
        safetensors({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8),
        safetensors({"a": entry(0, 8), "b": entry(16, 24)}, b"\0" * 24),  # a gap
        safetensors({"a": entry(0, 8)}),  # more bytes than tensors
        safetensors({"a": entry(0, 64)}),  # out of range
        safetensors({"a": entry(8, 0)}),
        safetensors({"a": entry(0, 8, shape=(2**62, 4))}, b"\0" * 8),
        safetensors({"a": entry(0, 8, shape=(-2,))}, b"\0" * 8),
        safetensors({"a": entry(0, 8, dtype="F3")}, b"\0" * 8),
        safetensors([1, 2]),
        safetensors({"a": None}),
        safetensors(b"{" * 100),
        safetensors(b"\xff\xfe"),
        safetensors({"a": entry(0, 16, (4,))}, length=2**60),
        b"",
        b"\0" * 8,
    ],
)
def test_headers_of_safetensors(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert "is damaged or no checkpoint" in refused(read_tensors, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (lambda: torch.zeros(3, 3).to_sparse(), "w is no plain tensor"),
        (lambda: torch.zeros(3, device="meta"), "w is no plain tensor"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "w is no plain tensor"),
        (lambda: torch.zeros(1).expand(10**6, 10**6), "w is [1000000, 1000000], of which the file holds only a part"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch warns of quantised tensors
def test_tensors_that_are_not_plain(tensor, said, tmp_path):
    torch.save({"w": tensor()}, tmp_path / "x.pt")
    assert said in refused(read_tensors, tmp_path / "x.pt")


@pytest.mark.parametrize("content", [7, "text", None, [1, 2], {"state_dict": None}, {"state_dict": [1]}, {3: "x"}])
def test_what_holds_no_tensors(content, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    assert read_tensors(tmp_path / "x.ckpt") == {}
    assert "lacks encoder.conv_in.weight" in refused(import_autoencoder, tmp_path / "x.ckpt")


def test_what_is_no_file(tmp_path):
    assert "is no regular file" in refused(read_tensors, Path("/dev/zero"))
    (tmp_path / "x.ckpt").symlink_to("nowhere")
    assert "does not exist" in refused(read_tensors, tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encoder.conv_in.weight", torch.tensor(1.0), "encoder.conv_in.weight is [], not of 4 dimensions"),
        ("encoder.conv_in.weight", torch.zeros(0, 3, 3, 3), "encoder.conv_in.weight is [0, 3, 3, 3], not of 4"),
        ("encoder.down.0.block.0.conv1.weight", torch.zeros(4), "conv1.weight is [4], not of 4 dimensions"),
        ("quant_conv.weight", torch.zeros(8, 8), "quant_conv.weight is [8, 8], not of 4 dimensions"),
        ("post_quant_conv.weight", torch.tensor(1.0), "post_quant_conv.weight is [], not of 4 dimensions"),
        ("quant_conv.weight", torch.zeros(9, 8, 1, 1), "quant_conv maps 8 to 9 channels"),
        ("quant_conv.bias", torch.zeros(8, dtype=torch.int64), "quant_conv.bias is of torch.int64"),
        ("quant_conv.bias", torch.zeros(8, dtype=torch.complex64), "quant_conv.bias is of torch.complex64"),
        ("quant_conv.bias", torch.full((8,), float("inf")), "quant_conv.bias holds values that are not finite"),
        ("quant_conv.bias", torch.full((8,), 1e300, dtype=torch.float64), "values that are not finite"),  # in float32
        ("encoder.norm_out.weight", torch.tensor(1.0), "encoder.norm_out.weight is [], not [32]"),
        ("decoder.conv_out.weight", torch.zeros(3), "decoder.conv_out.weight is [3], not [3, 32, 3, 3]"),
        ("encoder.down.99.block.0.conv1.weight", torch.zeros(1), "lacks encoder.down.1.block.0.conv1.weight"),
        ("encoder.down.123456789.x", torch.zeros(1), "holds encoder.down.123456789.x"),
        ("encoder.down.0.block." + "9" * 5000 + ".x", torch.zeros(1), "holds encoder.down.0.block.999"),
        ("scale_factor", torch.tensor(0.0), "scale_factor is 0, not a finite number of more than 0"),
        ("scale_factor", torch.tensor(-1.0), "scale_factor is -1, not"),
        ("scale_factor", torch.tensor(float("nan")), "scale_factor is nan, not"),
        ("scale_factor", torch.tensor(float("inf")), "scale_factor is inf, not"),
        ("scale_factor", torch.ones(4), "scale_factor is a tensor of [4], not"),
    ],
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_tensors_of_an_autoencoder(autoencoder, name, value, said, suffix, tmp_path):
    file = tmp_path / f"model.{suffix}"
    state = autoencoder.state_dict() | {name: value}
    torch.save({"state_dict": state}, file) if suffix == "ckpt" else save_file(state, file)
    assert said in refused(import_autoencoder, file)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("time_embed.0.weight", torch.tensor(1.0), "time_embed.0.weight is [], not of 2 dimensions"),
        ("input_blocks.0.0.weight", torch.zeros(32), "input_blocks.0.0.weight is [32], not of 4 dimensions"),
        ("out.2.weight", torch.tensor(1.0), "out.2.weight is [], not of 4 dimensions"),
        ("out.2.bias", torch.tensor(1.0), "out.2.bias is [], not [4]"),
        ("middle_block.1.norm.weight", torch.tensor(1.0), "middle_block.1.norm.weight is [], not of 1 dimension"),
        ("middle_block.1.qkv.weight", torch.tensor(1.0), "middle_block.1.qkv.weight is [], not [96, 32, 1]"),
        ("middle_block.1.qkv.bias", torch.zeros(95), "middle_block.1.qkv.bias is [95], not [96]"),
        ("input_blocks.1.0.out_layers.3.weight", torch.zeros(3, 3), "out_layers.3.weight is [3, 3], not of 4"),
        ("input_blocks.1.0.emb_layers.1.bias", torch.tensor(1.0), "emb_layers.1.bias is [], not of 1 dimension"),
        ("label_emb.weight", torch.tensor(1.0), "label_emb.weight is [], not of 2 dimensions"),
        ("label_emb.weight", torch.zeros(0, 128), "label_emb.weight is [0, 128], not of 2 dimensions"),
        ("label_emb.weight", torch.zeros(1, 128), "label_emb.weight has one row alone"),
        ("label_emb.weight", torch.zeros(4, 128).long(), "label_emb.weight is of torch.int64"),
        ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", torch.zeros(3), "to_k.weight is [3], not of 2"),
        ("input_blocks.999.0.in_layers.0.bias", torch.zeros(1), "has a level without a residual block"),
        ("input_blocks." + "9" * 5000 + ".0.in_layers.0.bias", torch.zeros(1), "holds input_blocks.999"),
        ("out.2.weight", torch.full((4, 32, 3, 3), float("nan")), "out.2.weight holds values that are not finite"),
    ],
)
@pytest.mark.parametrize("prefix", ["", UNET_PREFIX])
def test_tensors_of_a_unet(unet, name, value, said, prefix, tmp_path):
    state = {prefix + key: tensor for key, tensor in (unet.state_dict() | {name: value}).items()}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    assert said in refused(import_unet, tmp_path / "model.ckpt", {"head_channels": 16}, True, "new")


@pytest.mark.parametrize("heads", [{"head_channels": 5}, {"head_channels": 10**9}, {"num_heads": 33}])
def test_heads_that_do_not_divide_the_channels(unet, heads, tmp_path):
    torch.save(unet.state_dict(), tmp_path / "model.pt")
    line = refused(import_unet, tmp_path / "model.pt", heads, True, "new")
    assert next(iter(heads)) in line


def test_numpy_in_an_old_checkpoint_is_passed_over_and_never_made(tmp_path):
    best = {"best": np.float64(0.3), "bytes": np.float32(2)}
    torch.save({"state_dict": STATE, "callbacks": best}, tmp_path / "x.ckpt")
    assert same(read_tensors(tmp_path / "x.ckpt"), STATE)
    torch.save({"state_dict": {"w": np.zeros(3)}}, tmp_path / "x.ckpt")
    assert "nothing of it was executed" in refused(read_tensors, tmp_path / "x.ckpt")
