"""Generates images with a latent diffusion model that ldm has trained. It needs diffusers and torch, and no ldm.

`ldm convert to=diffusers model=RUN` copies this file beside what it writes:

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    images = pipe(["cat", 5], num_inference_steps=25, guidance_scale=2.0, generator=torch.manual_seed(0)).images
"""

import inspect
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

TIMESTEPS = 1000.0  # the network sees the time t in [0, 1] as 1000 t - time_offset


class LatentDiffusionPipeline(DiffusionPipeline):
    """Noise to latents to images, by class.

    Args:
        unet:                UNet2DModel or UNet2DConditionModel; None where there is a transformer
        transformer:         DiTTransformer2DModel; None where there is a U-Net
        vae:                 AutoencoderKL, with latents_mean and latents_std in its config
        scheduler:           one for the path that the model was trained on
        id2label:            the classes' names by their numbers; the number after the last means "no label"
        guidable:            whether the model was trained on dropped labels, too
        clock:               what tells the network its time: the scheduler's "timestep" (t = (timestep + 1) / T), its
                             "sigma" on the straight path (alpha = 1 - sigma), or of sigma / alpha the "angle"
                             (t = 2 / pi atan sigma)
        path_shift:          s of a straight path with sigma = s t / (1 + (s - 1) t)
        time_offset:         of the network's timesteps
        norm_groups:         of every norm: this number's largest divisor that divides the channels; null: as configured
        num_heads:           of every attention; null: as configured
        guidance_scale:      where a call says nothing; 1 is unguided
        num_inference_steps: likewise
        further:             FurtherEmbeddings of what a student is told beside time and label; None: it is told nothing
        guidance_range:      of the scale, where a student takes it as a condition and asks no second network
    """

    model_cpu_offload_seq = "further->unet->transformer->vae"
    _optional_components = ["further", "unet", "transformer"]  # noqa: RUF012

    def __init__(  # diffusers keeps these in model_index.json
        self,
        vae: Any,
        scheduler: Any,
        unet: Any = None,
        transformer: Any = None,
        id2label: dict[str, str] | None = None,
        guidable: bool = True,
        clock: str = "timestep",
        path_shift: float = 1.0,
        time_offset: float = 0.0,
        norm_groups: int | None = None,
        num_heads: int | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        further: Any = None,
        guidance_range: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, transformer=transformer, vae=vae, scheduler=scheduler, further=further)
        self._name_carried()
        self.register_to_config(
            id2label=id2label,
            guidable=guidable,
            clock=clock,
            path_shift=path_shift,
            time_offset=time_offset,
            norm_groups=norm_groups,
            num_heads=num_heads,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            guidance_range=guidance_range,
        )
        for module in self.network.modules():
            if norm_groups is not None and isinstance(module, torch.nn.GroupNorm):
                module.num_groups = math.gcd(norm_groups, module.num_channels)
            if num_heads is not None and hasattr(module, "to_q"):
                module.heads = num_heads
                module.scale = (module.inner_dim // num_heads) ** -0.5

    @property
    def network(self) -> Any:
        """The U-Net or the transformer, whichever it has."""
        return self.transformer if self.unet is None else self.unet

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of their numbers."""
        names = self.config.id2label or {"0": "0"}
        return [names[str(i)] for i in range(len(names))]

    def labels(self, classes: str | int | Sequence[str | int] | None) -> list[int]:
        """The numbers of classes that are given by name or number; None is all of them.

        Raises:
            ValueError: for a class that the model has not.
        """
        names = self.class_names
        given = range(len(names)) if classes is None else [classes] if isinstance(classes, str | int) else classes
        numbers: list[Any] = [names.index(c) if isinstance(c, str) and c in names else c for c in given]
        if not numbers or not all(type(c) is int and 0 <= c < len(names) for c in numbers):
            raise ValueError(f"classes={classes} must name some of 0 ... {len(names) - 1} or of their names, {names}")
        return numbers

    @torch.no_grad()
    def __call__(
        self,
        classes: str | int | Sequence[str | int] | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate an image of each of the classes.

        Args:
            classes:             names or numbers, one an image; None: all, once each
            guidance_scale:      1 is unguided; None: as the model's recipe says
            num_inference_steps: of the scheduler; None: likewise
            generator:           of the noise; a list has one an image
            latents:             standard normal noise to start from, [n, C, h, w], in place of drawing it
            output_type:         "pil", "np", "pt" (float [n, 3, H, W] in [0, 1]) or "latent" (normalised)
            return_dict:         whether to return diffusers' ImagePipelineOutput or a tuple

        Raises:
            ValueError: for a class that there is not, guidance of a model that was never trained without labels, no
                steps, generators of other images, or an output_type that there is not.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise ValueError(f"num_inference_steps={steps} must be at least 1")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type} must be pil, np, pt or latent")
        labels = torch.tensor(self.labels(classes), device=self._execution_device)
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(f"{len(generator)} generators are not one for each of {len(labels)} images")
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if self.config.guidance_range is not None:
            lowest, highest = self.config.guidance_range
            if not lowest <= scale <= highest:
                raise ValueError(
                    f"guidance_scale={scale:g} must lie in [{lowest:g}, {highest:g}], which it has learned"
                )
        elif scale != 1 and not self.config.guidable:
            raise ValueError("this model was never trained without labels: pass guidance_scale=1")
        shape = (len(labels), self.vae.config.latent_channels, *[self.network.config.sample_size] * 2)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=labels.device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents are {list(latents.shape)}, and should be {list(shape)}")
        self._set_timesteps(steps)
        x = latents.to(labels.device, torch.float32) * self._start()
        draws = "generator" in inspect.signature(self.scheduler.step).parameters
        for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            scaled = (
                self.scheduler.scale_model_input(x, timestep) if hasattr(self.scheduler, "scale_model_input") else x
            )
            t, gain = self._time(i, timestep)
            with self._telling(i, t, scale):
                output = gain * self._guided(scaled, t, labels, scale)
            more = {"generator": generator} if draws else {}
            x = self.scheduler.step(output, timestep, x, return_dict=False, **more)[0]
        images = x if output_type == "latent" else self._decoded(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As every pipeline does, and the code that it carries: first, since push_to_hub=True uploads at the end."""
        files = {Path("pipeline.py"): Path(__file__)}
        files |= {Path(name, (file := _file_of(part)).name): file for name, part in self._carried().items()}
        for name, file in files.items():
            target = Path(save_directory, name)
            if target.resolve() != file.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        self._name_carried()
        super().save_pretrained(save_directory, *args, **kwargs)

    def _name_carried(self) -> None:
        """Say in model_index.json that code lies in parts' folders; diffusers would name the module that it made."""
        for name, part in self._carried().items():
            self.register_to_config(**{name: (_file_of(part).stem, type(part).__name__)})

    def _carried(self) -> dict[str, Any]:
        """The parts whose classes are none of diffusers'."""
        parts = {"scheduler": self.scheduler, "further": self.further}
        return {k: part for k, part in parts.items() if part is not None and hasattr(part, "CARRIED")}

    def _set_timesteps(self, steps: int) -> None:
        if hasattr(self.scheduler, "alphas_cumprod"):  # in float32 the errors of a thousand factors add up
            self.scheduler.alphas_cumprod = torch.cumprod(1 - self.scheduler.betas.double(), 0)
        if self.config.clock == "sigma" and "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=self._execution_device)
        else:
            self.scheduler.set_timesteps(steps, device=self._execution_device)

    def _start(self) -> float:
        """The standard deviation of x_t at the start: that of latents and noise together, where sigma grows."""
        if getattr(self.scheduler, "init_noise_sigma", 1.0) == 1.0:
            return 1.0
        return math.hypot(float(self.scheduler.sigmas[0]), 1.0)

    def _time(self, i: int, timestep: Tensor) -> tuple[float, float]:
        """The network's time at the i-th evaluation, and what its output is multiplied with for the scheduler."""
        if self.config.clock == "timestep":
            return (float(timestep) + 1) / self.scheduler.config.num_train_timesteps, 1.0
        sigma, shift = float(self.scheduler.sigmas[i]), self.config.path_shift
        if self.config.clock == "angle":
            return math.atan(sigma) * 2 / math.pi, 1.0
        t = sigma / (shift - (shift - 1) * sigma)
        return t, (1 + (shift - 1) * t) ** 2 / shift  # dx/dt to dx/dsigma

    @contextmanager
    def _telling(self, i: int, t: float, scale: float) -> Iterator[None]:
        """Within it, the network is told at its i-th evaluation what it is beside its time and the labels."""
        if self.further is None:
            yield
            return
        target = self.scheduler.target(i) if hasattr(self.scheduler, "target") else t
        numbers = torch.tensor([t - target, scale], device=self._execution_device)
        told = self.further(numbers[:1], numbers[1:])
        embeddings = [self.unet.time_embedding] if self.transformer is None else _embeddings(self.transformer)
        add = lambda _, __, embedding: embedding + told.to(embedding)  # noqa: E731
        hooks = [module.register_forward_hook(add) for module in embeddings]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _guided(self, x: Tensor, t: float, labels: Tensor, scale: float) -> Tensor:
        """The network's output, [n, C, h, w] float32: nothing + scale (labelled - nothing), over all channels."""
        if scale == 1 or self.config.guidance_range is not None:
            return self._net(x, t, labels)
        nothing = torch.full_like(labels, len(self.class_names))
        labelled, unlabelled = self._net(torch.cat([x, x]), t, torch.cat([labels, nothing])).chunk(2)
        return torch.lerp(unlabelled, labelled, scale)

    def _net(self, x: Tensor, t: float, labels: Tensor) -> Tensor:
        dtype = self.network.dtype
        timestep = TIMESTEPS * torch.full((len(x),), t - self.config.time_offset / TIMESTEPS, device=x.device)
        if getattr(self.network.config, "encoder_hid_dim", None):  # the label is the context's only token
            token = torch.nn.functional.one_hot(labels, self.unet.config.encoder_hid_dim).to(dtype)[:, None]
            return self.unet(x.to(dtype), timestep, encoder_hidden_states=token).sample.float()
        return self.network(x.to(dtype), timestep, class_labels=labels).sample.float()

    def _decoded(self, latents: Tensor, output_type: str) -> Any:
        """Images of normalised latents."""
        mean, std = (
            torch.tensor(values, device=latents.device)[:, None, None]
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        z = (latents * std + mean) / self.vae.config.scaling_factor
        pixels = (self.vae.decode(z.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pixels
        array = pixels.cpu().permute(0, 2, 3, 1).numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)


def _embeddings(transformer: Any) -> list[Any]:
    """A DiT's embeddings of time and label, of which each block has one."""
    return [block.norm1.emb for block in transformer.transformer_blocks]


def _file_of(part: Any) -> Path:
    return Path(inspect.getfile(type(part)))
