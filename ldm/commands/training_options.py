"""The options that both stages' training has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator

from ldm.commands.options import Free, Group, LoggedOptions, Text, Workers, build
from ldm.runtime.arguments import arguments_of, check_arguments, check_node
from ldm.runtime.ranges import Count, Decay, Natural, Positive, Share
from ldm.runtime.wrong import ArgumentError
from ldm.training.run import Plan
from ldm.training.schedule import Schedule
from ldm.training.trainer import RankBatch, Trainer, ranks_of


def check_optimizer(node: dict[str, Any]) -> dict[str, Any]:
    """A torch optimiser, its parameters left open; its rate is looked at, since torch does so first in training."""
    node = check_node(node)
    bounds = (("lr", lambda x: x > 0, "more than 0"), ("weight_decay", lambda x: x >= 0, "at least 0"))
    for key, allowed, bound in bounds:
        value = node.get(key, 1.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not allowed(value) or value == float("inf"):
            raise ArgumentError(f".{key}", f"={value} must be a finite number of {bound}")
    return node


Optimizer = Annotated[dict[str, Any], AfterValidator(check_optimizer)]
ScheduleOptions = Annotated[dict[str, Any], arguments_of(Schedule, "steps", "start", "peak")]


# not 16-true nor bf16-true: weights and their average stay in float32, for no optimiser here mends their rounding
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "64-true", "bf16", 32, 64, 16]


GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that replay CUDA graphs


class TrainerOptions(Group, extra="allow"):
    """Lightning's Trainer, by its own arguments, with what conf/trainer adds to them."""

    accelerator: str
    devices: int | str | list[int]
    num_nodes: Count | Literal["auto"]
    strategy: str
    precision: Precision
    shard_within: Count | None
    checkpoints: Literal["whole", "sharded"]
    channels_last: bool
    compile: bool | str
    log_every_n_steps: Count
    limit_val_batches: Natural | Share

    @model_validator(mode="after")
    def _shards(self) -> Self:
        sharded = self.strategy == "fsdp"
        if self.shard_within is not None and not sharded:
            raise ValueError(f"trainer.shard_within={self.shard_within} is for trainer.strategy=fsdp")
        if self.checkpoints == "sharded" and not sharded:
            raise ValueError("trainer.checkpoints=sharded is for trainer.strategy=fsdp: else each rank holds all")
        if sharded and self.compile in GRAPHS:
            raise ValueError(
                f"trainer.compile={self.compile} replays addresses of weights, which trainer.strategy=fsdp gathers "
                "anew each time: pass trainer.compile=true or max-autotune-no-cudagraphs"
            )
        return self

    @model_validator(mode="after")
    def _is_lightnings(self) -> Self:
        check_arguments(Trainer, self.model_extra or {}, partial=True)
        return self

    def arguments(self) -> dict[str, Any]:
        """Its keys and their values; what is a node, as trainer.profiler may be, is constructed."""
        given = self.model_dump().items()
        return {key: build(value) if isinstance(value, dict) and "_target_" in value else value for key, value in given}


class TrainingOptions(LoggedOptions):
    """What conf/stage1.yaml and conf/train_diffusion.yaml share."""

    trainer: Annotated[TrainerOptions, Free()]
    steps: Annotated[Count, Free()]
    every: Annotated[Count, Free()]
    keep: Annotated[Count, Free()]
    keep_best: Annotated[Text | None, Free()]
    batch_size: Annotated[Count, Free()]
    global_batch: Annotated[Count | None, Free()]
    accumulate: Annotated[Count, Free()]
    init: Annotated[Text | None, Free()]
    returns: Annotated[str, Free()]
    num_workers: Annotated[Workers, Free()]
    overfit: bool
    ema_decay: Decay
    schedule: ScheduleOptions
    lr_per_image: Positive | None
    optimizer: Optimizer

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if (self.trainer.model_extra or {}).get("accumulate_grad_batches") is not None:
            raise ValueError("trainer.accumulate_grad_batches is accumulate= here: of how many parts a batch is")
        if self.global_batch is None and self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} can't be divided into accumulate={self.accumulate} equal parts"
            )
        if self.global_batch is not None and self.accumulate != 1:
            raise ValueError(
                f"accumulate={self.accumulate}: global_batch={self.global_batch} is divided by itself into parts of at "
                f"most batch_size={self.batch_size}: leave accumulate= out"
            )
        return self

    def batch_of_a_rank(self, ranks: int | None = None) -> RankBatch:
        """What each of so many ranks takes of a batch; None: of those that will train here.

        Raises:
            ValueError: if they can't share global_batch equally.
        """
        if self.global_batch is None:
            return self._checked(RankBatch(self.batch_size, self.accumulate, self.batch_size))
        ranks = ranks_of(self.trainer.arguments()) if ranks is None else ranks
        share, rest = divmod(self.global_batch, ranks)
        if rest:
            raise ValueError(f"global_batch={self.global_batch} can't be shared by {ranks} ranks: pass a multiple")
        return self._checked(RankBatch(share, -(-share // self.batch_size), self.batch_size))

    def _checked(self, batch: RankBatch) -> RankBatch:
        """ValueError where a part's gradients would lie in memory that the next part's CUDA graph writes to."""
        if batch.parts > 1 and self.trainer.compile in GRAPHS:
            raise ValueError(
                f"trainer.compile={self.trainer.compile} can't sum gradients over {batch.parts} parts of a batch: pass "
                "trainer.compile=true or max-autotune-no-cudagraphs"
            )
        return batch

    def check_best(self, measured: Sequence[str], more: str) -> None:
        """ValueError if keep_best is none of the figures that a validation will measure."""
        if self.keep_best not in (None, *measured):
            raise ValueError(f"keep_best={self.keep_best} must be one of {', '.join(measured)} ({more})")

    def plan(self, run: Path) -> Plan:
        """How far training goes, and what it saves on the way."""
        return Plan(
            run=run,
            steps=self.steps,
            every=self.every,
            keep=self.keep,
            keep_best=self.keep_best,
            ema_decay=self.ema_decay,
            trainer=self.trainer.arguments(),
            free=self.free_keys(),
            global_batch=self.global_batch,
        )
