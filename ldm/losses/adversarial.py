"""The adversarial losses of autoencoder and discriminator, the discriminator's penalties, and the adaptive weight."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.runtime.ranks import mean_over_ranks

CLAMP = 1e4  # the largest adaptive weight, as in LDM


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """(E relu(1 - D(x)) + E relu(1 + D(x_hat))) / 2 (Lim & Ye 2017): 1 where D is 0 everywhere."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """(E softplus(-D(x)) + E softplus(D(x_hat))) / 2 (Goodfellow et al. 2014): log 2 where D is 0 everywhere."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def generator_loss(fake: Tensor) -> Tensor:
    """-E D(x_hat): the autoencoder's loss beside either loss of the discriminator, as in LDM."""
    return -fake.mean()


def r1_penalty(discriminator: nn.Module, x: Tensor) -> Tensor:
    """E |d sum D(x) / dx|^2 over real images (Mescheder et al. 2018, eq. 9, without its gamma / 2), in float32."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def lecam_penalty(real: Tensor, fake: Tensor, anchor_real: Tensor, anchor_fake: Tensor) -> Tensor:
    """E relu(D(x) - a_fake)^2 + E relu(a_real - D(x_hat))^2; the anchors a are running means of the logits
    (Tseng et al. 2021, eq. 5)."""
    return F.relu(real - anchor_fake).square().mean() + F.relu(anchor_real - fake).square().mean()


def adaptive_weight(nll_grad: Tensor, g_grad: Tensor, most: float = CLAMP) -> Tensor:
    """clamp(|d nll / dW| / (|d g / dW| + 1e-4), 0, most) (Esser et al. 2021, eq. 7, with taming's constants)."""
    return (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0.0, most)


class BalancedBackward:
    """Gradients of the sum of nll + factor w g + penalty over a batch's micro-batches.

    There is one adaptive weight w for a batch of all ranks. It comes from the gradients of nll and of g at the last
    layer's weight, W, which are summed over micro-batches and averaged over ranks before their norms are taken. So w is
    known with the last micro-batch only; until then the gradients of g are kept apart from those of nll.

    Each term is differentiated once, down to x_hat. From there on gradients are linear in those at x_hat, so that
    measuring w costs two products at W, not a second backward pass through LPIPS and the discriminator.

    Args:
        last_layer: W, of the layer that makes x_hat
        parameters: those of the autoencoder that are trained
        also:       parameters that nll depends on other than through x_hat: its log-variance
        backward:   accumulates a loss's gradients in .grad, multiplied by `scale`
        scale:      of fp16's scaler; 1 without one
    """

    def __init__(
        self,
        *,
        last_layer: Tensor,
        parameters: Sequence[Tensor],
        also: Sequence[Tensor],
        backward: Callable[[Tensor], None],
        scale: float,
    ) -> None:
        self.last_layer, self.parameters, self.also = last_layer, list(parameters), list(also)
        self.backward, self.scale = backward, scale
        self.at_w = torch.zeros(2, *last_layer.shape, dtype=last_layer.dtype, device=last_layer.device)  # of nll, g
        self.waiting: list[Tensor] | None = None  # d g / d parameters of the micro-batches before the last, scaled

    def add(self, nll: Tensor, g: Tensor, penalty: Tensor, x_hat: Tensor) -> None:
        """Take in a micro-batch that is not the last."""
        nll_slope, g_slope, direct = self._slopes(nll, g, x_hat)
        found = torch.autograd.grad(
            x_hat, self.parameters, self.scale * g_slope, retain_graph=True, allow_unused=True
        )  # a codebook's vectors reach x_hat without a gradient
        gradients = [torch.zeros_like(p) if d is None else d for p, d in zip(self.parameters, found, strict=True)]
        if self.waiting is None:
            self.waiting = gradients
        else:
            torch._foreach_add_(self.waiting, gradients)
        self.backward((x_hat * nll_slope).sum() + direct + penalty)

    def finish(self, nll: Tensor, g: Tensor, penalty: Tensor, x_hat: Tensor, factor: float) -> Tensor:
        """Take in the last micro-batch, with which w is known; returns w. `factor` is g's weight besides."""
        nll_slope, g_slope, direct = self._slopes(nll, g, x_hat)
        weight = adaptive_weight(*mean_over_ranks(self.at_w))
        self.backward((x_hat * (nll_slope + factor * weight * g_slope)).sum() + direct + penalty)
        if self.waiting is not None:
            for parameter, gradient in zip(self.parameters, self.waiting, strict=True):
                assert parameter.grad is not None
                parameter.grad += factor * weight * gradient
        return weight

    def _slopes(self, nll: Tensor, g: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d nll / d x_hat and d g / d x_hat, [B, 3, H, W], and a scalar with nll's gradient on `also`."""
        # in half precision the slopes of a mean over pixels would vanish without fp16's scale, as gradients would
        nll_slope, *also_slopes = (d / self.scale for d in torch.autograd.grad(self.scale * nll, [x_hat, *self.also]))
        g_slope = torch.autograd.grad(self.scale * g, x_hat)[0] / self.scale
        for i, slope in enumerate((nll_slope, g_slope)):
            self.at_w[i] += torch.autograd.grad(x_hat, self.last_layer, slope, retain_graph=True)[0]
        direct = sum((p * slope for p, slope in zip(self.also, also_slopes, strict=True)), nll.new_zeros(()))
        return nll_slope, g_slope, direct
