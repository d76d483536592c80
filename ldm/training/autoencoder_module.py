"""Stage 1: the autoencoder against its discriminator."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ldm.images import to_image, to_x
from ldm.losses.adversarial import CLAMP, BalancedBackward
from ldm.losses.alignment import LatentAlignment
from ldm.losses.autoencoder_loss import AutoencoderLoss, Terms
from ldm.models.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.training.gradients import StepGuard, without_sync
from ldm.training.health import Health
from ldm.training.lightning_internals import LightningOptimizer, loss_scaler
from ldm.training.progress import ProgressModule
from ldm.training.speed import forward_flops

MakeOptimizer = Callable[[Iterable[Parameter]], Optimizer]
Pair = tuple[Tensor, Tensor]  # an image and its reconstruction, detached, [B, 3, H, W] each


class AutoencoderModule(ProgressModule):
    """Two named steps a batch, each over all of its micro-batches.

    The discriminator is not averaged: what it says in a validation is what it says at that moment. Nor is what projects
    latents to features that they are aligned with.

    Args:
        accumulate: micro-batches that a batch is divided into. The result is that of the undivided batch, except for
            discriminator.norm=batch, whose statistics are a micro-batch's.
        trained: all, or the decoder alone (with post_quant_conv), for published encoders that must stay as they are.
        guard, disc_guard: between each player's gradients and its step.
        alignment: of the latents with an encoder's features; None: there is none. Its weight is each micro-batch's own.
    """

    not_averaged = ("discriminator", "alignment")
    rollbacks_key = "health.rollbacks"

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        discriminator: PatchDiscriminator,
        loss: AutoencoderLoss,
        optimizer: MakeOptimizer,
        disc_optimizer: MakeOptimizer,
        accumulate: int,
        trained: Literal["all", "decoder"],
        guard: StepGuard,
        disc_guard: StepGuard,
        health: Health,
        alignment: LatentAlignment | None = None,
        **progress: Any,
    ) -> None:
        super().__init__(**progress)
        self.automatic_optimization = False
        self.autoencoder, self.discriminator, self.loss = autoencoder, discriminator, loss
        self.make_optimizers = (optimizer, disc_optimizer)
        self.accumulate, self.alignment = accumulate, alignment
        self.guard, self.disc_guard, self.health = guard, disc_guard, health
        self.max_rollbacks = health.rollbacks
        if trained == "decoder":
            for part in (autoencoder.encoder, autoencoder.quant_conv, autoencoder.encoder_shortcut):
                if part is not None:
                    part.requires_grad_(False)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.rolled_back:
            self.health.forget()

    def configure_optimizers(self) -> list[Optimizer]:
        make, make_disc = self.make_optimizers
        own = [*self.autoencoder.parameters(), self.loss.logvar]
        own += [] if self.alignment is None else [*self.alignment.parameters()]
        players = (own, [*self.discriminator.parameters()])
        trained = [[p for p in player if p.requires_grad] for player in players]
        return self.with_rates([make(trained[0]), make_disc(trained[1])])

    def rate_factors(self) -> dict[str, float]:
        factors = super().rate_factors()
        return factors | {"disc_lr": self.health.disc_lr_factor**self.rollbacks * factors["disc_lr"]}

    def batches_of(self, rate: str, batches: int) -> int:
        return max(0, batches - self.loss.disc_start) if rate == "disc_lr" else batches

    def flops_per_image(self) -> float:
        """A backward pass costs two forward ones, one if only its input's gradient is wanted: 3 passes of the
        autoencoder, 3 of LPIPS' VGG16 (two images, one gradient), 8 of the discriminator (2 for the autoencoder's step,
        6 for its own); one more of the autoencoder if that step draws afresh. The adaptive weight's are left out."""
        side = self.card["preprocessing"]["resolution"]
        image, small = torch.empty(1, 3, side, side), side // self.autoencoder.downsample_factor
        latent = torch.empty(1, self.card["autoencoder"]["latent_channels"], small, small)
        autoencoder = forward_flops(self.autoencoder.encoder, image) + forward_flops(self.autoencoder.decoder, latent)
        judged = 8 * forward_flops(self.discriminator, image) if self.loss.disc_weight > 0 else 0.0
        vgg16 = self.loss.perceptual.net.net
        perceptual = 3 * forward_flops(vgg16, image) if self.loss.perceptual_weight > 0 else 0.0
        fresh = autoencoder if judged and self.loss.fresh else 0.0
        return 3 * autoencoder + perceptual + judged + fresh

    @property
    def disc_batches(self) -> int:
        """Batches since the discriminator's start."""
        return self.batches_of("disc_lr", self.batches_seen)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        micro = to_x(batch[0]).chunk(self.accumulate)  # [B / accumulate, 3, H, W] each
        optimizer, disc_optimizer = self.optimizers()  # type: ignore[attr-defined]
        with without_sync(self.trainer.model):
            with self.toggled_optimizer(optimizer):  # the discriminator is frozen
                pairs, terms = self.generator_step(micro, optimizer)
            if self.loss.disc_trains(self.batches_seen):
                with self.toggled_optimizer(disc_optimizer):
                    terms |= self.discriminator_step(micro, pairs, disc_optimizer)
        self.log_terms("train", terms | self.health.watch(terms, self.rollbacks))

    def generator_step(self, micro: tuple[Tensor, ...], optimizer: LightningOptimizer) -> tuple[list[Pair], Terms]:
        """One step of the autoencoder."""
        optimizer.zero_grad()
        factor, logvar = self.loss.disc_factor(self.batches_seen), self.loss.logvar
        backward = BalancedBackward(
            last_layer=self.autoencoder.last_layer,
            parameters=[p for p in self.autoencoder.parameters() if p.requires_grad],
            also=[logvar] if logvar.requires_grad else [],
            backward=self.manual_backward,
            scale=self.loss_scale,
        )
        pairs, terms, images = [], [], sum(map(len, micro))
        for i, x in enumerate(micro):
            target, x_hat, z, nll, penalty, logged = self.loss.reconstruct(self.autoencoder, x)
            if self.alignment is not None:
                term, more = self.alignment(to_image(x), z)
                penalty = penalty + self.alignment.balanced(nll, term, self.autoencoder.encoder.conv_out.weight)
                logged |= more
            share = len(x) / images  # of the batch's mean
            if factor == 0:
                self.manual_backward(share * (nll + penalty))
            else:
                g = self.loss.adversarial(self.discriminator, x_hat)
                logged["g"] = g.detach()
                if i < len(micro) - 1:
                    backward.add(share * nll, share * g, share * penalty, x_hat)
                else:
                    weight = backward.finish(share * nll, share * g, share * penalty, x_hat, factor)
            pairs.append((target.detach(), x_hat.detach()))
            terms.append(logged)
        merged = mean_terms(terms, micro)
        if factor > 0:
            merged |= {"disc_weight": weight, "disc_weight_clamped": (weight >= CLAMP).float()}
        if self.loss.disc_weight > 0:
            merged["disc_factor"] = torch.tensor(factor)
        return pairs, merged | self.guarded_step(optimizer, self.guard)

    def discriminator_step(self, micro: tuple[Tensor, ...], pairs: list[Pair], optimizer: LightningOptimizer) -> Terms:
        """One step of the discriminator, on the generator step's pairs or on fresh ones."""
        optimizer.zero_grad()
        terms = []
        for x, pair in zip(micro, pairs, strict=True):
            target, x_hat = pair
            if self.loss.fresh:
                with torch.no_grad():
                    drawn = self.loss.draw(self.autoencoder, x)
                    target, x_hat = drawn.target, drawn.x_hat
            loss, logged = self.loss.discriminate(target, x_hat, self.discriminator, self.disc_batches)
            self.manual_backward(loss * (len(x) / sum(map(len, micro))))
            terms.append(logged)
        merged = mean_terms(terms, micro)
        self.loss.follow(merged["logits_real"], merged["logits_fake"], self.disc_batches)
        return merged | {f"disc_{k}": v for k, v in self.guarded_step(optimizer, self.disc_guard).items()}

    def guarded_step(self, optimizer: LightningOptimizer, guard: StepGuard) -> Terms:
        """Step, unless the guard refuses; fp16's scaler must see infinities itself, to lower its scale."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        allowed, terms = guard.allows(parameters, self.loss_scale)
        if allowed or (loss_scaler(self.trainer) is not None and not math.isfinite(terms["grad_norm"])):
            optimizer.step()
        return {name: torch.tensor(value) for name, value in terms.items()}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Reconstruct from the posterior mean; returns what the callbacks measure and draw."""
        x = to_x(batch[0])
        posterior = self.autoencoder.encode(x)
        quantized = None if self.autoencoder.quantize is None else self.autoencoder.quantize(posterior.mean)
        x_hat = self.autoencoder.decode_quantized(posterior.mean if quantized is None else quantized.z)
        with torch.autocast(x.device.type, enabled=False):  # what is measured is measured in float32
            nll, terms = self.loss.nll(x, x_hat)
            penalty, kl = self.loss.penalty(x, posterior, quantized)
        self.log_terms("val", terms | kl | {"loss": nll + penalty}, images=len(x))
        codes = {} if quantized is None else {"codes": quantized.codes}
        return {"image_hat": to_image(x_hat), "moments": posterior.moments(), **codes}


def mean_terms(terms: list[Terms], micro: tuple[Tensor, ...]) -> Terms:
    """The mean of each term over the images of micro-batches."""
    shares = [len(x) / sum(map(len, micro)) for x in micro]
    return {
        name: torch.stack([share * each[name] for share, each in zip(shares, terms, strict=True)]).sum()
        for name in terms[0]
    }
