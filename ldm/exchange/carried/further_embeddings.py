"""What a student's network is told beside time and label. It needs diffusers and torch, and no ldm."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

SCALE = 1000.0  # a number of [0, 1] is embedded as a timestep


class FurtherEmbeddings(ModelMixin, ConfigMixin):
    """The embedding that is added to the time's.

    Args:
        channels:       of the numbers' sinusoids
        embedded:       channels of the network's embedding; null: four times as many
        second_time:    whether it holds one of t - s, of the jump from t to s
        takes_guidance: whether it holds one of the scale of guidance
    """

    CARRIED = True  # this file goes with the pipeline

    @register_to_config
    def __init__(
        self, channels: int, second_time: bool = False, takes_guidance: bool = False, embedded: int | None = None
    ) -> None:
        super().__init__()
        embedded = embedded or 4 * channels
        self.second_embedding = TimestepEmbedding(channels, embedded) if second_time else None
        self.guidance_embedding = TimestepEmbedding(channels, embedded) if takes_guidance else None

    def forward(self, apart: Tensor, scale: Tensor) -> Tensor:
        """[B, embedded], of t - s [B] and of the scale of guidance [B], in [1, 11]."""
        embeddings = [
            embed(get_timestep_embedding(SCALE * number, self.config.channels, True, 0.0).to(self.dtype))
            for number, embed in ((apart, self.second_embedding), (0.1 * (scale - 1), self.guidance_embedding))
            if embed is not None
        ]
        return torch.stack(embeddings).sum(0)
