import pytest
import torch

from ldm.models.discriminator import BatchNorm, PatchDiscriminator


@pytest.mark.parametrize(("num_layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field_by_gradient(num_layers, pixels):
    discriminator = PatchDiscriminator(channels=8, num_layers=num_layers, norm="none")
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = discriminator(x)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == pixels


def test_logits_at_256_px_are_a_30_by_30_map_from_ldms_parameters():
    discriminator = PatchDiscriminator(norm="batch")
    published = PatchDiscriminator(in_channels=6, norm="batch")  # pix2pix's, which sees two images: 2.769 M
    assert sum(p.numel() for p in published.parameters()) == 2_768_705
    with torch.no_grad():
        assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_batch_norm_is_torchs():
    ours, oracle = BatchNorm(5), torch.nn.BatchNorm2d(5, track_running_stats=False)
    for module in (ours, oracle):
        module.weight.data.copy_(torch.arange(1.0, 6.0))
        module.bias.data.fill_(0.3)
    x = (torch.randn(4, 5, 6, 6) * 3 + 2).requires_grad_()
    gradients = [torch.autograd.grad(norm(x).square().sum() + norm(x)[0].sum(), x)[0] for norm in (ours, oracle)]
    torch.testing.assert_close(ours(x), oracle(x))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_too_small_an_image_is_refused():
    discriminator = PatchDiscriminator()
    assert discriminator(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="needs 24 px"):
        discriminator(torch.zeros(1, 3, 23, 24))


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"discriminator\.norm must be one of group, batch, spectral, none"):
        PatchDiscriminator(norm="layer")
