"""Quantisers against taming's formulas in float64, brute force, and FSQ's own table."""

import numpy as np
import pytest
import torch

from ldm.models.autoencoder import Autoencoder
from ldm.models.quantizer import FiniteScalarQuantizer, VectorQuantizer, quantizer_of, usage


def vq(**chosen):
    torch.manual_seed(0)
    made = VectorQuantizer(channels=3, codes=7, **chosen).double()
    with torch.no_grad():
        made.embedding.weight.normal_()
    return made


@pytest.mark.parametrize("legacy", [True, False])
def test_losses_and_gradients_are_taming_s(legacy):
    """Its VectorQuantizer2: mean((z_q.detach() - z)^2) + beta mean((z_q - z.detach())^2), or beta before the first."""
    made, z = vq(legacy=legacy), torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    book = made.embedding.weight.detach().numpy()
    rows = z.detach().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    nearest = ((rows[:, None] - book[None]) ** 2).sum(2).argmin(1)
    found = made(z)
    assert found.codes.flatten().tolist() == nearest.tolist()
    away = rows - book[nearest]
    assert float(found.penalty.detach().mean()) == pytest.approx((away**2).mean() * 1.25)
    assert float(found.distance) == pytest.approx((away**2).mean())
    weight = torch.randn_like(z)
    ((found.z * weight).sum() + found.penalty.mean()).backward()
    to_latents, to_codes = (1.0, 0.25) if legacy else (0.25, 1.0)
    wanted = weight.permute(0, 2, 3, 1).reshape(-1, 3).numpy() + to_latents * 2 * away / away.size
    np.testing.assert_allclose(z.grad.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), wanted)
    pulled = np.zeros_like(book)
    np.add.at(pulled, nearest, -to_codes * 2 * away / away.size)
    np.testing.assert_allclose(made.embedding.weight.grad.numpy(), pulled)


def test_vectors_of_codes_are_what_latents_become():
    made, z = vq(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = made(z)
    torch.testing.assert_close(made.vectors(found.codes), found.z.detach())
    assert torch.equal(made(found.z).codes, found.codes)


def test_cosine_codes_are_nearest_in_angle_and_have_length_1():
    made, z = vq(cosine=True), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = made(z)
    book, rows = made.embedding.weight.detach(), z.movedim(1, -1).flatten(0, -2)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], book[None], dim=2)
    assert torch.equal(found.codes.flatten(), cosine.argmax(1))
    torch.testing.assert_close(found.z.norm(dim=1), torch.ones(2, 4, 4, dtype=torch.float64))


def test_running_means_are_those_of_the_latents():
    """After many batches of the same latents each vector that is used is the mean of its own."""
    made, z = vq(ema=0.5), torch.randn(4, 3, 4, 4, dtype=torch.float64)
    assert not made.embedding.weight.requires_grad
    for _ in range(60):
        found = made(z)
    rows = z.movedim(1, -1).flatten(0, -2)
    for code in found.codes.unique():
        mean = rows[found.codes.flatten() == code].mean(0)
        torch.testing.assert_close(made.embedding.weight[code], mean, rtol=1e-3, atol=1e-3)
    before = made.embedding.weight.clone()
    made.eval()(z + 1)
    assert torch.equal(made.embedding.weight, before)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_vectors_that_nothing_uses_become_latents(ema):
    made = vq(restart=0.5, ema=ema)
    with torch.no_grad():
        made.embedding.weight[3:] = 100.0
    z = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    for _ in range(100):
        made(z)
    rows, book = z.movedim(1, -1).flatten(0, -2), made.embedding.weight.detach()
    assert float(book.abs().max()) < 10
    if ema == 0:
        assert float(torch.cdist(book[3:], rows).min(1).values.max()) < 1e-6


def test_fsq_has_as_many_codes_as_its_paper_s_table_says():
    table = {
        240: [8, 6, 5],
        1000: [8, 5, 5, 5],
        4375: [7, 5, 5, 5, 5],
        15360: [8, 8, 8, 6, 5],
        64000: [8, 8, 8, 5, 5, 5],
    }
    for count, levels in table.items():
        assert FiniteScalarQuantizer(channels=len(levels), levels=levels).count == count


def test_fsq_rounds_each_channel_to_its_levels():
    made = FiniteScalarQuantizer(channels=3, levels=[8, 5, 4])
    z = 10 * torch.randn(64, 3, 8, 8)
    z[0], z[1] = -50, 50  # the ends
    found = made(z)
    assert [len(found.z[:, c].unique()) for c in range(3)] == [8, 5, 4]
    assert float(found.z.min()) == -1
    assert (int(found.codes.min()), int(found.codes.max())) == (0, 8 * 5 * 4 - 1)
    torch.testing.assert_close(made.vectors(found.codes), found.z)
    assert torch.equal(made(torch.zeros(1, 3, 1, 1)).z, torch.zeros(1, 3, 1, 1))
    assert len(made.vectors(torch.arange(160).view(1, 1, 160)).flatten(2).unique(dim=2)[0].T) == 160


def test_fsq_s_gradient_is_that_of_what_is_rounded():
    made = FiniteScalarQuantizer(channels=2, levels=[5, 5])
    z = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    made(z).z.sum().backward()
    half = 4 * (1 - 1e-3) / 2
    torch.testing.assert_close(z.grad, (1 - z.detach().tanh() ** 2) * half / 2)


def test_usage_is_of_all_codes():
    used, perplexity = usage(torch.tensor([4.0, 4.0, 0.0, 0.0]))
    assert (float(used), float(perplexity)) == (0.5, pytest.approx(2))


def test_decoding_rounds_to_codes():
    model = Autoencoder(
        channels=8, channel_mult=[1, 2], num_res_blocks=1, latent_channels=3, norm_groups=4, variational=False,
        quantizer={"kind": "fsq", "levels": [5, 5, 5]},
    ).eval()  # fmt: skip
    z = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model.decode(z), model.decode_quantized(model.quantize(z).z))
    torch.testing.assert_close(model.decode(z), model.decode(z + 1e-4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"kind": "none"}, "quantizer.kind=none must be one of vq, fsq"),
        ({"kind": "fsq", "levels": [8, 5]}, "autoencoder.latent_channels=2"),
        ({"kind": "fsq", "levels": [8, 1, 5]}, "levels"),
        ({"kind": "vq", "codes": 8, "betas": 1}, "unexpected keyword argument 'betas'"),
    ],
)
def test_what_does_not_fit_is_said(node, said):
    with pytest.raises(ValueError, match=said):
        quantizer_of(node, 3)
