import pytest
import torch

from ldm.models.unet import UNet, time_embedding

TINY = {
    "in_channels": 3,
    "num_classes": 5,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "head_channels": 16,
}


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


def test_no_label_is_the_null_class():
    net, x, t = trained_looking(UNet(**TINY)).eval(), torch.randn(2, 3, 8, 8), torch.rand(2)
    torch.testing.assert_close(net(x, t, None), net(x, t, torch.tensor([5, 5])))


def test_samples_of_a_batch_do_not_mix():
    net, x, t, y = trained_looking(UNet(**TINY)).eval(), torch.randn(3, 3, 8, 8), torch.rand(3), torch.arange(3)
    torch.testing.assert_close(net(x, t, y)[1:2], net(x[1:2], t[1:2], y[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_on_when_it_says_so(dropout):
    net, x, t = trained_looking(UNet(**TINY, dropout=dropout)).train(), torch.randn(1, 3, 8, 8), torch.rand(1)
    assert torch.allclose(net(x, t, None), net(x, t, None)) == (dropout == 0)


def test_time_embedding_is_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.rand(7)
    oracle = get_timestep_embedding(t * 1000, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(time_embedding(t, 64), oracle, rtol=1e-4, atol=1e-4)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="head_channels=24 does not divide"):
        UNet(**TINY | {"head_channels": 24})
    with pytest.raises(ValueError, match="multiple of the U-Net's factor 2"):
        UNet(**TINY)(torch.zeros(1, 3, 7, 8), torch.zeros(1), None)
