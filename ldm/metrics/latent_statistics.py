"""Statistics of the latents, channel by channel, from posterior moments: exact means over the posterior's noise."""

import torch
from torch import Tensor
from torchmetrics import Metric


class LatentStatistics(Metric):
    """update(moments [B, 2C, h, w]); compute() -> mean, std, excess kurtosis and KL in nats an image, [C] each.

    For z = m + s eps: E z = E m, E z^2 = E m^2 + s^2, E z^3 = E m^3 + 3 m s^2, E z^4 = E m^4 + 6 m^2 s^2 + 3 s^4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.add_state("powers", torch.zeros(4, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("nats", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")  # elements, images
        self.set_dtype(torch.float64)
        self.powers: Tensor
        self.nats: Tensor
        self.counts: Tensor

    def update(self, moments: Tensor) -> None:
        m, s = moments.double().chunk(2, dim=1)
        v = s.square()
        powers = (m, m**2 + v, m**3 + 3 * m * v, m**4 + 6 * m**2 * v + 3 * v**2)
        self.powers += torch.stack([power.sum((0, 2, 3)) for power in powers])
        self.nats += 0.5 * (m**2 + v - 1 - v.log()).sum((0, 2, 3))
        self.counts += torch.tensor([m[:, 0].numel(), len(m)], dtype=torch.float64, device=m.device)

    def compute(self) -> dict[str, Tensor]:
        elements, images = self.counts
        first, second, third, fourth = self.powers / elements
        variance = second - first**2
        centered = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return {
            "mean": first,
            "std": variance.sqrt(),
            "kurtosis": centered / variance**2 - 3,
            "kl": self.nats / images,
        }
