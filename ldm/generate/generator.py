"""A model with one way to sample it: conditions, noise, a guided sampler, the decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.condition import Condition
from ldm.diffusion.autoregressive import check_plan, check_shares
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.noise import IndexedNoise
from ldm.diffusion.objective import Net, on_path
from ldm.diffusion.parameterization import Prediction, scale
from ldm.diffusion.path import Path, log_snr, time_at
from ldm.diffusion.sampling import Record, Sampling, check_times

if TYPE_CHECKING:
    from ldm.generate.model import LatentDiffusionModel


STRENGTH = 0.6  # of what samples start from, where nothing is said


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What samples start from in place of noise alone: latents, noised (SDEdit, Meng et al. 2022).

    latents:  normalised, [P, C, h, w]; the sample of index i starts from the one of index i modulo P
    strength: how much they are noised, in (0, 1], as the angle (2 / pi) atan(sigma / alpha), which is t of the
              cosine path and nearly that of the straight one; 1 leaves nothing of them
    """

    latents: Tensor
    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength:g} must lie in (0, 1]: 1 leaves nothing of what it starts from")

    def log_snr(self) -> Tensor:
        """At which they are noised."""
        return -2 * torch.tan(torch.tensor(self.strength * torch.pi / 2, dtype=torch.float64)).log()


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A model with one way to sample it.

    model:     the trained pair of stages
    sampling:  the sampler and the times that it walks
    guidance:  how the condition is strengthened
    seed:      with a sample's index, it determines all of that sample's noise
    path:      what the sampler walks on; None is the path of training. On another path, it starts where that is as
               noisy as the end of training's: neither knows what lies beyond
    origin:    what samples start from; None is noise alone
    """

    model: "LatentDiffusionModel"
    sampling: Sampling
    guidance: Guidance
    seed: int
    path: Path | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        self.model.objective.check_sampler(self.sampling.function)
        check_plan(self.sampling.grid, math.prod(self.model.latent_shape[1:]) if self.model.of_codes else None)
        path, times = self._walk()
        if self.model.of_codes:
            check_shares(times)
            return
        check_times(path, times, self._latest() if self.origin is None else float(times[0]))

    def _walk(self) -> tuple[Path, Tensor]:
        """The path and its times, [steps + 1]; on the CPU, so that samplers may look at them."""
        path = self.model.objective.path if self.path is None else self.path
        latest = self._latest()
        if self.origin is not None and self.origin.strength < 1:
            latest = min(latest, float(time_at(path, self.origin.log_snr())))
        return path, self.sampling.grid(path, self.sampling.steps, latest)

    def _latest(self) -> float:
        """The time at which the path is as noisy as the path of training at t = 1."""
        if self.path is None:
            return 1.0
        return float(time_at(self.path, log_snr(self.model.objective.path(torch.ones((), dtype=torch.float64)))))

    def draws_noise(self) -> bool:
        """Whether its sampler draws noise on its way: seen on a walk with a denoiser that says nothing."""
        drawn: list[Tensor] = []

        def noise(x: Tensor) -> Tensor:
            drawn.append(x)
            return torch.zeros_like(x)

        def denoise(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Prediction:  # noqa: ARG001
            return self.model.objective.nothing(x_t)

        path, times = self._walk()
        self.sampling.walk(denoise, path, torch.zeros(1, *self.model.latent_shape), times, noise)
        return bool(drawn)

    @torch.no_grad()
    def latents(self, indices: Sequence[int], condition: Condition | Tensor, keep: int = 0) -> tuple[Tensor, Record]:
        """Normalised latents [B, C, h, w] of the samples with these indices and a condition of as many rows, or labels
        [B] alone, and the record of the walk, with the states of the first `keep`."""
        if (rows := len(Condition.of(condition).label)) != len(indices):
            raise ValueError(f"{len(indices)} samples take a condition of as many rows, or as many labels, not {rows}")
        noise = IndexedNoise(self.seed, indices)
        start = noise.draw(self.model.latent_shape)
        if self.origin is not None:
            path, times = self._walk()
            known = self.origin.latents[[i % len(self.origin.latents) for i in indices]].to(start)
            c = path(times[0])
            start = (c.alpha * known + c.sigma * start) / scale(c)  # as noisy as x_t, to which it is scaled
        return self.latents_from(start, self.net(), condition, noise, keep)

    def net(self) -> Net:
        """The guided network."""
        return self.guidance(self.model.net, self.model.null)

    @torch.no_grad()
    def latents_from(
        self, start: Tensor, net: Net, condition: Condition | Tensor, noise: IndexedNoise, keep: int = 0
    ) -> tuple[Tensor, Record]:
        """Likewise, from standard normal noise [B, C, h, w], by a network (guided, or of several), with what noise a
        stochastic sampler adds on its way."""
        path, times = self._walk()
        condition = self.model.told(condition)
        x = start.to(condition.label.device) * scale(path(times[0]))
        denoise = self.model.objective.denoiser(net, condition)
        record = Record(denoise if self.path is None else on_path(denoise, self.model.objective.path, path), keep)
        return self.sampling.walk(record, path, x, times, noise), record

    def images(self, indices: Sequence[int], condition: Condition | Tensor) -> tuple[Tensor, int]:
        """Images, uint8 [B, 3, H, W], and the denoiser's evaluations for each (guided, two of networks each)."""
        latents, record = self.latents(indices, condition)
        return self.model.decode(latents), record.evaluations

    def trajectory(self, condition: Condition | Tensor, columns: int = 11) -> tuple[Tensor, list[float]]:
        """Sample 0, of a condition of one row or a label [1], on its way from noise, at up to `columns` of its times.

        Returns:
            K states x_t and then the x0 that the network predicts at each, decoded, uint8 [2 K, 3, H, W]; and the K
            times.
        """
        latents, record = self.latents([0], condition, keep=1)
        grid = self._walk()[1].tolist()
        walked = {grid[-1]: (latents, latents)}
        for wanted in grid[:-1]:  # the state nearest to it: of several, the last, which the solver has corrected
            off = [round(abs(float(t) - wanted), 6) for t, _, _ in reversed(record.states)]
            t, x, x0 = record.states[-1 - off.index(min(off))]
            walked[float(t)] = (x, x0)
        times = sorted(walked, reverse=True)
        times = [times[i] for i in torch.linspace(0, len(times) - 1, min(columns, len(times))).long().tolist()]
        states = [walked[t][part] for part in (0, 1) for t in times]
        return self.model.decode(torch.cat(states)), times
