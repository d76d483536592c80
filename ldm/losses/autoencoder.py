"""Stage 1's two losses, assembled: the generator's and the discriminator's."""

from torch import Tensor, nn

from ldm.latents import DiagonalGaussian
from ldm.losses.adversarial import balance, hinge_discriminator, hinge_generator
from ldm.losses.reconstruction import PerceptualLoss, l1

Terms = dict[str, Tensor]  # scalars to log, detached


class AutoencoderLoss:
    """L1 + w LPIPS + k KL + d hinge: Rombach et al. 2022, appendix G, in means where LDM sums over 3HW elements.

    All weights mean what they mean in LDM: its objective is this one times 3HW (with its unlearned logvar of 0).

    Args:
        perceptual_weight: w, of LPIPS (one number an image).
        perceptual_pretrained: true, false or a path: see `PerceptualLoss`.
        kl_weight: k, of the KL divergence summed over the latent and divided by the image's number of elements.
        disc_weight: d = disc_weight x the adaptive weight.
        disc_start: batches before the discriminator starts to train and to count.
    """

    def __init__(
        self,
        *,
        perceptual_weight: float,
        perceptual_pretrained: bool | str,
        kl_weight: float,
        disc_weight: float,
        disc_start: int,
    ) -> None:
        self.perceptual_weight, self.kl_weight, self.disc_weight = perceptual_weight, kl_weight, disc_weight
        self.disc_start = disc_start
        self.perceptual = PerceptualLoss(pretrained=perceptual_pretrained)

    def is_adversarial(self, batches_seen: int) -> bool:
        return self.disc_weight > 0 and batches_seen >= self.disc_start

    def reconstruction(self, x: Tensor, x_hat: Tensor, posterior: DiagonalGaussian) -> tuple[Tensor, Tensor, Terms]:
        """(nll, regularisation, terms): the parts of the generator's loss that need no discriminator."""
        absolute, perceptual = l1(x, x_hat).mean(), self.perceptual(x, x_hat).mean()
        kl = posterior.kl().mean()
        terms = {"l1": absolute.detach(), "lpips": perceptual.detach(), "kl": kl.detach()}
        return absolute + self.perceptual_weight * perceptual, self.kl_weight * kl / x[0].numel(), terms

    def generator(
        self,
        x: Tensor,
        x_hat: Tensor,
        posterior: DiagonalGaussian,
        discriminator: nn.Module,
        last_layer: Tensor,
        batches_seen: int,
    ) -> tuple[Tensor, Terms]:
        """The autoencoder's loss."""
        nll, regularisation, terms = self.reconstruction(x, x_hat, posterior)
        if self.is_adversarial(batches_seen):
            g = hinge_generator(discriminator(x_hat))
            nll, weight = balance(nll, g, x_hat, last_layer, self.disc_weight)
            terms |= {"g": g.detach(), "disc_weight": weight}
        loss = nll + regularisation
        return loss, terms | {"loss": loss.detach()}

    def discriminator(self, x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Terms]:
        """The discriminator's loss on real and reconstructed images, the latter detached from the autoencoder."""
        real, fake = discriminator(x), discriminator(x_hat.detach())
        loss = hinge_discriminator(real, fake)
        return loss, {
            "disc_loss": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
