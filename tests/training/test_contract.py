"""Who breaks the contract of a network, path, weighting or sampler is told so, before training."""

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.card import build_from_card
from ldm.condition import Condition
from ldm.diffusion.checks import checked_objective
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import Coefficients, LinearPath
from ldm.diffusion.samplers import euler
from ldm.diffusion.times import Uniform
from ldm.diffusion.weighting import Unweighted
from ldm.generate.model import LatentDiffusionModel
from ldm.latents import LatentStats
from ldm.training.contract import check_network, check_sampling

CONF = Path(__file__).parents[2] / "conf"
CPU = torch.device("cpu")
SHAPE = (4, 8, 8)
TOLD = Condition(torch.tensor([0, 10]))


class Net(nn.Module):
    """One that keeps it."""

    def __init__(self, num_classes=10, rows=None):
        super().__init__()
        self.null_class = num_classes
        self.label = nn.Embedding(num_classes + 1 if rows is None else rows, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x_t, t, condition):
        return self.dropout(x_t) * t[:, None, None, None] + self.label(condition.label)[:, :, None, None]


def test_a_network_that_keeps_it_is_left_as_it_was():
    net, before = Net().train(), torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    check_network(net, SHAPE, Objective(**PARTS), 10, CPU, TOLD)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


class NoNull(Net):
    def __init__(self):
        super().__init__()
        del self.null_class


class Other(Net):
    def __init__(self, forward):
        super().__init__()
        self.function = forward

    def forward(self, *inputs):
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (NoNull, "NoNull needs an attribute null_class"),
        (partial(Net, 9), "self.null_class = num_classes"),
        (partial(Net, rows=10), r"condition.label 0 and 10 \(null_class\): IndexError"),
        (partial(Other, lambda x_t, t: x_t), "Other can't be called as net.*TypeError"),
        (partial(Other, lambda x_t, t, y: x_t[:, :3]), r"like x_t, \[2, 4, 8, 8\], not \[2, 3, 8, 8\]"),
        (partial(Other, lambda x_t, t, y: (x_t,)), "not tuple"),
        (partial(Other, lambda x_t, t, y: x_t / 0), "not finite"),
    ],
)
def test_a_network_that_breaks_it_is_told_how(net, said):
    net = net()
    with pytest.raises(ValueError, match=said):
        check_network(net, SHAPE, Objective(**PARTS), 10, CPU, TOLD)
    assert net.training


PARTS = {
    "path": LinearPath(),
    "parameterization": "velocity",
    "weighting": Unweighted(),
    "time_sampler": Uniform(),
}


def falling(t):
    """The flow's path, with a slip in a derivative."""
    return Coefficients(1 - t, t, torch.ones_like(t), torch.ones_like(t))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"path": lambda t: (1 - t, t)}, "must return ldm.diffusion.path.Coefficients"),
        ({"path": lambda t: LinearPath()(t.mean())}, "each of t's shape"),
        ({"path": falling}, r"dalpha must be the derivative of alpha.*is \[1.0.*rises by \[-1.0"),
        ({"time_sampler": lambda n, path, device: torch.linspace(0, 2, n)}, r"times in \[0, 1\]"),
        ({"time_sampler": lambda n, path, device: torch.rand(())}, "must draw n times"),
        ({"weighting": lambda error, snr, gain: error.mean()}, r"each image its finite loss, \[4\]"),
        ({"weighting": lambda error, snr, gain: error / 0}, "finite loss"),
        ({"wieghting": Unweighted()}, "objective: .*unexpected keyword argument 'wieghting'"),
    ],
)
def test_parts_of_an_objective_that_break_it_are_told_how(part, said):
    with pytest.raises(ValueError, match=said):
        checked_objective(PARTS | part)


@pytest.mark.parametrize("file", sorted((CONF / "objective").glob("*.yaml")), ids=lambda file: file.stem)
def test_our_objectives_keep_it_and_the_random_numbers_stay(file):
    config = OmegaConf.to_container(OmegaConf.load(file))
    flow = OmegaConf.to_container(OmegaConf.load(CONF / "objective/flow.yaml"))
    config = {key: flow[key] if value is None and key in flow else value for key, value in config.items()}
    config = {key: value for key, value in config.items() if key not in ("sampling", "student") and value is not None}
    config |= {"codes": 8} if "codes" in config else {}  # the latents say how many
    parts, before = build_from_card(config), torch.get_rng_state()
    checked_objective(parts)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("file", sorted((CONF / "path").glob("*.yaml")), ids=lambda file: file.stem)
def test_our_paths_keep_it(file):
    path = build_from_card(OmegaConf.to_container(OmegaConf.load(file)))
    if path:  # "trained" names none
        checked_objective(PARTS | {"path": path, "parameterization": "v"})


def generator(function):
    model = LatentDiffusionModel(
        net=Net(),
        objective=Objective(**PARTS),
        stats=LatentStats(torch.zeros(4), torch.ones(4)),
        autoencoder=None,
        latent_shape=SHAPE,
        class_names=["a"],
    )
    return model.generator(sampler=function, steps=3, guidance=2.0)


def test_samplers_that_break_it_are_told_how():
    check_sampling(generator(euler))
    for wrong in (lambda *_: torch.zeros(1), lambda denoise, path, x, times: x / 0):
        with pytest.raises(ValueError, match=r"finite latents like its x, \[1, 4, 8, 8\]"):
            check_sampling(generator(wrong))
