"""The networks of jobs/bench/bench_gpu.py: this project's, as conf/ has them, and diffusers' of the same shapes."""

from functools import partial
from typing import Any

import torch
from gpu_turns import Contender, Pair
from hydra.utils import instantiate
from torch import Tensor, nn

from ldm.images import to_x
from ldm.models.autoencoder import Autoencoder


def diffusers_unet(net: dict[str, Any], channels: int) -> Any:
    """LDM's U-Net in diffusers, which is told a class by a token of context."""
    from diffusers import UNet2DConditionModel  # here, so that without diffusers the other network is measured alone

    widths = [net["model_channels"] * m for m in net["channel_mult"]]
    attends = [2**i in net["attention_resolutions"] for i in range(len(widths))]
    return UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=net["num_res_blocks"],
        cross_attention_dim=net["context_dim"],
        attention_head_dim=tuple(w // net["head_channels"] for w in widths),  # in spite of its name, how many heads
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
    )


def unets(net: dict[str, Any], optimizer: dict[str, Any], latent_shape: tuple[int, ...], classes: int) -> Pair:
    """Training steps of stage 2's network, from x_t, t and a label (in diffusers, a token of context)."""
    channels, dim = latent_shape[0], net["context_dim"]
    made = instantiate(optimizer)
    return {
        "ldm": Contender(
            make=partial(instantiate, net | {"in_channels": channels, "num_classes": classes}, _convert_="all"),
            inputs=lambda n: (torch.randn(n, *latent_shape), torch.rand(n), torch.randint(classes, (n,))),
            forward=lambda model, x, t, y: model(x, t, y),
            optimizer=made,
        ),
        "diffusers": Contender(
            make=partial(diffusers_unet, net, channels),
            inputs=lambda n: (torch.randn(n, *latent_shape), 1000 * torch.rand(n), torch.randn(n, 1, dim)),
            forward=lambda model, x, t, context: model(x, t, context, return_dict=False)[0],
            optimizer=made,
        ),
    }


class LdmEncoding(nn.Module):
    """What `ldm cache-latents` computes of uint8 images: moments."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.model = Autoencoder(**shape)

    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode(to_x(image)).moments()


class DiffusersEncoding(nn.Module):
    """The same of diffusers' autoencoder."""

    def __init__(self, shape: dict[str, Any]) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        widths = [shape["channels"] * m for m in shape["channel_mult"]]
        self.model: Any = AutoencoderKL(
            block_out_channels=tuple(widths),
            layers_per_block=shape["num_res_blocks"],
            latent_channels=shape["latent_channels"],
            norm_num_groups=shape["norm_groups"],
            down_block_types=["DownEncoderBlock2D"] * len(widths),
            up_block_types=["UpDecoderBlock2D"] * len(widths),
        )

    def forward(self, image: Tensor) -> Tensor:
        posterior = self.model.encode(to_x(image)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)


def encoders(shape: dict[str, Any], side: int) -> Pair:
    """Encoding of uint8 images of so many pixels a side to moments, by autoencoders of this shape."""
    return {
        who: Contender(
            make=partial(network, shape),
            inputs=lambda n: (torch.randint(256, (n, 3, side, side), dtype=torch.uint8),),
            forward=lambda model, image: model(image),
        )
        for who, network in (("ldm", LdmEncoding), ("diffusers", DiffusersEncoding))
    }
