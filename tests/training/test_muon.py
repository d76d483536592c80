"""Muon against singular values in float64, torch's own Muon, and torch's AdamW."""

import copy

import pytest
import torch
from support.runs import assert_same_training
from support.tiny import CPU, TINY_DIFFUSION
from torch import nn

from ldm.models.embedding import CodeEmbedding
from ldm.training.muon import COEFFICIENTS, Muon, is_matrix, orthogonalized


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_the_iteration_is_its_polynomial_of_the_singular_values(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s, (a, b, c) = s / s.norm(), COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalized(matrix, 5), u @ torch.diag(s) @ v)
    assert 0.6 < s.min() < s.max() < 1.3


def stepped(net, optimizer, count=3):
    for i in range(count):
        optimizer.zero_grad()
        torch.manual_seed(i)
        net(torch.randn(8, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    return net


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.SiLU(), nn.Conv2d(24, 32, 3), nn.Flatten(), nn.Linear(128, 20))


def test_matrices_step_as_torch_s_muon_does():
    """torch's works in bfloat16, which has 8 bits."""
    ours = nn.Linear(32, 20, bias=False)
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    mine = Muon(ours.parameters(), **options)
    other = torch.optim.Muon(theirs.parameters(), **options, adjust_lr_fn="match_rms_adamw", nesterov=True)
    start = ours.weight.detach().clone()
    for i in range(3):
        torch.manual_seed(i)
        x = torch.randn(256, 32)  # of as few as 8, the other directions are bfloat16's noise
        for net, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    moved, wanted = (net.weight.detach() - start for net in (ours, theirs))
    assert float((moved - wanted).norm() / wanted.norm()) < 0.03


def test_what_is_no_matrix_steps_as_torch_s_adamw_does():
    ours, theirs = network(), network()
    matrices = [name for name, p in ours.named_parameters() if is_matrix(p)]
    assert matrices == ["0.weight", "2.weight", "4.weight"]
    for net in (ours, theirs):
        for name, p in net.named_parameters():
            p.requires_grad_(name not in matrices)
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    stepped(ours, Muon(ours.parameters(), **options))
    stepped(theirs, torch.optim.AdamW(theirs.parameters(), **options))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_convolutions_are_matrices_of_their_outputs():
    net = network()
    before = net[2].weight.detach().clone()
    stepped(net, Muon(net.parameters(), lr=0.01, weight_decay=0.0), 1)
    update = (net[2].weight - before).detach().flatten(1) / (-0.01 * 0.2 * (24 * 9) ** 0.5)
    singular = torch.linalg.svdvals(update)
    assert 0.6 < float(singular.median()) < float(singular.max()) < 1.3  # the least take more steps


def test_an_embedding_of_codes_is_no_matrix():
    assert not is_matrix(CodeEmbedding(64, 32).weight)
    assert is_matrix(nn.Linear(64, 32).weight)


def test_it_trains_and_resumes(there):
    muon = ["optimizer._target_=ldm.training.muon.Muon", "optimizer.lr=2e-3", "latents=runs/latents"]
    there("train-diffusion", *TINY_DIFFUSION, *CPU, *muon, "run=whole")
    there("train-diffusion", *TINY_DIFFUSION, *CPU, *muon, "run=parts", "steps=2", "schedule.decay=cosine")
    there("train-diffusion", *TINY_DIFFUSION, *CPU, *muon, "run=parts")
    assert_same_training("runs/parts", "runs/whole", "diffusion")
