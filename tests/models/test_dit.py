"""The diffusion transformer against diffusers' parts, torch's own, and what its options promise."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import SwiGLU as TheirSwiGLU
from diffusers.models.embeddings import apply_rotary_emb, get_2d_rotary_pos_embed, get_2d_sincos_pos_embed
from torch import nn

from ldm.condition import Condition
from ldm.models import dit_layers
from ldm.models.dit import DiT

TINY = {
    "in_channels": 3, "num_classes": 5, "latent_size": [8, 8], "patch": 2, "model_channels": 24, "depth": 2,
    "head_channels": 12,
}  # fmt: skip
OPTIONS = [
    {},
    {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": True},
    {"patch": 1, "mlp_ratio": 2.0},
    {"context_dim": 7},
    {"context_dim": 7, "context_pooled": True},
    {"context_dim": 7, "context_as": "joint", "positions": "rotary"},
    {"concat_channels": 2, "second_time": True, "takes_guidance": True},
]


def lively(**options):
    """A DiT whose zeros have moved."""
    torch.manual_seed(0)
    net = DiT(**TINY | options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2) if not parameter.any() else None
    return net.eval()


def inputs(net, size=(8, 8), rows=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, *size, generator=generator)
    parts = {
        "context": torch.randn(rows, 5, 7, generator=generator),
        "concat": torch.randn(rows, 2, *size, generator=generator),
        "s": torch.rand(rows, generator=generator) / 2,
        "w": 1 + torch.rand(rows, generator=generator),
    }
    told = {name: part for name, part in parts.items() if name in net.takes}
    return x, torch.linspace(0.6, 0.9, rows), Condition(torch.arange(rows), **told)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_that_is_told_reaches_the_output_and_gradients_all_weights(options):
    net = lively(**options)
    x, t, condition = inputs(net)
    out = net(x, t, condition)
    assert out.shape == x.shape
    assert not torch.allclose(net(x, t + 0.05, condition), out)
    for name, part in condition.parts().items():
        changed = condition._replace(**{name: part + 1})
        assert not torch.allclose(net(x, t, changed), out, atol=1e-4), name
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_starts_at_zero_and_its_blocks_as_the_identity(options):
    net = DiT(**TINY | options)
    x, t, condition = inputs(net)
    assert not net(x, t, condition).any()
    tokens, emb = torch.randn(2, 4, 24), torch.randn(2, 24)
    by = None if net.positions == "sincos" else torch.randn(2, 4, 6)
    for block in net.blocks:
        assert torch.equal(block(tokens, emb, by, None, condition.context), tokens)


def test_positions_are_the_sinusoids_of_mae():
    theirs = get_2d_sincos_pos_embed(32, (4, 4), base_size=4, output_type="pt")
    at = dit_layers.coordinates(4, 4, (4, 4), torch.device("cpu"))
    torch.testing.assert_close(dit_layers.sinusoidal_positions(at, 32), theirs.float())
    # of another size they spread over what was trained, as diffusers' base_size does
    theirs = get_2d_sincos_pos_embed(32, (6, 6), base_size=4, output_type="pt")
    at = dit_layers.coordinates(6, 6, (4, 4), torch.device("cpu"))
    torch.testing.assert_close(dit_layers.sinusoidal_positions(at, 32), theirs.float(), rtol=1e-5, atol=1e-5)


def test_rotations_are_diffusers():
    x = torch.randn(2, 3, 20, 16)
    at = dit_layers.coordinates(4, 5, (4, 5), torch.device("cpu"))
    theirs = apply_rotary_emb(x, get_2d_rotary_pos_embed(16, ((0, 0), (4, 5)), (4, 5)))
    torch.testing.assert_close(dit_layers.rotate(x, dit_layers.rotations(at, 16)), theirs)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).unbind(0)
    at = dit_layers.coordinates(6, 6, (6, 6), torch.device("cpu"))
    by = dit_layers.rotations(at, 16)
    product = dit_layers.rotate(q.expand(1, 1, 36, 16), by) @ dit_layers.rotate(k.expand(1, 1, 36, 16), by).mT
    first = product[0, 0].reshape(6, 6, 6, 6)
    torch.testing.assert_close(first[1:, 1:, 1:, 1:], first[:-1, :-1, :-1, :-1], rtol=1e-5, atol=1e-5)


def test_swiglu_is_diffusers_and_as_large_as_the_plain_mlp():
    ours, theirs = dit_layers.SwiGLU(24, 96), TheirSwiGLU(24, 64)
    ours.w12.weight.data, ours.w12.bias.data = (
        torch.cat(tensor.detach().chunk(2)[::-1]) for tensor in (theirs.proj.weight, theirs.proj.bias)
    )  # they have the value first
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x), F.linear(theirs(x), ours.w3.weight, ours.w3.bias))
    sizes = [sum(p.numel() for p in mlp.parameters()) for mlp in (ours, dit_layers.Mlp(24, 96))]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_the_root_mean_square_norm_is_torchs():
    x, norm = torch.randn(3, 4, 24), dit_layers.norm_of("rms", 24)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (24,), norm.weight, 1e-6))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("context_as", ["cross", "joint"])
def test_masked_tokens_say_nothing(context_as, pooled):
    net = lively(context_dim=7, context_as=context_as, context_pooled=pooled)
    x, t, condition = inputs(net)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    masked = net(x, t, condition._replace(mask=mask))
    torch.testing.assert_close(masked[:1], net(x, t, condition)[:1], rtol=1e-4, atol=1e-5)
    fewer = Condition(condition.label[1:], condition.context[1:, :3])
    torch.testing.assert_close(masked[1:], net(x[1:], t[1:], fewer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_other_sizes_than_in_training(positions):
    net = lively(positions=positions)
    assert net(*inputs(net, (12, 6))).shape == (2, 3, 12, 6)
    # a constant image of any size is one with the same tokens, but for where they are
    assert not torch.allclose(net(*inputs(net, (8, 4)))[..., :4], net(*inputs(net, (8, 8)))[..., :4])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_recomputed_gradients_are_the_same(options):
    grads = []
    for checkpoint in (False, True):
        net = lively(**options, checkpoint=checkpoint).train()
        net(*inputs(net)).square().sum().backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head_channels": 10}, "head_channels=10 must be a multiple of 4"),
        ({"patch": 3}, "net.patch=3 does not divide latents of 8 x 8"),
    ],
)
def test_what_cannot_be_built_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DiT(**TINY | options)


def test_what_it_does_not_take_is_refused():
    net = DiT(**TINY)
    x, t, condition = inputs(net)
    with pytest.raises(ValueError, match=r"the DiT takes no concat in its condition"):
        net(x, t, condition._replace(concat=x))
    with pytest.raises(ValueError, match="not a multiple of the DiT's patch 2"):
        net(x[..., :7], t, condition)
    with pytest.raises(ValueError, match="wants a context exactly where"):
        DiT(**TINY, context_dim=7)(x, t, condition)
