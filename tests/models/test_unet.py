import pytest
import torch

from ldm.condition import Condition
from ldm.models.embedding import time_embedding
from ldm.models.unet import UNet

TINY = {
    "in_channels": 3,
    "num_classes": 5,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "head_channels": 16,
}
NULL = torch.tensor([5, 5])  # two images without a label


def trained_looking(net):
    """Random values where the network starts at zero."""
    for parameter in net.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_starts_at_zero_and_keeps_the_shape():
    out = UNet(**TINY)(torch.randn(2, 3, 8, 4), torch.rand(2), torch.tensor([0, 5]))
    assert out.shape == (2, 3, 8, 4)
    assert out.abs().max() == 0


def test_output_depends_on_x_t_and_y():
    net, x, t, y = trained_looking(UNet(**TINY)).eval(), torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])
    out = net(x, t, y)
    assert not torch.allclose(net(x + 0.1, t, y), out)
    assert not torch.allclose(net(x, t * 0.5, y), out)
    assert not torch.allclose(net(x, t, y + 1), out)


def test_samples_of_a_batch_do_not_mix():
    net, x, t, y = trained_looking(UNet(**TINY)).eval(), torch.randn(3, 3, 8, 8), torch.rand(3), torch.arange(3)
    torch.testing.assert_close(net(x, t, y)[1:2], net(x[1:2], t[1:2], y[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_on_when_it_says_so(dropout):
    net, x, t = trained_looking(UNet(**TINY, dropout=dropout)).train(), torch.randn(2, 3, 8, 8), torch.rand(2)
    assert torch.allclose(net(x, t, NULL), net(x, t, NULL)) == (dropout == 0)


def test_time_embedding_is_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.rand(7)
    oracle = get_timestep_embedding(t * 1000, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(time_embedding(t, 64), oracle, rtol=1e-4, atol=1e-4)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="head_channels=24 does not divide"):
        UNet(**TINY | {"head_channels": 24})
    with pytest.raises(ValueError, match="multiple of the U-Net's factor 2"):
        UNet(**TINY)(torch.zeros(2, 3, 7, 8), torch.zeros(2), NULL)


CONTEXT = TINY | {"context_dim": 12}


def test_conditions_reach_the_output():
    net = trained_looking(UNet(**CONTEXT, concat_channels=2)).eval()
    x, t, context, concat = torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 5, 12), torch.randn(2, 2, 8, 8)
    out = net(x, t, Condition(NULL, context, concat=concat))
    assert not torch.allclose(net(x, t, Condition(NULL, context + 1, concat=concat)), out)
    assert not torch.allclose(net(x, t, Condition(NULL, context, concat=concat + 1)), out)
    torch.testing.assert_close(net(x, t, Condition(NULL, context.flip(1), concat=concat)), out)  # a set of tokens
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    masked = net(x, t, Condition(NULL, context, mask, concat))
    torch.testing.assert_close(masked[0], out[0])
    torch.testing.assert_close(masked[1:], net(x[1:], t[1:], Condition(NULL[1:], context[1:, :3], concat=concat[1:])))
    with pytest.raises(ValueError, match=r"wants a context"):
        net(x, t, Condition(NULL, concat=concat))
    with pytest.raises(ValueError, match="wants 2 channels of concat"):
        net(x, t, Condition(NULL, context))


def test_label_as_context_and_options_change_the_output():
    torch.manual_seed(0)
    x, t, y = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])
    net = trained_looking(UNet(**CONTEXT, label_as="context")).eval()
    assert not torch.allclose(net(x, t, y), net(x, t, NULL))
    for option in ("scale_shift", "resblock_updown", "qk_norm"):
        torch.manual_seed(1)
        plain = trained_looking(UNet(**TINY)).eval()
        torch.manual_seed(1)
        changed = trained_looking(UNet(**TINY, **{option: True})).eval()
        assert not torch.allclose(plain(x, t, y), changed(x, t, y)), option


def test_normalised_queries_bound_the_logits():
    from ldm.models.attention import attend, qk_norms

    q, k, v = torch.randn(3, 1, 2, 6, 4).unbind(0)
    norms = qk_norms(True, 4)
    torch.testing.assert_close(attend(100 * q, 50 * k, v, norms), attend(q, k, v, norms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on", [False, True])
def test_checkpointing_recomputes_when_it_says_so_and_changes_nothing(on):
    net, calls = trained_looking(UNet(**TINY, checkpoint=on)), []
    net.middle_block[0].register_forward_pre_hook(lambda *_: calls.append(1))
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    net(x, t, NULL).square().sum().backward()
    assert len(calls) == 1 + on
    oracle = UNet(**TINY)
    oracle.load_state_dict(net.state_dict())
    oracle(x, t, NULL).square().sum().backward()
    for ours, plain in zip(net.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_heads": 2}, "give one of head_channels and num_heads"),
        ({"head_channels": None}, "give one of"),
        ({"head_channels": None, "num_heads": 5}, "num_heads=5 does not divide"),
        ({"label_as": "context"}, "label_as=context"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        UNet(**TINY | options)
