"""Checkpoints whose options diffusers has not, against ADM's U-Net written out in tests/support/adm.py."""

import pytest
import torch
from support.adm import AdmUNet

from ldm.exchange.unet_weights import UNET_PREFIX, export_unet, import_unet

# the network's options, and what a user says of its attention
NETWORKS = {
    "one head": ({}, {"num_heads": 1}, None),
    "legacy order, two heads": ({"heads": lambda w: 2}, {"num_heads": 2}, "legacy"),
    "new order, two heads": ({"heads": lambda w: 2, "new_order": True}, {"num_heads": 2}, "new"),
    "new order, heads of a size": ({"heads": lambda w: w // 16, "new_order": True}, {"head_channels": 16}, "new"),
    "other heads upwards": (
        {"heads": lambda w: 2, "heads_up": lambda w: 4},
        {"num_heads": 2, "num_heads_upsample": 4},
        "legacy",
    ),
    "other heads upwards, new order": (
        {"heads": lambda w: 1, "heads_up": lambda w: 4, "new_order": True},
        {"num_heads": 1, "num_heads_upsample": 4},
        "new",
    ),
    "no convolution where the resolution changes": ({"convolution": False}, {"num_heads": 1}, None),
    "half-width multipliers, ADM's stem": ({"channels": 64, "mult": (0.5, 1)}, {"num_heads": 1}, None),
    "half-width multipliers, LDM's stem": ({"channels": 64, "stem": 64, "mult": (0.5, 1.5)}, {"num_heads": 1}, None),
    "a first level wider than the stem": ({"stem": 32, "mult": (2, 3)}, {"num_heads": 1}, None),
    "ADM's blocks": ({"scale_shift": True, "updown": True}, {"num_heads": 1}, None),
}


def network(options):
    return AdmUNet(**{"mult": (1, 2)} | options).eval()


def save(model, path, prefix=UNET_PREFIX):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state} if prefix else state, path)
    return path


def difference(imported, model):
    """Of the two networks' outputs, relative to their size; ADM counts timesteps from 0."""
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0.001, 0.4, 1.0]), torch.tensor([0, 2, 4])
    with torch.no_grad():
        expected = model(x, 1000 * t - 1, y)[:, :4]
        return ((imported(x, t, y) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_imports_do_what_the_network_does(name, tmp_path):
    options, heads, order = NETWORKS[name]
    model = network(options)
    imported, shape, _ = import_unet(save(model, tmp_path / "model.ckpt"), heads, False, order)
    assert difference(imported, model) <= 1e-5
    again = type(imported)(**shape)  # the card's shape builds the same network
    again.load_state_dict(imported.state_dict())
    assert difference(again.eval(), model) <= 1e-5


@pytest.mark.parametrize(
    ("name", "heads", "order"),
    [
        ("new order, two heads", {"num_heads": 2}, "legacy"),
        ("legacy order, two heads", {"num_heads": 2}, "new"),
        ("other heads upwards", {"num_heads": 2}, "legacy"),
    ],
)
def test_what_is_asked_for_matters(name, heads, order, tmp_path):
    """The weights fit as well if the answer is wrong: so there is no way but to ask."""
    model = network(NETWORKS[name][0])
    wrong, _, _ = import_unet(save(model, tmp_path / "model.ckpt"), heads, False, order)
    assert difference(wrong, model) > 1e-3


def test_what_the_weights_do_not_tell_is_asked_for(tmp_path):
    path = save(network({"heads": lambda w: 2}), tmp_path / "model.ckpt")
    for heads, order, message in (
        ({}, "legacy", r"does not tell its attention heads: pass num_heads= or head_channels="),
        ({"num_heads": 2, "head_channels": 16}, "legacy", "pass num_heads= or head_channels="),
        ({"num_heads_upsample": 2}, "legacy", "pass num_heads= or head_channels="),
        ({"num_heads": 2}, None, r"how its attention heads lie in qkv: pass attention_order=new if .* else .*=legacy"),
        ({"num_heads": 1, "num_heads_upsample": 2}, None, "pass attention_order=new"),
        ({"num_heads": 2}, "old", "pass attention_order=new"),
        ({"head_channels": 16, "num_heads_upsample": 2}, "legacy", r"num_heads_upsample goes with net\.num_heads"),
    ):
        with pytest.raises(ValueError, match=message):
            import_unet(path, heads, False, order)


def test_adms_bare_file_with_a_learned_variance(tmp_path, caplog):
    """A .pt without "state_dict", prefix or null class; of mean and variance the mean is taken, and the log says so."""
    model = network({"outputs": 8, "scale_shift": True, "updown": True})
    with caplog.at_level("INFO"):
        imported, shape, factor = import_unet(save(model, tmp_path / "adm.pt", ""), {"num_heads": 1}, False)
    assert (shape["in_channels"], shape["num_classes"], factor) == (4, 5, None)
    assert difference(imported, model) <= 1e-5
    assert "adm.pt predicts a mean and a variance (learn_sigma): only the mean is taken" in caplog.text
    assert imported.label_emb.weight[5].abs().max() == 0


def test_outputs_that_are_neither_are_refused(tmp_path):
    with pytest.raises(ValueError, match="predicts 6 channels from 4"):
        import_unet(save(network({"outputs": 6}), tmp_path / "model.ckpt"), {"num_heads": 1}, False)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("no convolution where the resolution changes", "conv_resample"),
        ("half-width multipliers, ADM's stem", "stem_channels"),
        ("a first level wider than the stem", "channel_mult"),
        ("other heads upwards", "num_heads_upsample"),
    ],
)
def test_what_diffusers_has_no_place_for_is_not_exported(name, key, tmp_path):
    options, heads, order = NETWORKS[name]
    imported, shape, _ = import_unet(save(network(options), tmp_path / "model.ckpt"), heads, False, order)
    with pytest.raises(ValueError, match=rf"net\.{key}="):
        export_unet(imported, shape, tmp_path, 8)
