"""ARDM against closed forms on binary 2 x 2 images, all 16 states of which can be summed over."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.autoregressive import (
    HIDDEN,
    Autoregressive,
    ardm,
    code_bound,
    order_of,
)
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.path import LinearPath
from ldm.diffusion.samplers import heun
from ldm.diffusion.times import Grid, karras_grid, log_snr_grid, trailing_grid, uniform_grid
from ldm.models.dit import DiT
from ldm.models.unet import UNet

STATES = torch.tensor(list(itertools.product([0, 1], repeat=4))).view(16, 1, 2, 2)
PATH, LABEL = LinearPath(), torch.zeros(1, dtype=torch.long)
OBJECTIVE = Autoregressive(codes=2)
TABLE = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3  # of the states, any
TABLE /= TABLE.sum()


class Exact:
    """Of a table of probabilities of the states, the conditional of each hidden place given the known ones."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.calls = table, 0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        assert torch.allclose(t, (x_t == HIDDEN).float().mean((1, 2, 3)))
        fits = ((STATES[None] == x_t[:, None]) | (x_t[:, None] == HIDDEN)).flatten(2).all(2)  # [B, 16]
        weight = fits * self.table
        ones = torch.einsum("bs,shw->bhw", weight, STATES[:, 0].double()) / weight.sum(1)[:, None, None]
        return torch.stack([1 - ones, ones], dim=1).clamp(min=1e-30).log()


def every_order_bound(net: Exact) -> Tensor:
    """The bound of each state: the mean over all 24 orders of -log p along each, by hand."""
    total = torch.zeros(16, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        known = torch.full((16, 4), HIDDEN)
        for step, place in enumerate(order):
            share = torch.full((16,), (4 - step) / 4)
            logits = net(known.view(16, 1, 2, 2), share, Condition(LABEL)).flatten(2)[..., place]
            chosen = STATES.flatten(1)[:, place]
            total -= logits.log_softmax(1).gather(1, chosen[:, None])[:, 0]
            known[:, place] = chosen
    return total / 24


def test_at_the_optimum_the_bound_is_the_entropy() -> None:
    net = Exact(TABLE)
    exact = every_order_bound(net)
    assert torch.allclose(exact, -TABLE.log())
    assert torch.allclose((-exact).exp().sum(), torch.ones((), dtype=torch.float64))
    torch.manual_seed(0)
    copies = STATES.repeat(4000, 1, 1, 1)
    nats, losses, numbers = code_bound(OBJECTIVE, net, copies, LABEL.expand(len(copies)))
    assert torch.allclose(nats.view(4000, 16).mean(0), exact, rtol=0.03)
    assert torch.equal(numbers, torch.arange(1, 5)[:, None].expand(4, len(copies)))
    assert torch.allclose(losses.sum(0), nats)


def test_a_network_that_disagrees_with_itself_is_above_the_true_value() -> None:
    class Wrong(Exact):
        def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return 0.5 * super().__call__(x_t, t, condition)  # no longer the conditionals of one distribution

    bound = every_order_bound(Wrong(TABLE))
    assert float((TABLE * bound).sum()) > float(torch.special.entr(TABLE).sum()) + 1e-3
    torch.manual_seed(0)
    copies = STATES.repeat(2000, 1, 1, 1)
    nats, *_ = code_bound(OBJECTIVE, Wrong(TABLE), copies, LABEL.expand(len(copies)))
    assert torch.allclose(nats.view(2000, 16).mean(0), bound, rtol=0.02)


def test_loss_is_an_unbiased_estimate_of_the_bound_by_place() -> None:
    torch.manual_seed(0)
    drawn = torch.multinomial(TABLE, 40_000, replacement=True)
    loss, share = OBJECTIVE.loss(Exact(TABLE), STATES[drawn], LABEL.expand(len(drawn)))
    assert set(share.tolist()) == {0.25, 0.5, 0.75, 1.0}
    entropy = float(torch.special.entr(TABLE).sum())
    assert float(4 * loss.mean()) == pytest.approx(entropy, abs=5 * float(4 * loss.std() / math.sqrt(len(loss))))


def test_few_numbers_estimate_the_bound() -> None:
    torch.manual_seed(0)
    copies = STATES[3:4].repeat(20_000, 1, 1, 1)
    many = torch.cat([code_bound(OBJECTIVE, Exact(TABLE), copies[:500], LABEL.expand(500), 2)[0] for _ in range(40)])
    assert float(many.mean()) == pytest.approx(-math.log(TABLE[3]), rel=0.05)


def frequencies(steps: int, num: int = 40_000) -> tuple[Tensor, int]:
    net, labels = Exact(TABLE), LABEL.expand(num)
    torch.manual_seed(0)
    codes = ardm(OBJECTIVE.denoiser(net, labels), PATH, torch.randn(num, 1, 2, 2), uniform_grid(PATH, steps))
    index = (codes.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    return torch.bincount(index, minlength=16).double() / num, net.calls


def test_one_by_one_draws_the_models_own_distribution() -> None:
    shares, calls = frequencies(4)
    assert calls == 4
    assert float((shares - TABLE).abs().max()) < 5 * math.sqrt(0.25 / 40_000)


def test_in_one_step_places_are_drawn_each_by_itself() -> None:
    shares, calls = frequencies(1)
    ones = torch.einsum("s,shw->hw", TABLE, STATES[:, 0].double()).flatten()
    independent = torch.where(STATES.flatten(1) == 1, ones, 1 - ones).prod(1)
    assert calls == 1
    assert float((shares - independent).abs().max()) < 5 * math.sqrt(0.25 / 40_000)


def test_more_steps_than_places_are_as_many_as_places() -> None:
    shares, calls = frequencies(16)
    assert calls == 4
    assert float((shares - TABLE).abs().max()) < 5 * math.sqrt(0.25 / 40_000)


@pytest.mark.parametrize("where", [(0,), (1, 2), (0, 1, 3)])
def test_hidden_places_are_drawn_given_the_known_ones(where: tuple[int, ...]) -> None:
    """By Bayes: the states that agree at those places, in their own proportions."""
    num, state = 40_000, STATES[9]
    known = torch.full((num, 4), HIDDEN)
    known[:, list(where)] = state.flatten()[list(where)]
    agree = (STATES.flatten(1)[:, list(where)] == state.flatten()[list(where)]).all(1)
    labels = LABEL.expand(num)
    torch.manual_seed(0)
    codes = ardm(
        OBJECTIVE.denoiser(Exact(TABLE), labels), PATH, torch.randn(num, 1, 2, 2), uniform_grid(PATH, 4),
        known=known.view(num, 1, 2, 2),
    )  # fmt: skip
    index = (codes.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    shares = torch.bincount(index, minlength=16).double() / num
    assert float((shares - agree * TABLE / TABLE[agree].sum()).abs().max()) < 5 * math.sqrt(0.25 / num)


def test_a_samples_codes_do_not_depend_on_what_is_known_of_others() -> None:
    """One has a place to draw and the other four, at steps at which the first has none."""
    known = torch.full((2, 1, 2, 2), HIDDEN)
    known[0, 0, 0], known[0, 0, 1, 0] = 1, 0
    walked = []
    for rows in ([0, 1], [0], [1]):
        noise = IndexedNoise(3, rows)
        x, labels = noise.draw((1, 2, 2)), LABEL.expand(len(rows))
        denoise = OBJECTIVE.denoiser(Exact(TABLE), labels)
        walked.append(ardm(denoise, PATH, x, uniform_grid(PATH, 4), known=known[rows], noise=noise))
    assert torch.equal(walked[0], torch.cat(walked[1:]))


@pytest.mark.parametrize("side", [2, 64])
def test_all_numbers_of_hidden_places_are_equally_likely(side: int) -> None:
    places, codes, labels = side**2, torch.zeros(500, 1, side, side, dtype=torch.long), LABEL.expand(500)

    def silent(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return OBJECTIVE.silent(x_t)

    torch.manual_seed(0)
    drawn = torch.cat([OBJECTIVE.loss(silent, codes, labels)[1] for _ in range(8)]) * places
    # of 4,000 even draws a quarter is in each quarter
    quarters = torch.bincount(((drawn.round() - 1) * 4 / places).long(), minlength=4) / len(drawn)
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=5 * math.sqrt(0.25 * 0.75 / 4000))
    ends = OBJECTIVE.loss(silent, codes[:2], labels[:2], t=torch.tensor([0.0, 1 - 1e-6]))[1] * places
    assert ends.round().tolist() == [1, places]


@pytest.mark.parametrize("grid", [karras_grid, log_snr_grid, partial(trailing_grid, last="first_timestep")])
def test_grids_that_would_leave_places_hidden_are_refused(grid: Grid) -> None:
    labels = LABEL.expand(2)
    with pytest.raises(ValueError, match=r"codes are revealed from 1 to 0: pass grid=uniform"):
        ardm(OBJECTIVE.denoiser(Exact(TABLE), labels), PATH, torch.randn(2, 1, 2, 2), grid(PATH, 4, 1.0))


def test_logits_that_are_not_finite_are_refused() -> None:
    def broken(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return OBJECTIVE.silent(x_t) * math.nan

    with pytest.raises(ValueError, match="logits are not finite"):
        ardm(OBJECTIVE.denoiser(broken, LABEL), PATH, torch.randn(1, 1, 2, 2), uniform_grid(PATH, 2))


def test_what_objectives_of_latents_choose_is_not_taken() -> None:
    with pytest.raises(TypeError, match="path"):
        Autoregressive(codes=2, path=LinearPath())  # type: ignore[call-arg]


def test_a_low_temperature_takes_the_likeliest() -> None:
    denoise = OBJECTIVE.denoiser(Exact(TABLE), LABEL.expand(8))
    x = torch.randn(8, 1, 2, 2)
    first = ardm(denoise, PATH, x, uniform_grid(PATH, 1), temperature=1e-3)
    assert torch.equal(first, denoise(torch.full_like(x, HIDDEN).long(), torch.ones(())).x0)


def test_known_places_are_never_changed_and_the_order_is_the_noises() -> None:
    seen: list[Tensor] = []
    net = Exact(TABLE)

    def watched(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        seen.append(x_t.clone())
        return net(x_t, t, condition)

    x = torch.randn(5, 1, 2, 2)
    codes = ardm(OBJECTIVE.denoiser(watched, LABEL.expand(5)), PATH, x, uniform_grid(PATH, 4))
    for k, state in enumerate([*seen, codes]):
        known = state != HIDDEN
        assert torch.equal(known, order_of(x) < k)
        assert torch.equal(state[known], codes[known])


NETS = {
    "unet": lambda: UNet(
        in_channels=1, num_classes=3, model_channels=16, channel_mult=[1], num_res_blocks=1, attention_resolutions=[1],
        head_channels=8, codes=7,
    ),
    "dit": lambda: DiT(
        in_channels=1, num_classes=3, latent_size=[4, 4], patch=2, model_channels=16, depth=1, head_channels=8, codes=7
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_networks_take_codes_and_give_logits(name: str) -> None:
    net = NETS[name]()
    codes = torch.randint(0, 7, (2, 1, 4, 4))
    objective = Autoregressive(codes=7)
    loss, _ = objective.loss(net, codes, torch.tensor([0, 3]))
    assert torch.allclose(loss, torch.full((2,), math.log(7)))  # the last layer starts at zero
    loss.mean().backward()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    one, other = codes.clone(), codes.clone()
    one[:, :, 0, 0], other[:, :, 0, 0] = HIDDEN, (codes[:, :, 0, 0] + 1) % 7
    t, labels = torch.full((2,), 0.5), torch.tensor([0, 3])
    assert net(codes, t, labels).shape == (2, 7, 4, 4)
    assert not torch.equal(net(one, t, labels), net(codes, t, labels))
    assert not torch.equal(net(other, t, labels), net(codes, t, labels))


def test_guidance_is_of_logits() -> None:
    net, null = NETS["unet"](), Condition(torch.tensor([3]))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    codes, t, label = torch.full((2, 1, 4, 4), HIDDEN), torch.ones(2), Condition(torch.tensor([0, 1]))
    guided = Guidance(scale=2.0)(net, null)(codes, t, label)
    told, untold = net(codes, t, label), net(codes, t, torch.tensor([3, 3]))
    assert torch.allclose(guided, untold + 2 * (told - untold), atol=1e-5)


def test_samplers_of_latents_and_of_codes_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"this model makes codes: pass sampler=ardm"):
        OBJECTIVE.check_sampler(heun)
    OBJECTIVE.check_sampler(ardm)
