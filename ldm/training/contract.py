"""What stage 2 asks of its parts, told to whoever wrote one before training begins, not batches or hours later.

    path(t) -> Coefficients(alpha, sigma, dalpha, dsigma)         each of t's shape; the last two are derivatives by t
    time_sampler(n, path, device) -> t [n] in [0, 1]
    weighting(error [B], snr [B], gain [B]) -> loss [B]
    net = Net(in_channels=C, num_classes=K, **keys of its yaml)   and latent_size=[h, w], if it has such an argument
    net(x_t [B, C, h, w], t [B], condition) -> [B, C, h, w]       condition.label [B]; net.null_class = K is "no label"
        condition.s [B]                                           of objective=meanflow: built with second_time=True
        condition.w [B]                                           of guidance as a condition: with takes_guidance=True
        x_t long [B, 1, h, w] -> logits [B, K, h, w]              of objective=ardm: with codes=K; below 0: hidden
    net.blocks                                                    optional: modules that follow one another, of which
                                                                  fsdp gathers, and then compiles, one at a time, and
                                                                  align.layer counts: a map or tokens each
    grid(path, steps, t_max) -> times [steps + 1]                 falling, from t_max or just below to 0
    sampler(denoise, path, x [B, C, h, w], times) -> [B, C, h, w]

Each check computes next to nothing, and leaves the random numbers of training as they were.
"""

import inspect
import pydoc
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.condition import Condition
from ldm.diffusion.checks import apart
from ldm.diffusion.objective import Objective
from ldm.generate.generator import Generator

SHAPES = "net(x_t [B, C, h, w], t [B], condition) -> [B, C, h, w]"


SUPPLIED = ("in_channels", "num_classes", "latent_size")  # arguments of a network that no config gives


def supplied(node: dict[str, Any], latent_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    """Those of the network that a node names: what it is built with beside the node's own."""
    channels, *size = latent_shape
    given: dict[str, Any] = {"in_channels": channels, "num_classes": num_classes, "latent_size": size}
    takes = inspect.signature(pydoc.locate(node["_target_"])).parameters  # type: ignore[arg-type]
    return {name: value for name, value in given.items() if name in takes or name != "latent_size"}


def check_network(
    net: nn.Module,
    latent_shape: tuple[int, ...],
    objective: Objective,
    num_classes: int,
    device: torch.device,
    told: Condition,
) -> None:
    """Call a network as training and sampling do: once, in evaluation mode, told something and told nothing.

    Args:
        net:          the network, on the CPU before and after
        latent_shape: C, h, w
        objective:    that it learns
        num_classes:  K
        device:       where it will be trained
        told:         a condition of two rows: of the first label, and the null one

    Raises:
        ValueError: if it does not keep the contract above.
    """
    name, x_t = type(net).__name__, objective.blank([2, *latent_shape])
    wanted = list(objective.silent(x_t).shape)
    if getattr(net, "null_class", None) != num_classes:
        raise ValueError(
            f"net: {name} needs an attribute null_class, the label of an image without one: let its constructor say "
            "self.null_class = num_classes, and let it take labels from 0 up to and including that"
        )
    try:
        output = _called(net, x_t, told, device)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"net: {name} can't be called as {SHAPES} with C, h, w = {latent_shape}, condition.label 0 and "
            f"{num_classes} (null_class){_beside_label(told)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor) or list(output.shape) != wanted:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"net: {name} must return a tensor like x_t, {wanted}, not {got}: {SHAPES}")
    if not output.isfinite().all():
        raise ValueError(f"net: {name} returns values that are not finite, before any training")


def _beside_label(told: Condition) -> str:
    parts = told.parts()
    return "".join(f", condition.{key} {list(part.shape)}" for key, part in parts.items() if key != "label")


def _called(net: nn.Module, x_t: Tensor, told: Condition, device: torch.device) -> Any:
    """What a network returns at t = 0 and 1; its mode and its place are as before."""
    training = net.training
    try:
        with apart():
            t = torch.tensor([0.0, 1.0])
            return net.to(device).eval()(x_t.to(device), t.to(device), told.to(device))
    finally:
        net.to("cpu").train(training)


class _SaysZero(nn.Module):
    def __init__(self, null_class: int, objective: Objective) -> None:
        super().__init__()
        self.null_class, self.objective = null_class, objective

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.objective.silent(x_t)


def check_sampling(generator: Generator) -> None:
    """Walk the sampler's grid with a network that says zero; the grid itself was checked by `Generator`.

    Raises:
        ValueError: if the sampler does not return finite latents like its x.
    """
    model, null_class = generator.model, int(generator.model.net.null_class)  # type: ignore[arg-type]
    silent = replace(generator, model=replace(model, net=_SaysZero(null_class, model.objective)))
    with apart():
        latents, _ = silent.latents([0], torch.zeros(1, dtype=torch.long))
    if latents.shape != (1, *model.latent_shape) or not latents.isfinite().all():
        raise ValueError(
            f"sampler.function must return finite latents like its x, {[1, *model.latent_shape]}, "
            f"not {list(latents.shape)}"
        )
