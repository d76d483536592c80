"""Stage 1: the autoencoder against its discriminator."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ldm.images import to_image, to_x
from ldm.losses.autoencoder import AutoencoderLoss
from ldm.metrics.reconstruction import ReconstructionMetrics
from ldm.models.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.training.progress import ProgressModule

MakeOptimizer = Callable[[Iterable[Parameter]], Optimizer]


class AutoencoderModule(ProgressModule):
    """Two named steps a batch; the discriminator's reuses the generator's reconstruction, detached."""

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        discriminator: PatchDiscriminator,
        loss: AutoencoderLoss,
        optimizer: MakeOptimizer,
        disc_optimizer: MakeOptimizer,
        **progress: Any,
    ) -> None:
        super().__init__(**progress)
        self.automatic_optimization = False
        self.autoencoder, self.discriminator, self.loss = autoencoder, discriminator, loss
        self.make_optimizers = (optimizer, disc_optimizer)
        self.val_metrics = ReconstructionMetrics()

    def configure_optimizers(self) -> list[Optimizer]:
        make, make_disc = self.make_optimizers
        return [make(self.autoencoder.parameters()), make_disc(self.discriminator.parameters())]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x = to_x(batch[0])  # [B, 3, H, W]
        x_hat = self.generator_step(x)
        if self.loss.is_adversarial(self.batches_seen):
            self.discriminator_step(x, x_hat)

    def generator_step(self, x: Tensor) -> Tensor:
        """One step of the autoencoder, the discriminator frozen; returns the reconstruction."""
        optimizer, _ = self.optimizers()  # type: ignore[attr-defined]
        self.toggle_optimizer(optimizer)
        x_hat, posterior = self.autoencoder(x)
        last_layer = self.autoencoder.last_layer
        loss, terms = self.loss.generator(x, x_hat, posterior, self.discriminator, last_layer, self.batches_seen)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log_terms("train", terms)
        return x_hat.detach()

    def discriminator_step(self, x: Tensor, x_hat: Tensor) -> None:
        """One step of the discriminator, the autoencoder frozen."""
        _, optimizer = self.optimizers()  # type: ignore[attr-defined]
        self.toggle_optimizer(optimizer)
        loss, terms = self.loss.discriminator(x, x_hat, self.discriminator)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log_terms("train", terms)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Reconstruct from the posterior mean; returns the reconstruction, uint8 [B, 3, H, W], for the grid."""
        image = batch[0]
        x = to_x(image)
        posterior = self.autoencoder.encode(x)
        x_hat = self.autoencoder.decode(posterior.mean)
        nll, regularisation, terms = self.loss.reconstruction(x, x_hat, posterior)
        self.log_terms("val", terms | {"loss": nll + regularisation})
        self.val_metrics.update_images(to_image(x_hat), image)
        return to_image(x_hat)

    def on_validation_epoch_end(self) -> None:
        if not self.val_metrics["ssim"].update_called:
            raise ValueError("no validation image could be decoded: give more, or mend them")
        self.log_terms("val", self.val_metrics.compute())
        self.val_metrics.reset()
