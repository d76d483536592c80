"""The scheduler of students that jump from one time to another. It needs diffusers and torch, and no ldm."""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


@dataclass
class JumpSchedulerOutput(BaseOutput):
    """prev_sample: the state at the next time."""

    prev_sample: Tensor


class JumpScheduler(SchedulerMixin, ConfigMixin):
    """Jumps along a path from noise, t = 1, to data, t = 0; a timestep is T t - 1.

    Args:
        num_train_timesteps: T
        prediction_type:     "average_velocity": (x_t - x_s) / (t - s), on the path x_t = (1 - t) x_0 + t noise
                             (MeanFlow, Geng et al. 2025); "v_prediction": cos a noise - sin a x_0, on the path
                             x_t = cos a x_0 + sin a noise, where a = pi t / 2 (consistency, Lu & Song 2025)
        renoise:             jump to the data each time, and from there to the next time by new noise (Song et al. 2023,
                             algorithm 1)
        shift:               of the times: shift t / (1 + (shift - 1) t)
    """

    CARRIED = True  # this file goes with the pipeline
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: str = "average_velocity",
        renoise: bool = False,
        shift: float = 1.0,
    ) -> None:
        if prediction_type not in ("average_velocity", "v_prediction"):
            raise ValueError(f"prediction_type={prediction_type} must be average_velocity or v_prediction")
        self.set_timesteps(1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose so many times, evenly but for the shift."""
        even = [1 - i / num_inference_steps for i in range(num_inference_steps + 1)]
        shift, last = self.config.shift, self.config.num_train_timesteps
        self.num_inference_steps = num_inference_steps
        self.times = [shift * t / (1 + (shift - 1) * t) for t in even]
        self.timesteps = torch.tensor([last * t - 1 for t in self.times[:-1]], dtype=torch.float32, device=device)

    def target(self, i: int) -> float:
        """The time that the network is to jump to at the i-th evaluation."""
        return 0.0 if self.config.renoise else self.times[i + 1]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> JumpSchedulerOutput | tuple[Tensor]:
        """The state at the time after `timestep`, which is one of `timesteps`, like sample [B, C, h, w]."""
        i = int((self.timesteps - float(timestep)).abs().argmin())
        t, s = self.times[i], self.times[i + 1]
        noise = None
        if self.config.renoise and s > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        jump = self._straight if self.config.prediction_type == "average_velocity" else self._angle
        there = jump(model_output, sample, t, s, noise)
        return JumpSchedulerOutput(prev_sample=there) if return_dict else (there,)

    def _straight(self, velocity: Tensor, x: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
        if noise is None:
            return x - (t - s) * velocity
        return (1 - s) * (x - t * velocity) + s * noise

    def _angle(self, v: Tensor, x: Tensor, t: float, s: float, noise: Tensor | None) -> Tensor:
        a, b = math.pi / 2 * t, math.pi / 2 * s
        data, own = math.cos(a) * x - math.sin(a) * v, math.sin(a) * x + math.cos(a) * v
        return math.cos(b) * data + math.sin(b) * (own if noise is None else noise)
