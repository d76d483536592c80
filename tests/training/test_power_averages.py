"""Averages by power functions: their closed forms, and what is made of snapshots against what was tracked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from support.tiny import CPU, TINY_DIFFUSION, fails, inside

import ldm as package
from ldm.checkpoint import AVERAGES, find, load_diffusion
from ldm.training.power_averages import averaged, forget_later, read_snapshots, save_snapshot
from ldm.training.power_function import combination, decay, exponent, inner

TRAIN = ["train-diffusion", *TINY_DIFFUSION, *CPU, "steps=60", "every=6", "optimizer.lr=0.003"]


def profile(u, t, gamma):
    return (gamma + 1) * u**gamma / t ** (gamma + 1) if u <= t else 0.0


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.15, 0.25])
def test_a_width_is_the_standard_deviation_of_its_profile(width):
    gamma = exponent(width)
    mean = quad(lambda u: u * profile(u, 1.0, gamma), 0, 1)[0]
    variance = quad(lambda u: (u - mean) ** 2 * profile(u, 1.0, gamma), 0, 1)[0]
    assert variance**0.5 == pytest.approx(width, rel=1e-6)


def test_the_paper_s_own_exponents():
    """gamma = 16.97 and 6.94 for 0.05 and 0.10 (Karras et al. 2024, section 3.1)."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3])
def test_widths_that_there_are_not(width):
    with pytest.raises(ValueError, match="sigma_rel"):
        exponent(width)


def test_the_inner_product_is_the_integral():
    for a, b in (((3.0, 2.0), (5.0, 7.0)), ((5.0, 1.0), (5.0, 1.0)), ((9.0, 17.0), (4.0, 7.0))):
        wanted = quad(lambda u: profile(u, *a) * profile(u, *b), 0, min(a[0], b[0]))[0]  # noqa: B023
        assert float(inner(*map(np.array, (*a, *b)))) == pytest.approx(wanted, rel=1e-6)


def tracked(values, gamma):
    """The average after each update, by its recursion."""
    average, found = 0.0, []
    for update, value in enumerate(values, start=1):
        average = average + (1 - decay(update, gamma)) * (value - average)
        found.append(average)
    return np.array(found)


def test_the_recursion_is_the_average_by_the_profile():
    """Of weights that rise evenly, the average is (g + 1) / (g + 2) of the last, but for the steps' width."""
    for width in (0.05, 0.15):
        gamma, values = exponent(width), np.arange(1, 20_001) / 20_000
        assert tracked(values, gamma)[-1] == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.08, 0.12, 0.2])
def test_any_width_is_made_of_two(width):
    """Weights that settle, with noise, as training's do: within 1 % of what was tracked."""
    rng, steps = np.random.default_rng(0), 4096
    u = np.arange(1, steps + 1) / steps
    values = np.stack([np.sin(6 * u), u**0.3, np.exp(-5 * u)]) + 0.05 * rng.standard_normal((3, steps))
    kept = [exponent(w) for w in (0.05, 0.10)]
    at = np.arange(steps // 64, steps + 1, steps // 64)
    direct = np.array([tracked(row, exponent(width))[-1] for row in values])
    updates, gammas = np.repeat(at, 2), np.tile(kept, len(at))
    shares, _ = combination(updates.tolist(), gammas.tolist(), exponent(width), steps)
    held = np.array([[tracked(row, gamma)[at - 1] for gamma in kept] for row in values])  # [3, 2, S]
    made = (held.transpose(0, 2, 1).reshape(3, -1) * shares).sum(1)
    assert shares.sum() == pytest.approx(1)
    assert np.abs(made - direct).max() < 0.01 * np.abs(direct).max()


def test_how_far_a_combination_is_from_its_width_is_the_integral():
    """Of the profiles' difference; three snapshots do not make a width that is narrower than both."""
    ends, gammas = [160, 320, 480] * 2, [exponent(0.05)] * 3 + [exponent(0.1)] * 3
    for width in (0.02, 0.1, 0.15):
        wanted = exponent(width)
        shares, said = combination(ends, gammas, wanted, 480)
        u = np.linspace(0, 480, 200_001)[1:]
        made = sum(
            c * np.where(u <= t, (g + 1) * u**g / t ** (g + 1.0), 0)
            for c, t, g in zip(shares, ends, gammas, strict=True)
        )
        profile = (wanted + 1) * (u / 480) ** wanted / 480
        off = np.sqrt(np.mean((made - profile) ** 2) / np.mean(profile**2))
        assert said == pytest.approx(off, abs=2e-3)
    assert combination(ends, gammas, exponent(0.02), 480)[1] > 0.2


def test_a_run_that_goes_back_forgets_what_came_later(tmp_path):
    for batches in (160, 320, 480):
        save_snapshot(tmp_path / AVERAGES / f"{batches:08d}.pt", batches, {"0.05": {}})
    forget_later(tmp_path, 320)
    assert [updates for updates, _ in read_snapshots(tmp_path)] == [160, 320]


def test_of_a_real_run_each_width_is_within_a_percent_of_the_tracked_one(ldm, pipeline):
    inside(pipeline, ldm)
    ldm(*TRAIN, "run=powers", "power_ema=[0.05,0.1,0.15]")
    snapshots = read_snapshots(Path("runs/powers"))
    assert [updates for updates, _ in snapshots] == list(range(6, 61, 6))
    direct = {name: tensor.float() for name, tensor in snapshots[-1][1]["0.15"].items()}
    for file in Path("runs/powers/averages").glob("*.pt"):  # as if two had been kept
        held = torch.load(file, weights_only=True)
        held["averages"].pop("0.15")
        torch.save(held, file)
    made, end, apart = averaged(Path("runs/powers"), 0.15)
    assert end == 60
    assert apart < 0.03
    off = sum((made[name] - direct[name]).square().sum() for name in direct)
    raw = {k: v for k, v in load_diffusion("runs/powers", "raw").net.state_dict().items() if k in direct}
    moved = sum((raw[name] - direct[name]).square().sum() for name in direct)
    assert off < 1e-4 * sum(tensor.square().sum() for tensor in direct.values())
    assert off < 0.01 * moved  # of the way from the last weights to their average

    ldm("average", "run=widths", "model=runs/powers", "sigma_rel=[0.05,0.15]", "features=pixels", "scored=20")
    for width in (0.05, 0.15):
        loaded = load_diffusion("runs/powers", width)
        assert loaded.fingerprint != load_diffusion("runs/powers").fingerprint
    for name, tensor in made.items():
        assert torch.equal(loaded.net.state_dict()[name], tensor)
    assert Path("runs/widths/fd.png").stat().st_size > 5000
    assert '"0.15": ' in Path("runs/widths/averages.json").read_text()
    ldm("sample", "model=runs/powers", "num=2", "weights=0.15", "run=by-width")
    assert package.load("runs/powers", weights=0.05).sample(n=1).shape == (1, 3, 32, 32)
    assert "sigma_rel-0.2.ckpt is not there: ldm average" in fails(
        "sample", "run=x", "model=runs/powers", "weights=0.2"
    )


def test_averages_go_on_to_the_bit_and_can_t_begin_in_the_middle(ldm, pipeline):
    inside(pipeline, ldm)
    words = [word for word in TRAIN if not word.startswith("steps=")]
    ldm(*words, "steps=12", "run=whole", "power_ema=[0.05,0.1]", "schedule.decay=constant")
    ldm(*words, "steps=6", "run=halves", "power_ema=[0.05,0.1]", "schedule.decay=constant")
    ldm(*words, "steps=12", "run=halves", "power_ema=[0.05,0.1]", "schedule.decay=constant")
    states = [find(Path(f"runs/{run}"), None)[1]["power_averages"]["averages"]["0.1"] for run in ("whole", "halves")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    ldm(*words, "steps=6", "run=without", "schedule.decay=constant")
    line = fails(*words, "steps=12", "run=without", "schedule.decay=constant", "power_ema=[0.05]")
    assert "power_ema" in line
    assert "has kept no averages: train it with power_ema=" in fails("average", "run=x", "model=runs/without")
