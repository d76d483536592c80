"""What ldm/training/lightning_internals.py takes for granted, each shown on Lightning itself: these fail first when
Lightning changes."""

import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from ldm.data.order import Stretches
from ldm.training import lightning_internals as internals


class Line(LightningModule):
    """A module of one weight, whose batches are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.line(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return Stretches(DataLoader(torch.ones(100, 1)), 100)  # Lightning resumes no other loader within an epoch

    def val_dataloader(self):
        return DataLoader(torch.ones(3, 1))


class Hook(Callback):
    """Calls a function in the hook of that name."""

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, function in hooks.items():
            setattr(self, name, function)


def trainer(*callbacks: Callback, every: int = 2, epochs: int = 1, **options: Any) -> Trainer:
    with warnings.catch_warnings():
        internals.ignore_known_warnings()
        return Trainer(
            max_epochs=epochs,
            limit_train_batches=every,
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )


def fit(fitter: Trainer, module: LightningModule | None = None, **options: Any) -> None:
    with warnings.catch_warnings():
        internals.ignore_known_warnings()
        fitter.fit(module or Line(), weights_only=True, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Lightning saves after the fourth batch, in the middle of an epoch of three; module.line has weight 7."""
    file = tmp_path_factory.mktemp("saved") / "file.ckpt"
    module = Line()

    def save(fitter, module, outputs, batch, batch_idx):
        if fitter.global_step == 4:
            torch.nn.init.constant_(module.line.weight, 7)
            fitter.save_checkpoint(file)

    fit(trainer(Hook(on_train_batch_end=save), every=3, epochs=2, limit_val_batches=0), module)
    return file


@pytest.mark.parametrize("every", [2, 3, 4, 5])
def test_restore_progress_lets_the_loops_go_on_after_any_batch(saved, every):
    seen: list[tuple[int, int, int]] = []
    found: list[float] = []

    def load(fitter, module, checkpoint):
        found.append(float(module.line.weight.detach()))
        internals.restore_progress(checkpoint, 4, every)

    def start(fitter, module, batch, batch_idx):
        seen.append((fitter.current_epoch, batch_idx, internals.batches_stepped(fitter)))

    go_on = Hook(on_load_checkpoint=load, on_train_batch_start=start)
    fit(trainer(go_on, every=every, epochs=3, limit_val_batches=0), ckpt_path=saved)
    assert seen == [(n // every, n % every, n) for n in range(4, 3 * every)]  # as a run that was never stopped
    assert found == [7], "a callback's on_load_checkpoint comes after the module has its weights, and before the loops"


def test_validate_now_is_the_validation_of_fit_and_changes_nothing_in_training():
    happened: list[Any] = []

    def start(fitter, module):
        internals.validate_now(fitter)
        happened.append("back to training" if fitter.training and module.training else "not back")

    hooks = Hook(
        on_train_start=start,
        on_validation_batch_end=lambda fitter, module, outputs, batch, i, *_: happened.append(("val", i)),
        on_train_batch_end=lambda fitter, module, outputs, batch, i: happened.append(("train", i)),
    )
    fit(trainer(hooks, limit_val_batches=2))
    validation = [("val", 0), ("val", 1)]
    assert happened == [*validation, "back to training", ("train", 0), ("train", 1), *validation]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_stepped_leaves_the_ending_batch_out(accumulate):
    counts: list[int] = []
    end = Hook(on_train_batch_end=lambda fitter, *_: counts.append(internals.batches_stepped(fitter)))
    fit(trainer(end, every=4, limit_val_batches=0, accumulate_grad_batches=accumulate))
    assert counts == {1: [0, 1, 2, 3], 2: [0, 0, 1, 1]}[accumulate]


def test_a_batch_ends_for_the_callbacks_before_it_ends_for_the_module():
    """`ProgressModule` counts the batch and saves there: the average has been updated by then."""
    happened: list[str] = []

    class Counting(Line):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            happened.append("module")

    fit(
        trainer(Hook(on_train_batch_end=lambda *_: happened.append("callback")), every=1, limit_val_batches=0),
        Counting(),
    )
    assert happened == ["callback", "module"]


@pytest.mark.parametrize("left_alone", [True, False])
def test_leave_signals_alone_keeps_a_handler_that_lightning_would_replace(left_alone):
    def ours(*_):
        pass

    within: list[Any] = []
    fitter = trainer(Hook(on_train_start=lambda *_: within.append(signal.getsignal(signal.SIGTERM))), every=1)
    if left_alone:
        internals.leave_signals_alone(fitter)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        fit(fitter)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (within == [ours]) == left_alone


def test_plain_interrupts_undo_what_lightning_makes_of_a_ctrl_c():
    def interrupt(*_):
        raise KeyboardInterrupt

    def run():
        fitter = trainer(Hook(on_train_batch_start=interrupt), every=1)
        internals.leave_signals_alone(fitter)
        fit(fitter)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), internals.plain_interrupts():
        run()
    assert signal.getsignal(signal.SIGINT) is handler
    try:
        with pytest.raises(SystemExit):  # else `plain_interrupts` is not needed
            run()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_plain_interrupts_undo_what_torch_makes_of_one_in_a_save(tmp_path):
    class Interrupted:
        def write(self, _):
            raise KeyboardInterrupt

        def flush(self):
            pass

    with pytest.raises(KeyboardInterrupt), internals.plain_interrupts():
        torch.save({"a": torch.ones(100)}, Interrupted())
    with pytest.raises(RuntimeError, match="another"), internals.plain_interrupts():
        raise RuntimeError("another")


def test_loss_scaler_is_that_of_fp16():
    fitter = trainer(every=1)
    assert internals.loss_scaler(fitter) is None
    for precision, scaled in (("16-mixed", True), ("bf16-mixed", False)):
        fitter = trainer(every=1, plugins=[MixedPrecision(precision, "cpu")])
        assert isinstance(internals.loss_scaler(fitter), torch.amp.GradScaler) == scaled


def test_unscales_by_itself_is_what_a_fused_optimiser_does():
    weights = [torch.nn.Parameter(torch.ones(1))]
    for fused in (True, False):
        assert internals.unscales_by_itself(torch.optim.AdamW(weights, fused=fused)) == fused


def test_the_fully_sharded_strategy_deals_to_all_ranks(monkeypatch):
    strategy = internals.FullyShardedStrategy()
    assert strategy._data_parallel_size == "auto"
    assert strategy._save_distributed_checkpoint is False
    strategy.num_nodes, strategy.parallel_devices = 3, [torch.device("cpu")] * 4
    dealt: list[int] = []
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: dealt.append(self._data_parallel_size))
    strategy.setup_environment()
    assert dealt == [12]


def test_the_fully_sharded_strategy_loads_the_state_dict_too(tmp_path, monkeypatch):
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    monkeypatch.setattr(ModelParallelStrategy, "load_checkpoint", lambda *_: {"epoch": 3})
    loaded = internals.FullyShardedStrategy().load_checkpoint(tmp_path / "a.ckpt")
    assert loaded == {"epoch": 3, "state_dict": {"w": loaded["state_dict"]["w"]}}


def test_the_warnings_that_are_ignored_are_still_lightnings():
    sources = "\n".join(path.read_text() for path in Path(lightning.__file__).parent.rglob("*.py"))
    assert not [text for text in internals.KNOWN_WARNINGS if text not in sources]
