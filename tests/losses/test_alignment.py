"""Alignment with dense features, against the papers' sums written out."""

import numpy as np
import pytest
import torch
from torch import nn

from ldm.condition import Condition
from ldm.losses.alignment import Alignment, LatentAlignment, Tap, likeness, resized
from ldm.models.dit import DiT
from ldm.models.unet import UNet


def unet():
    return UNet(
        in_channels=4, num_classes=3, model_channels=32, channel_mult=[1, 2], num_res_blocks=1,
        attention_resolutions=[], head_channels=16,
    )  # fmt: skip


def dit(**more):
    return DiT(
        in_channels=4, num_classes=3, latent_size=[8, 8], patch=2, model_channels=32, depth=3, head_channels=16, **more
    )


def called(net, layer, context=None):
    tap = Tap(net, layer)
    mask = None if context is None else torch.ones(context.shape[:2], dtype=torch.bool)
    net(torch.randn(2, 4, 8, 8), torch.rand(2), Condition(torch.tensor([0, 3]), context=context, mask=mask))
    return tap


def test_a_layer_is_a_map_whatever_the_network_calls_it():
    assert called(unet(), 0).take((8, 8)).shape == (2, 32, 8, 8)
    assert called(unet(), 3).take((8, 8)).shape == (2, 64, 4, 4)
    assert called(dit(), 1).take((8, 8)).shape == (2, 32, 4, 4)
    joint = called(dit(context_dim=5, context_as="joint"), 1, context=torch.randn(2, 7, 5))
    assert joint.kept.shape[1] == 16 + 7
    assert torch.equal(joint.kept[:, 5], joint.take((8, 8))[:, :, 1, 1])  # the second row's second patch


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"align.layer=9: DiT has blocks 0 to 2"):
        Tap(dit(), 9)
    with pytest.raises(ValueError, match="Linear has no attribute blocks"):
        Tap(nn.Linear(1, 1), 0)
    tap = Tap(dit(), 0)
    tap.kept = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"returns \[2, 3\], neither"):
        tap.take((8, 8))


def test_the_term_is_minus_the_weight_times_the_mean_cosine():
    tap = called(dit(), 1)
    alignment = Alignment(tap=tap, width=32, channels=6, weight=0.5, until=10, hidden=8)
    kept, features = tap.kept.detach().clone(), torch.randn(2, 6, 4, 4)
    term, logged = alignment(features, (8, 8), 9)
    cosines = []
    for b in range(2):
        for i in range(4):
            for j in range(4):
                p, f = alignment.project(kept[b, 4 * i + j]).detach().numpy(), features[b, :, i, j].numpy()
                cosines.append(p @ f / np.linalg.norm(p) / np.linalg.norm(f))
    assert float(logged["alignment"]) == pytest.approx(np.mean(cosines), rel=1e-5)
    assert float(term.detach()) == pytest.approx(-0.5 * np.mean(cosines), rel=1e-5)


def test_it_ends_but_gives_every_gradient_still():
    """Else the ranks of DDP would wait for those of the projector."""
    tap = called(dit(), 1)
    alignment = Alignment(tap=tap, width=32, channels=6, weight=0.5, until=10, hidden=8)
    term, logged = alignment(torch.randn(2, 6, 4, 4), (8, 8), 10)
    term.backward()
    assert float(term.detach()) == 0
    assert abs(float(logged["alignment"])) > 0
    assert tap.kept is None
    assert all(torch.count_nonzero(p.grad) == 0 for p in alignment.parameters())


class Given(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, image):
        return self.features


def latent_alignment(features, channels=3, **chosen):
    return LatentAlignment(
        encoder=Given(features), latent_channels=3, channels=channels, weight=0.1,
        **{"cosine_margin": 0.5, "distance_margin": 0.25} | chosen,
    )  # fmt: skip


def test_the_two_losses_of_latents_are_the_papers_sums():
    z, features = torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)
    align = latent_alignment(features, channels=5)
    w = align.project.weight.detach().numpy()[:, :, 0, 0]
    zs, fs = (x.flatten(2).transpose(1, 2).numpy() for x in (z, features))
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    marginal = np.mean([max(0, 1 - 0.5 - cos(w @ zs[b, i], fs[b, i])) for b in range(2) for i in range(4)])
    pairs = [(b, i, j) for b in range(2) for i in range(4) for j in range(4)]
    distance = np.mean([max(0, abs(cos(zs[b, i], zs[b, j]) - cos(fs[b, i], fs[b, j])) - 0.25) for b, i, j in pairs])
    total, logged = align(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), z)
    assert float(total.detach()) == pytest.approx(marginal + distance, rel=1e-5)
    assert float(logged["alignment"]) == pytest.approx(np.mean([cos(w @ zs[b, i], fs[b, i]) for b, i, _ in pairs[::4]
                                                                for i in range(4)]), rel=1e-4)  # fmt: skip


def test_latents_that_are_their_features_cost_nothing():
    features = torch.randn(2, 3, 4, 4)
    align = latent_alignment(features, cosine_margin=0.0, distance_margin=0.0)
    with torch.no_grad():
        align.project.weight.copy_(torch.eye(3)[:, :, None, None])
    total, _ = align(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2 * features)  # of another length
    assert float(total.detach()) == pytest.approx(0, abs=1e-6)


def test_its_gradient_on_the_encoder_is_its_weight_times_the_reconstruction_s():
    features, layer, x = torch.randn(2, 3, 2, 2), nn.Conv2d(3, 3, 1), torch.randn(2, 3, 2, 2)
    align = latent_alignment(features)
    z = layer(x)
    nll = 7 * (z - 1).square().mean()
    term, _ = align(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), z)
    balanced = align.balanced(nll, term, layer.weight)
    of = lambda loss: torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm()  # noqa: E731
    assert float(of(balanced)) == pytest.approx(0.1 * float(of(nll)), rel=1e-2)  # but for the paper's 1e-4


def test_the_encoder_is_no_part_of_what_is_saved_or_trained():
    align = latent_alignment(torch.randn(2, 3, 2, 2))
    assert [name for name, _ in align.named_parameters()] == ["project.weight"]
    assert list(align.state_dict()) == ["project.weight"]


def test_sizes_are_met_by_means_or_lines():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    assert resized(features, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resized(features.half(), (4, 4)).equal(features)
    assert resized(features, (8, 8)).shape == (1, 1, 8, 8)
    assert likeness(torch.randn(2, 3, 2, 2)).diagonal(dim1=1, dim2=2).allclose(torch.ones(2, 4))
