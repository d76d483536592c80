"""The memory of a traced step against what torch's allocator has really given, and what the trace is made of."""

import shutil

import pytest
import torch
from support.config import parsed
from support.real_memory import real_peak
from torch import nn

from ldm.commands.estimate import given_by
from ldm.commands.estimate_training import train_autoencoder_cost, train_diffusion_cost
from ldm.training.step_memory import Live, _no_values, evaluation_memory, state_share

GAME = ["loss.disc_start=0"]  # both players from the first batch on


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Not where a demonstration may have left runs/, of which an estimate takes the latents' shape."""
    monkeypatch.chdir(tmp_path)


def estimated(command, *words):
    cost = train_autoencoder_cost if command == "train-autoencoder" else train_diffusion_cost
    return cost(parsed(command, *words), given_by(["ae=digits", "resolution=32"]), gpu=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train-diffusion", []),
        ("train-diffusion", ["net.checkpoint=true", "batch_size=256"]),
        ("train-diffusion", ["trainer.precision=bf16-mixed", "objective=edm2"]),
        ("train-diffusion", ["optimizer._target_=torch.optim.SGD", "~optimizer.fused", "objective=ot_flow"]),
        ("train-autoencoder", GAME),
        ("train-autoencoder", [*GAME, "accumulate=2", "batch_size=32", "ema_decay=0"]),
        ("train-autoencoder", [*GAME, "ae=small_f4", "loss.perceptual_weight=0", "loss.disc_forward=fresh"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_the_peak_is_torchs_own_within_15_percent(ldm, pipeline, monkeypatch, command, words):
    """The command itself is run, by Lightning, for three batches; the oracle is the CPU allocator's own count."""
    monkeypatch.chdir(pipeline)
    real = real_peak(command, "run=measured", *words)
    shutil.rmtree("runs/measured")
    assert estimated(command, *words).peak == pytest.approx(real, rel=0.15)


def test_what_lives_is_counted_until_it_is_gone():
    with _no_values(), Live() as live:
        a = torch.empty(1000)  # 4,000 bytes
        view = a[10:]  # none of its own
        b = a * 2
        del a
        assert live.now == 8000  # the view keeps the storage
        del view
        assert live.now == 4000
        b += 1
        c = b.half()
        assert (live.now, live.peak) == (6000, 8000)
        del b, c
        assert (live.now, live.peak) == (0, 8000)


def test_a_linear_layers_forward_pass_is_its_output():
    with torch.device("meta"):
        net, x = nn.Linear(100, 300, bias=False), torch.empty(7, 100)
    assert evaluation_memory(net, lambda net, x: net(x), x) == 4 * 7 * (100 + 300)  # the input is the caller's batch
    assert net.weight.is_meta


@pytest.mark.parametrize(
    ("optimizer", "numbers"), [("SGD", 0), ("Adam", 2), ("AdamW", 2), ("RMSprop", 1), ("Adagrad", 1), ("NAdam", 2)]
)
def test_an_optimisers_state_is_so_many_numbers_a_parameter(optimizer, numbers):
    assert state_share(lambda p: getattr(torch.optim, optimizer)(p, lr=0.1)) == numbers


def test_checkpointing_trades_activations_alone():
    words = ["batch_size=128", "net=small"]  # a step that needs more than the grid of samples that follows it
    plain, recomputed = (
        estimated("train-diffusion", *words),
        estimated("train-diffusion", *words, "net.checkpoint=true"),
    )
    assert recomputed.memory["activations"] < 0.5 * plain.memory["activations"]
    assert recomputed.flops == pytest.approx(4 / 3 * plain.flops)
    same = ("weights", "gradients", "optimizer", "average")
    assert [recomputed.memory[name] for name in same] == [plain.memory[name] for name in same]


def test_micro_batches_take_less_memory():
    words = [*GAME, "loss.perceptual_weight=0", "batch_size=8"]
    whole, divided = (estimated("train-autoencoder", *words, f"accumulate={n}") for n in (1, 4))
    assert divided.memory["activations"] < 0.7 * whole.memory["activations"]


def test_the_weights_in_memory_are_those_of_the_networks():
    """Adam's two moments and the average, in float32; a discriminator has no average."""
    cost = estimated("train-diffusion", "net=small")
    assert cost.memory["weights"] == pytest.approx(4 * cost.parameters, rel=1e-4)  # but for the guard's counters
    assert cost.memory["optimizer"] == 2 * cost.memory["gradients"] == 8 * cost.parameters
    assert cost.memory["average"] == 4 * cost.parameters
    double = estimated("train-diffusion", "net=small", "trainer.precision=64-true")
    assert double.memory["gradients"] == 8 * cost.parameters
