"""What stage 2 asks of its parts, told to whoever wrote one before training begins, not batches or hours later.

    path(t) -> Coefficients(alpha, sigma, dalpha, dsigma)         each of t's shape; the last two are derivatives by t
    time_sampler(n, path, device) -> t [n] in [0, 1]
    weighting(error [B], snr [B], gain [B]) -> loss [B]
    net = Net(in_channels=C, num_classes=K, **keys of its yaml)
    net(x_t [B, C, h, w], t [B], y [B]) -> [B, C, h, w]           y is never None; net.null_class = K is "no label"
    net.fsdp_blocks                                               optional: modules that FSDP gathers one at a time
    grid(path, steps, t_max) -> times [steps + 1]                 falling, from t_max or just below to 0
    sampler(denoise, path, x [B, C, h, w], times) -> [B, C, h, w]

Each check computes next to nothing, and leaves the random numbers of training as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.objective import Objective
from ldm.diffusion.path import Coefficients, Path
from ldm.generate import Generator

LATENT = (4, 8, 8)  # any would do where a part does not ask
SHAPES = "net(x_t [B, C, h, w], t [B], y [B]) -> [B, C, h, w]"


@contextmanager
def apart() -> Iterator[None]:
    """Without gradients, and with random numbers of its own."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def check_network(net: nn.Module, latent_shape: tuple[int, ...], num_classes: int, device: torch.device) -> None:
    """Call a network as training and sampling do: once, in evaluation mode, with the first label and with none.

    Args:
        net:          the network, on the CPU before and after
        latent_shape: C, h, w
        num_classes:  K
        device:       where it will be trained

    Raises:
        ValueError: if it does not keep the contract above.
    """
    name, wanted = type(net).__name__, [2, *latent_shape]
    if getattr(net, "null_class", None) != num_classes:
        raise ValueError(
            f"net: {name} needs an attribute null_class, the label of an image without one: let its constructor say "
            "self.null_class = num_classes, and let it take labels from 0 up to and including that"
        )
    try:
        output = _called(net, wanted, torch.tensor([0, num_classes]), device)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"net: {name} can't be called as {SHAPES} with C, h, w = {latent_shape} and labels 0 and {num_classes} "
            f"(null_class): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor) or list(output.shape) != wanted:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"net: {name} must return a tensor like x_t, {wanted}, not {got}: {SHAPES}")
    if not output.isfinite().all():
        raise ValueError(f"net: {name} returns values that are not finite, before any training")


def _called(net: nn.Module, shape: list[int], y: Tensor, device: torch.device) -> Any:
    """What a network returns at t = 0 and 1; its mode and its place are as before."""
    training = net.training
    try:
        with apart():
            x_t, t = torch.randn(shape), torch.tensor([0.0, 1.0])
            return net.to(device).eval()(x_t.to(device), t.to(device), y.to(device))
    finally:
        net.to("cpu").train(training)


def checked_objective(parts: dict[str, Any]) -> Objective:
    """Make an objective of its parts, by name, and compute the loss of a network that says zero.

    Raises:
        ValueError: if the path, the time sampler or the weighting does not keep the contract above.
    """
    if "path" in parts:
        _check_path(parts["path"])
    try:
        objective = Objective(**parts)
    except TypeError as error:
        raise ValueError(f"objective: {error}") from None
    with apart():
        x0, y = torch.randn(4, *LATENT), torch.zeros(4, dtype=torch.long)
        t = objective.time_sampler(4, objective.path, x0.device)
        if t.shape != (4,) or not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"objective.time_sampler must draw n times in [0, 1], [4] of n = 4, not {t.tolist()}")
        loss, _ = objective.loss(lambda x_t, _t, _y: torch.zeros_like(x_t), x0, y, t=t)
    if loss.shape != (4,) or not loss.isfinite().all():
        raise ValueError(f"objective.weighting must give each image its finite loss, [4] of 4, not {loss.tolist()}")
    return objective


def _check_path(path: Path) -> None:
    t, h = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 1e-3
    c = path(t)
    if not isinstance(c, Coefficients) or any(value.shape != t.shape for value in c):
        raise ValueError("objective.path must return ldm.diffusion.path.Coefficients, each of t's shape")
    before, after = path(t - h), path(t + h)
    for name, slope in (("alpha", c.dalpha), ("sigma", c.dsigma)):
        rise = (getattr(after, name) - getattr(before, name)) / (2 * h)
        if not torch.allclose(slope.double(), rise.double(), rtol=0.02, atol=0.02):
            raise ValueError(
                f"objective.path: d{name} must be the derivative of {name} by t: at t = {t.tolist()} it is "
                f"{[round(s, 3) for s in slope.tolist()]}, but {name} rises by {[round(r, 3) for r in rise.tolist()]}"
            )


class _SaysZero(nn.Module):
    def __init__(self, null_class: int) -> None:
        super().__init__()
        self.null_class = null_class

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def check_sampling(generator: Generator) -> None:
    """Walk the sampler's grid with a network that says zero; the grid itself was checked by `Generator`.

    Raises:
        ValueError: if the sampler does not return finite latents like its x.
    """
    model, null_class = generator.model, int(generator.model.net.null_class)  # type: ignore[arg-type]
    silent = replace(generator, model=replace(model, net=_SaysZero(null_class)))
    with apart():
        latents, _ = silent.latents([0], torch.zeros(1, dtype=torch.long))
    if latents.shape != (1, *model.latent_shape) or not latents.isfinite().all():
        raise ValueError(
            f"sampler.function must return finite latents like its x, {[1, *model.latent_shape]}, "
            f"not {list(latents.shape)}"
        )
