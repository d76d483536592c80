"""What encoding a data set and sampling cost."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.card import USUAL_GUIDANCE, build_from_card, usual_guidance
from ldm.checkpoint import CARD, find
from ldm.commands.cache_latents import CacheLatentsOptions
from ldm.commands.estimate_options import EstimateOptions
from ldm.commands.options import build
from ldm.commands.sample import SampleOptions
from ldm.condition import Condition, labelled
from ldm.conditioning.labels import Conditioning, Labels
from ldm.data.formats import dtype_of
from ldm.diffusion.checks import checked_objective
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import LinearPath
from ldm.diffusion.sampling import Sampling
from ldm.diffusion.times import Uniform
from ldm.diffusion.weighting import Unweighted
from ldm.generate.model import LatentDiffusionModel, decoded_at_once, size_for
from ldm.images import to_image, to_x
from ldm.latents import LatentStats
from ldm.models.autoencoder import Autoencoder
from ldm.training.contract import supplied
from ldm.training.cost import Cost
from ldm.training.speed import forward_flops
from ldm.training.step_memory import evaluation_memory

FLOW = Objective(path=LinearPath(), parameterization="velocity", weighting=Unweighted(), time_sampler=Uniform())
SINGLE = "32-true"  # of commands that do not train


def stored(net: nn.Module) -> int:
    """Bytes of a network's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*net.parameters(), *net.buffers()))


def decoding_memory(autoencoder: Autoencoder, objective: Objective, shape: tuple[int, ...]) -> float:
    """Bytes that live at most while latents of a shape [B, C, h, w] become images."""
    latents = objective.blank(shape).to("meta")
    return evaluation_memory(autoencoder, lambda net, z: to_image(net.decode(z)), latents)


def cache_latents_cost(options: CacheLatentsOptions, given: EstimateOptions, gpu: bool) -> Cost:  # noqa: ARG001
    """Of `ldm cache-latents`: both views of each image, if it may be mirrored."""
    if options.features is not None:
        raise ValueError(
            "ldm estimate does not know what features= holds: leave it out, and add 2 D h w bytes an image"
        )
    said: list[str] = []
    arguments = given.shape_of_autoencoder(options.autoencoder, said)
    with torch.device("meta"):
        autoencoder = Autoencoder(**arguments)
    side, views = options.data["resolution"], 2 if options.data.get("flip") else 1
    images = counted(options.data, given, said)
    small = side // autoencoder.downsample_factor
    a_view = 2 * arguments["latent_channels"] * small**2 * 2  # mean and std in fp16
    if options.codes:
        if autoencoder.quantize is None:
            raise ValueError("codes=true: the autoencoder has none (regularizer=vq or fsq): leave it out")
        a_view = small**2 * np.dtype(dtype_of(autoencoder.quantize.count)).itemsize
    pictures = torch.empty(options.batch_size, 3, side, side, dtype=torch.uint8, device="meta")
    alive = evaluation_memory(autoencoder, lambda net, image: net.encode(to_x(image)).moments(), pictures)
    said.append(f"{views} view{'s' * (views > 1)} of each image of {side} x {side} pixels, {views * a_view:,} bytes")
    return Cost(
        parameters=sum(p.numel() for p in autoencoder.encoder.parameters()),
        flops=views * forward_flops(autoencoder.encoder, torch.empty(1, 3, side, side)),
        images=images,
        a_step=options.batch_size,
        ranks=1,
        precision=SINGLE,
        memory={"weights": stored(autoencoder), "activations": alive},
        disk={} if images is None else {"cache": float(images * views * a_view)},
        said=said,
    )


def counted(data: dict[str, Any], given: EstimateOptions, said: list[str]) -> int | None:
    """How many images a source has, if it is there; else as images= says."""
    if given.images is None:
        with suppress(ValueError, OSError, AttributeError):  # there is no such folder, or a source that does not count
            source = build(data)
            return source.count("train") + source.count("val")
        said.append("the data are not there to be counted: pass images= for hours and disk")
    return given.images


def sample_cost(options: SampleOptions, given: EstimateOptions, gpu: bool) -> Cost:  # noqa: ARG001
    """Of `ldm sample`."""
    said: list[str] = []
    model = _model(options, given, said)
    net, shape, autoencoder = model.net, model.shape, model.autoencoder
    if options.latent_size is not None:
        shape = (shape[0], *size_for(net, options.latent_size))
    function, steps, grid = build(options.sampler.function), options.sampler.steps, build(options.grid)
    calls = evaluations(model.objective, model.sampling, (function, steps, grid, build(options.path)), shape)
    scale = model.guidance if options.guidance is None else options.guidance
    branches = 1 if scale == 1 or getattr(net, "takes_guidance", False) else 2
    batch = min(options.batch_size, options.num)
    x_t, t, null = model.objective.blank((1, *shape)), torch.empty(1), model.conditioning.null(0, shape)
    z = torch.empty(1, autoencoder.post_quant_conv.in_channels, *shape[1:])
    flops = calls * branches * forward_flops(net, x_t, t, null) + forward_flops(autoencoder.decoder, z)
    guidance = Guidance(scale=scale)
    x_t, t = (tensor.expand(batch, *tensor.shape[1:]).to("meta") for tensor in (x_t, t))
    told = labelled(torch.zeros(batch, dtype=torch.long, device="meta"), null)
    alive = evaluation_memory(net, lambda net, x_t, t: guidance(net, null)(x_t, t, told), x_t, t)
    said.append(f"{calls} evaluations of the denoiser, each of {branches} network pass{'es' * (branches > 1)}")
    side = max(shape[1:]) * autoencoder.downsample_factor
    decoded = decoding_memory(autoencoder, model.objective, (min(batch, decoded_at_once(side)), *shape))
    return Cost(
        parameters=sum(p.numel() for p in net.parameters()),
        flops=flops,
        images=options.num,
        a_step=batch,
        ranks=1,
        precision=SINGLE,
        memory={
            "weights": stored(net) + stored(autoencoder),
            "activations": max(alive, decoded),
        },
        disk={"samples.npz": 3.0 * options.num * side**2},
        said=said,
    )


@dataclass(frozen=True)
class _Model:
    """Both stages on the meta device, and how they are sampled where nothing else is said."""

    net: nn.Module
    autoencoder: Autoencoder
    shape: tuple[int, ...]
    objective: Objective = FLOW
    sampling: Sampling = Sampling()  # noqa: RUF009  # frozen
    guidance: float = USUAL_GUIDANCE
    conditioning: Conditioning = Labels()  # noqa: RUF009  # it has no state


def _model(options: SampleOptions, given: EstimateOptions, said: list[str]) -> _Model:
    """The model's parts on the meta device: as its card has them or, where it is not there, as net= and ae= say."""
    usual: dict[str, Any] = {}
    if Path(options.model).exists():
        file, checkpoint = find(Path(options.model), "diffusion")
        card = checkpoint[CARD]
        node, shape = card["net"], tuple(card["latent_shape"])
        usual = {
            "objective": checked_objective(build_from_card(card["objective"], options.trust, str(file))),
            "sampling": Sampling(**build_from_card(card.get("sampling", {}), options.trust, str(file))),
            "guidance": usual_guidance(card),
        }
        if card.get("condition"):
            usual["conditioning"] = build_from_card(card["condition"], options.trust, str(file))
        path: str | Path | None = options.autoencoder or file.parents[1] / card["autoencoder_path"]
    else:
        shape, classes, _ = given.shape_of_latents(options.model, said)
        said.append(
            f"the network is that of net=, sampled by {Sampling().function.__name__} where nothing else is said"
        )
        node, path = given.net | supplied(given.net, shape, classes), options.autoencoder
    arguments = given.shape_of_autoencoder(path, said)
    with torch.device("meta"):
        return _Model(build_from_card(node, options.trust), Autoencoder(**arguments), shape, **usual)


class _Silent(nn.Module):
    """A network that says zero."""

    null_class = 1

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002
        return self.objective.silent(x_t)


def evaluations(
    objective: Objective, sampling: Sampling, chosen: tuple[Any, Any, Any, Any], shape: tuple[int, ...]
) -> int:
    """How often a sampler asks the denoiser, counted on one latent; for adaptive steps it is a bound from below.
    chosen: sampler, steps, grid and path; None where the objective says."""
    model = LatentDiffusionModel(
        net=_Silent(objective),
        objective=objective,
        stats=LatentStats(torch.zeros(shape[0]), torch.ones(shape[0])),
        autoencoder=None,
        latent_shape=shape,
        class_names=["0"],
        sampling=sampling,
    )
    sampler, steps, grid, path = chosen
    generator = model.generator(sampler=sampler, steps=steps, grid=grid, path=path)
    return generator.latents([0], torch.zeros(1, dtype=torch.long))[1].evaluations
