"""The average of the weights, as LDM takes it."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ldm.training.ema import EMA, decay_at


class Module(nn.Module):
    not_averaged = ("judge",)

    def __init__(self):
        super().__init__()
        self.net, self.judge = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)


def train(ema, module, weights, first_step=1):
    """Give the module these weights, one a step, and return the average after each."""
    trainer, averages = SimpleNamespace(global_step=first_step - 1), []
    ema.on_train_start(trainer, module)
    for weight in weights:
        with torch.no_grad():
            module.net.weight.fill_(weight)
        trainer.global_step += 1
        ema.on_train_batch_end(trainer, module)
        ema.on_train_batch_end(trainer, module)  # a batch without a step of the optimiser changes nothing
        averages.append(ema.average["net.weight"].item())
    return averages


def lit_ema(shadow, weights, decay, num_updates=0):
    """LDM's LitEma, which counts an update before it uses the count."""
    for weight in weights:
        num_updates += 1
        kept = min(decay, (1 + num_updates) / (10 + num_updates))
        shadow -= (1 - kept) * (shadow - weight)
        yield shadow


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_the_average_is_ldms(decay):
    module, weights = Module(), [3.0, -1.0, 0.5, 2.0, 2.0, -4.0]
    expected = list(lit_ema(module.net.weight.item(), weights, decay))
    assert train(EMA(decay), module, weights) == pytest.approx(expected, rel=1e-5)


def test_the_warm_up_is_diffusers_too():
    """Its EMAModel's is tensorflow's, as LDM's."""
    theirs = EMAModel([nn.Parameter(torch.zeros(1))], decay=0.9)
    for update in range(1, 100):
        assert decay_at(update, 0.9) == pytest.approx(theirs.get_decay(update + 1))


def test_discriminators_are_left_out():
    ema = EMA(0.5)
    train(ema, Module(), [1.0])
    assert set(ema.average) == {"net.weight"}


def test_a_checkpoint_continues_the_count():
    module, ema, weights = Module(), EMA(0.9999), [3.0, -1.0, 0.5, 2.0]
    expected = list(lit_ema(module.net.weight.item(), weights, 0.9999))
    assert train(ema, module, weights[:2]) == pytest.approx(expected[:2], rel=1e-5)
    checkpoint = {"state_dict": module.state_dict()}
    ema.on_save_checkpoint(SimpleNamespace(strategy=None), module, checkpoint)
    assert checkpoint["averaging_state"] == {"updates": 2, "latest_step": 2}
    later, again = EMA(0.9999), Module()
    later.on_load_checkpoint(None, again, checkpoint)
    assert again.net.weight.item() == -1.0  # its own, not the average
    assert train(later, again, weights[2:], first_step=3) == pytest.approx(expected[2:], rel=1e-5)
