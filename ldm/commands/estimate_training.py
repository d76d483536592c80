"""What both stages' training costs: what the commands build, built on the meta device, and one step of it traced."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ldm.card import build_from_card, check_trust, usual_guidance
from ldm.commands import train_autoencoder, train_diffusion
from ldm.commands.estimate_inference import decoding_memory, stored
from ldm.commands.estimate_options import EstimateOptions
from ldm.commands.options import build
from ldm.commands.train_autoencoder import TrainAutoencoder
from ldm.commands.train_diffusion import TrainDiffusionOptions
from ldm.commands.training_options import GRAPHS, TrainerOptions, TrainingOptions
from ldm.data.cache_reader import Batch, LatentCache
from ldm.data.formats import MANIFEST
from ldm.data.shard_writer import AUTOENCODER_FILE
from ldm.diffusion.checks import checked_objective
from ldm.diffusion.sampling import Sampling
from ldm.generate.model import decoded_at_once
from ldm.latents import LatentStats
from ldm.losses.autoencoder_loss import AutoencoderLoss
from ldm.models.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.training.contract import supplied
from ldm.training.cost import Cost, Parts, checkpoint_bytes
from ldm.training.pictures import COLUMNS, rows_of
from ldm.training.step_memory import Module, StepMemory, step_memory
from ldm.training.trainer import devices_named


def ranks_named(trainer: TrainerOptions) -> int:
    """How many processes the options name; 1 where they leave it to whoever starts them."""
    nodes = trainer.num_nodes
    return (devices_named(trainer.devices) or 1) * (nodes if isinstance(nodes, int) else 1)


def train_autoencoder_cost(options: TrainAutoencoder, given: EstimateOptions, gpu: bool) -> Cost:  # noqa: ARG001
    """Of `ldm train-autoencoder`."""
    if options.align.features is not None:
        raise ValueError("ldm estimate does not know what align.features holds: leave it out")
    regularizer = build(options.regularizer)
    with torch.device("meta"):
        autoencoder = Autoencoder(**train_autoencoder.shape_of(options, regularizer))
        discriminator = PatchDiscriminator(**options.discriminator)
    logging.disable(logging.WARNING)  # LPIPS' weights here are random ones, whatever the command will have
    try:
        loss = AutoencoderLoss(**options.loss | {"perceptual_pretrained": False}, regularizer=regularizer)
    finally:
        logging.disable(logging.NOTSET)
    side, own = options.data["resolution"], options.batch_of_a_rank(ranks_named(options.trainer))
    if side % autoencoder.downsample_factor:
        raise ValueError(f"data.resolution={side} is not a multiple of the factor {autoencoder.downsample_factor}")
    module = train_autoencoder.module_of(options, own, autoencoder, discriminator, loss, {"resolution": side})
    batch = (_meta(own.size, 3, side, side, dtype=torch.uint8), _meta(own.size, dtype=torch.long))
    said = [f"images of {side} x {side} pixels; LPIPS' and the discriminator's weights are in the memory"]
    return _training_cost(options, module, batch, module.flops_per_image(), gpu, said=said)


def train_diffusion_cost(options: TrainDiffusionOptions, given: EstimateOptions, gpu: bool) -> Cost:
    """Of `ldm train-diffusion`."""
    if options.objective.student is not None:
        raise ValueError("ldm estimate knows no students yet: estimate their teacher's training, which needs less")
    codes = given.codes_of_latents(options.latents) if options.objective.codes else None
    parts = {
        "net": options.net,
        "objective": options.objective.card(codes=codes),
        "sampling": options.objective.sampling,
    }
    check_trust(parts, options.trust)
    objective = checked_objective(build_from_card(parts["objective"], options.trust))
    sampling = Sampling(**build_from_card(parts["sampling"], options.trust))
    if options.align.layer is not None:
        raise ValueError("ldm estimate knows no alignment yet: leave align.layer out, which adds little")
    if options.latents is None:
        raise ValueError("ldm estimate counts training on a cache: pass latents=, whether it is there or not")
    said: list[str] = []
    shape, classes, _ = given.shape_of_latents(options.latents, said)
    conditioning = build(options.condition)
    if conditioning.reads and (Path(options.latents) / MANIFEST).exists():  # which knows what no config does
        conditioning = build(options.condition | conditioning.learned(LatentCache(options.latents, "size").kept()))
    sizes = supplied(options.net, shape, classes) | conditioning.network(shape) | ({"codes": codes} if codes else {})
    null = conditioning.null(classes, shape)
    cached = Path(options.latents, AUTOENCODER_FILE)
    arguments = given.shape_of_autoencoder(options.autoencoder or (cached if cached.exists() else None), said)
    with torch.device("meta"):
        net = build_from_card(options.net | sizes, options.trust)
        autoencoder = Autoencoder(**arguments)
    stats = LatentStats(torch.zeros(shape[0]), torch.ones(shape[0]))
    cache: Any = SimpleNamespace(stats=stats, latent_shape=shape, class_names=list(map(str, range(classes))))
    loaded: Any = SimpleNamespace(model=autoencoder)
    scale = usual_guidance({"label_dropout": options.label_dropout, "config": {"guidance": options.guidance}})
    generator = train_diffusion.generator_of(options, net, objective, sampling, conditioning, cache, loaded, scale)
    drawn = min(COLUMNS * rows_of(generator.model), decoded_at_once(generator.model.resolution))
    card = {"latent_shape": list(shape), "config": options.plain()}
    own = options.batch_of_a_rank(ranks_named(options.trainer))
    module = train_diffusion.module_of(options, own, net, objective, stats, conditioning, null, card)
    blank = conditioning.blank(own.size, shape)
    batch = Batch(
        _meta(own.size, *shape, dtype=torch.int32)
        if codes
        else _meta(own.size, 2 * shape[0], *shape[1:], dtype=torch.float16),
        _meta(own.size, dtype=torch.long),
        _meta(own.size, *shape) if objective.coupling.ahead else None,  # paired by the loader
        {name: _meta(*part.shape, dtype=part.dtype) for name, part in blank.items()},
    )
    flops, recomputes = module.flops_per_image(), bool(options.net.get("checkpoint"))
    if recomputes:
        said.append("net.checkpoint=true: a forward pass more for each image")
    cost = _training_cost(options, module, batch, flops * (4 / 3 if recomputes else 1), gpu, said=said)
    return _with_grid(cost, decoding_memory(autoencoder, objective, (drawn, *shape)), stored(autoencoder))


def _training_cost(
    options: TrainingOptions, module: Module, batch: tuple[Any, ...], flops: float, gpu: bool, *, said: list[str]
) -> Cost:
    """Of either stage."""
    ranks, precision = ranks_named(options.trainer), str(options.trainer.precision)
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    step = step_memory(module, batch, precision, gpu=gpu)
    saved = checkpoint_bytes(module, step.optimizer)
    return Cost(
        parameters=parameters,
        flops=flops,
        images=options.steps * module.batch_size * ranks,
        a_step=module.batch_size,
        ranks=ranks,
        precision=precision,
        memory=_on_a_rank(step, ranks, options.trainer),
        # one more, since a new one is written before the oldest is removed
        disk={f"{options.keep + 1} checkpoints": (options.keep + 1) * saved},
        said=said,
    )


def _on_a_rank(step: StepMemory, ranks: int, trainer: TrainerOptions) -> Parts:
    """What each rank holds; of DDP the buckets, too, in which gradients travel, of FSDP a share."""
    sharded = trainer.strategy == "fsdp"
    share = min(trainer.shard_within or ranks, ranks) if sharded else 1
    parts = {name: getattr(step, name) / share for name in ("weights", "gradients", "optimizer", "average")}
    if ranks > 1 and not sharded:
        parts["buckets of DDP"] = step.gradients
    return parts | {"activations": step.activations}


def _with_grid(cost: Cost, drawing: float, autoencoder: float) -> Cost:
    """With the autoencoder of the sample grids, which stays on the device; a validation comes when the step's own
    memory is free, and may need more than that."""
    memory = cost.memory | {"autoencoder": autoencoder}
    if drawing > memory["activations"]:
        memory = {name: size for name, size in memory.items() if name != "activations"} | {"sample grid": drawing}
    return Cost(**vars(cost) | {"memory": memory})


def turned(options: TrainAutoencoder | TrainDiffusionOptions, too_much: float) -> Iterator[tuple[str, Any]]:
    """Keys that make a step smaller, each alone: KEY=VALUE, and the options with it.

    too_much: the factor by which activations exceed what is left for them
    """
    half = {"precision": "bf16-mixed"}
    if str(options.trainer.precision).startswith(("32", "64")):
        yield "trainer.precision=bf16-mixed", _with(options, trainer=options.trainer.model_copy(update=half))
    if isinstance(options, TrainDiffusionOptions) and options.net.get("checkpoint") is False:
        yield "net.checkpoint=true", _with(options, net=options.net | {"checkpoint": True})
    if isinstance(options, TrainDiffusionOptions) and ranks_named(options.trainer) > 1:
        sharded = {"strategy": "fsdp", "channels_last": False}
        words = "trainer.strategy=fsdp trainer.channels_last=false"
        if options.trainer.compile in GRAPHS:
            sharded, words = sharded | {"compile": True}, f"{words} trainer.compile=true"
        yield words, _with(options, trainer=options.trainer.model_copy(update=sharded))
    size = options.batch_size
    if options.global_batch is not None:
        own = options.batch_of_a_rank(ranks_named(options.trainer))
        part = -(-own.size // own.parts)
        if part > (smaller := max(1, int(0.8 * part / too_much))):  # what any part needs is among the activations
            yield f"batch_size={smaller}", _with(options, batch_size=smaller)
        return
    counts = (n for n in range(options.accumulate + 1, size + 1) if size % n == 0)
    count = next((n for n in counts if n >= too_much * options.accumulate), size)
    if count > options.accumulate:
        yield f"accumulate={count}", _with(options, accumulate=count)


def _with(options: TrainingOptions, **changed: Any) -> TrainingOptions:
    return options.model_copy(update=changed)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
