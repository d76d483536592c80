"""Stage 1's objective: the losses of the autoencoder, which is the GAN's generator, and of the discriminator."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ldm.latents import DiagonalGaussian, at_least_float32
from ldm.losses.adversarial import DISCRIMINATOR_LOSSES, generator_loss, lecam_penalty, r1_penalty
from ldm.losses.augment import Augment
from ldm.losses.perceptual import PerceptualLoss, l1
from ldm.losses.regularizer import NoRegularizer
from ldm.models.autoencoder import Autoencoder
from ldm.models.quantizer import Quantized
from ldm.runtime.ranges import Count, Natural, NonNegative, checked
from ldm.runtime.ranks import mean_over_ranks

Terms = dict[str, Tensor]  # scalars to log, detached
ANCHOR_DECAY = 0.99  # of LeCam's running means, as in its authors' code


class Draw(NamedTuple):
    """Images on their way through the autoencoder."""

    posterior: DiagonalGaussian  # [B, C, h, w]
    z: Tensor  # [B, C, h, w], as it was drawn
    quantized: Quantized | None  # z as codes
    target: Tensor  # [B, 3, H', W'], what x_hat must become
    x_hat: Tensor  # [B, 3, H', W']


class GeneratorPass(NamedTuple):
    """One pass of images through the autoencoder, and the parts of its loss that need no discriminator."""

    target: Tensor  # [B, 3, H', W'], what x_hat must become: x, or x transformed together with its latent
    x_hat: Tensor  # [B, 3, H', W']
    z: Tensor  # [B, C, h, w], the latent as it was drawn
    nll: Tensor  # scalar
    penalty: Tensor  # scalar, in the units of nll
    terms: Terms


class AutoencoderLoss(nn.Module):
    """NLL + regulariser + adversarial term (Rombach et al. 2022, appendix G):

        error = |x - x_hat| + perceptual_weight LPIPS                of an element; LPIPS is one number an image
        nll = error / exp(logvar) + logvar

    Args:
        regularizer:           of the latent space
        perceptual_weight:     of LPIPS; with 0 it is not computed in training
        perceptual_pretrained: VGG16's weights: True, False or a path, see `PerceptualLoss`
        reduction:             "sum" adds nll over an image's 3HW elements, as LDM does; "mean" divides all by 3HW, so
                               that clipping thresholds do not depend on the resolution. All weights mean the same in
                               both
        learn_logvar:          whether the scalar logvar is trained, with the autoencoder; else it stays 0
        disc_loss:             the discriminator's, hinge or vanilla; the autoencoder's is -E D(x_hat) for both
        disc_weight:           of the adversarial term, multiplied by the adaptive weight; 0 for no discriminator
        disc_start:            batches before the discriminator trains
        disc_warmup:           batches for which it then trains before the autoencoder feels it
        disc_ramp:             batches over which its weight then grows linearly to disc_weight
        disc_forward:          what the discriminator trains on: "reuse" takes the reconstruction of the autoencoder's
                               step; "fresh" makes another, with the updated autoencoder and a new posterior sample, as
                               LDM does, at the cost of a forward pass
        disc_augment:          any of color, translation and cutout (DiffAugment)
        r1:                    gamma of the R1 penalty
        r1_every:              batches from one R1 penalty to the next, each of r1_every times its weight
        lecam:                 weight of the LeCam regulariser
    """

    @checked
    def __init__(
        self,
        *,
        regularizer: NoRegularizer,
        perceptual_weight: NonNegative,
        perceptual_pretrained: bool | str,
        reduction: Literal["mean", "sum"],
        learn_logvar: bool,
        disc_loss: Literal["hinge", "vanilla"],
        disc_weight: NonNegative,
        disc_start: Natural,
        disc_warmup: Natural,
        disc_ramp: Natural,
        disc_forward: Literal["reuse", "fresh"],
        disc_augment: list[str],
        r1: NonNegative,
        r1_every: Count,
        lecam: NonNegative,
    ) -> None:
        super().__init__()
        self.regularizer, self.perceptual_weight, self.reduction = regularizer, perceptual_weight, reduction
        self.perceptual = PerceptualLoss(pretrained=perceptual_pretrained)
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=learn_logvar)
        self.disc_loss, self.disc_weight = DISCRIMINATOR_LOSSES[disc_loss], disc_weight
        self.disc_start, self.disc_warmup, self.disc_ramp = disc_start, disc_warmup, disc_ramp
        self.fresh, self.augment = disc_forward == "fresh", Augment(disc_augment)
        self.r1, self.r1_every, self.lecam = r1, r1_every, lecam
        self.register_buffer("anchors", torch.zeros(2))  # running means of the logits: real, fake
        self.anchors: Tensor

    def disc_trains(self, batches_seen: int) -> bool:
        """Whether the discriminator takes a step in this batch."""
        return self.disc_weight > 0 and batches_seen >= self.disc_start

    def disc_factor(self, batches_seen: int) -> float:
        """The adversarial term's weight in this batch: 0 until the warm-up ends, then rising to disc_weight."""
        on_the_ramp = batches_seen - self.disc_start - self.disc_warmup + 1  # batches, this one included
        return self.disc_weight * max(0.0, min(1.0, on_the_ramp / max(1, self.disc_ramp)))

    # of the autoencoder

    def _per_image(self, x: Tensor) -> int:
        return x[0].numel() if self.reduction == "sum" else 1

    def nll(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Terms]:
        """The negative log-likelihood of x given x_hat, both [B, 3, H, W]: a scalar, the batch's mean; and what to
        log."""
        error = absolute = l1(x, x_hat)  # [B]
        terms = {"l1": absolute.detach().mean()}
        if (
            self.perceptual_weight > 0 or not self.training
        ):  # where it counts for nothing, it is measured in validations
            perceptual = self.perceptual(x, x_hat)  # [B]
            error = absolute + self.perceptual_weight * perceptual
            terms["lpips"] = perceptual.detach().mean()
        return self._per_image(x) * (error / self.logvar.exp() + self.logvar).mean(), terms

    def penalty(
        self, x: Tensor, posterior: DiagonalGaussian, quantized: Quantized | None = None
    ) -> tuple[Tensor, Terms]:
        """The regularizer's penalty: the mean over the batch, a scalar in the units of `nll`, and what to log."""
        each = self.regularizer.penalty(posterior, x)
        each = each if quantized is None else each + self.regularizer.code_penalty(quantized)
        penalty = self._per_image(x) * each.mean()
        terms = {"kl": posterior.kl().detach().flatten(1).sum(1).mean()} if self.regularizer.variational else {}
        return penalty, terms | ({} if quantized is None else {"code_distance": quantized.distance})

    def draw(self, autoencoder: Autoencoder, x: Tensor) -> Draw:
        """Encode x, draw a latent, quantise it or transform it as the regularizer wants, and decode it."""
        posterior = autoencoder.encode(x)
        z = posterior.sample() if self.regularizer.variational else posterior.mean
        quantized = None if autoencoder.quantize is None else autoencoder.quantize(z)
        target, transformed = self.regularizer.transform(x, z if quantized is None else quantized.z)
        return Draw(posterior, z, quantized, target, autoencoder.decode_quantized(transformed))

    def reconstruct(self, autoencoder: Autoencoder, x: Tensor) -> GeneratorPass:
        """Pass x [B, 3, H, W] through the autoencoder and compare what comes out with what should."""
        posterior, z, quantized, target, x_hat = self.draw(autoencoder, x)
        nll, terms = self.nll(target, x_hat)
        penalty, kl = self.penalty(x, posterior, quantized)
        learned = {"logvar": self.logvar.detach().clone()} if self.logvar.requires_grad else {}
        terms |= kl | learned | {"loss": (nll + penalty).detach()}
        return GeneratorPass(target, x_hat, z, nll, penalty, terms)

    def adversarial(self, discriminator: nn.Module, x_hat: Tensor) -> Tensor:
        """The autoencoder's adversarial term, before any weight: a scalar."""
        return generator_loss(at_least_float32(discriminator(self.augment(x_hat))))

    # of the discriminator

    def discriminate(self, x: Tensor, x_hat: Tensor, discriminator: nn.Module, batches: int) -> tuple[Tensor, Terms]:
        """The discriminator's loss on real images x and reconstructions x_hat, both [B, 3, H, W]: a scalar, and what to
        log. `batches` is the number since it started; no gradient reaches x_hat."""
        real = at_least_float32(discriminator(self.augment(x)))
        fake = at_least_float32(discriminator(self.augment(x_hat.detach())))
        loss = self.disc_loss(real, fake)
        logits_real, logits_fake = real.detach().mean(), fake.detach().mean()
        terms = {
            "disc_loss": loss.detach(),
            "logits_real": logits_real,
            "logits_fake": logits_fake,
            "logits_gap": logits_real - logits_fake,
            "disc_accuracy": 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()),
        }
        if self.lecam > 0:
            penalty = lecam_penalty(real, fake, *self.anchors)
            loss = loss + self.lecam * penalty
            terms["lecam"] = penalty.detach()
        if self.r1 > 0 and batches % self.r1_every == 0:
            penalty = r1_penalty(discriminator, x)
            loss = loss + self.r1_every * 0.5 * self.r1 * penalty
            terms["r1"] = penalty.detach()
        return loss, terms

    def follow(self, logits_real: Tensor, logits_fake: Tensor, batches: int) -> None:
        """Move LeCam's anchors toward the mean logits of a batch over all ranks; the first batch sets them."""
        decay = ANCHOR_DECAY if batches > 0 else 0.0
        logits = mean_over_ranks(torch.stack([logits_real, logits_fake]))
        if logits.isfinite().all():  # else one bad batch, whose step is skipped, would stay in the mean for ever
            self.anchors.lerp_(logits, 1 - decay)
