import pytest
import torch
from torch import nn

from ldm.models.autoencoder import Autoencoder

TINY = {"channels": 16, "channel_mult": [1, 2, 4], "num_res_blocks": 1, "latent_channels": 3}


def test_shapes_and_the_bottleneck():
    model = Autoencoder(**TINY)
    posterior = model.encode(torch.zeros(2, 3, 32, 24))
    assert posterior.mean.shape == posterior.logvar.shape == (2, 3, 8, 6)
    x_hat, _ = model(torch.zeros(2, 3, 32, 24))
    assert x_hat.shape == (2, 3, 32, 24)


def test_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of the autoencoder's factor 4"):
        Autoencoder(**TINY).encode(torch.zeros(1, 3, 30, 32))


def test_a_plain_autoencoder_is_its_mean():
    model, x = Autoencoder(**TINY, variational=False), torch.randn(1, 3, 16, 16)
    posterior = model.encode(x)
    assert posterior.mean.shape == (1, 3, 4, 4)
    torch.testing.assert_close(posterior.sample(), posterior.mean, atol=1e-5, rtol=0)
    assert posterior.moments().half().isfinite().all()


def test_half_precision_ends_in_float32():
    model, x = Autoencoder(**TINY), torch.randn(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        x_hat, posterior = model(x)
    assert x_hat.dtype == posterior.mean.dtype == torch.float32


def test_the_shortcut_alone_can_hold_a_principal_component_analysis():
    """With the networks' last layers at zero, 48 latent channels of orthonormal patches give every pixel back."""
    model = Autoencoder(**TINY | {"latent_channels": 48}, variational=False, shortcut=True)
    basis, _ = torch.linalg.qr(torch.randn(48, 48))
    with torch.no_grad():
        for last in (model.quant_conv, model.decoder.conv_out):
            last.weight.zero_(), last.bias.zero_()
        for shortcut in (model.encoder_shortcut, model.decoder_shortcut):
            shortcut.weight.copy_(basis.reshape(48, 3, 4, 4))
            shortcut.bias.zero_()
    x = torch.randn(2, 3, 32, 24)
    torch.testing.assert_close(model.decode(model.encode(x).mean), x, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x)[0].dtype == torch.float32


def test_state_has_the_names_of_published_checkpoints():
    names = set(Autoencoder(**TINY, attention_resolutions=[4]).state_dict())
    assert {
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.2.attn.0.proj_out.bias",
        "encoder.mid.attn_1.q.weight",
        "decoder.up.2.upsample.conv.weight",
        "decoder.up.0.block.1.conv2.bias",
        "decoder.norm_out.weight",
        "quant_conv.weight",
        "post_quant_conv.bias",
    } <= names
    assert not any("resample" in name for name in names)


def test_strided_convolution_pads_right_and_bottom_only():
    from ldm.models.autoencoder import Downsample

    down = Downsample(1)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    assert down(x).flatten().tolist() == [1, 0, 0, 0]
    x = torch.ones(1, 1, 4, 4)
    assert down(x).flatten().tolist() == [9, 6, 6, 4]
