"""Watches the discriminator and the autoencoder for a collapse of either, by running means of what they log."""

import logging

import torch
from torch import Tensor, nn

from ldm.runtime.ranges import Count, Natural, NonNegative, Positive, checked
from ldm.runtime.ranks import mean_over_ranks
from ldm.training.gradients import DivergenceError

log = logging.getLogger(__name__)

WATCHED = ("l1", "logits_real", "logits_fake", "disc_accuracy", "disc_weight_clamped")


class Health(nn.Module):
    """Watches both networks once the discriminator trains.

    A collapse is logged once. If a rollback is left, it raises `DivergenceError` instead, and `fit` goes back to a
    checkpoint that is at least `window` batches older (`chance` batches, for a discriminator that judges no better than
    chance), with a smaller rate for the discriminator. Batches with terms that are not finite are left to `StepGuard`.

    Args:
        window         : batches over which the running means forget
        ruin           : collapse if the running L1 has grown to this many times its best
        logits         : collapse if a running mean logit is larger than this, in absolute value
        chance         : collapse if the discriminator is right no more often than chance, after this many batches
        rollbacks      : how many times a run may be rolled back; 0 = never
        disc_lr_factor : the discriminator's rate is multiplied by this for each rollback so far
    """

    @checked
    def __init__(
        self,
        *,
        window: Count,
        ruin: Positive,
        logits: Positive,
        chance: Count,
        rollbacks: Natural,
        disc_lr_factor: NonNegative,
    ) -> None:
        super().__init__()
        self.window, self.ruin, self.logits, self.chance = window, ruin, logits, chance
        self.rollbacks, self.disc_lr_factor = rollbacks, disc_lr_factor
        self.register_buffer("means", torch.zeros(len(WATCHED), dtype=torch.float64))
        self.register_buffer("best_l1", torch.tensor(float("inf"), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))  # batches, batches in which D trained
        self.means: Tensor
        self.best_l1: Tensor
        self.counts: Tensor
        self.said: set[str] = set()

    def watch(self, terms: dict[str, Tensor], rollbacks_so_far: int) -> dict[str, Tensor]:
        """Update the running means with a batch's terms, as this rank has them; returns what to log.

        Raises:
            DivergenceError: on a collapse, if a rollback is left.
        """
        judged = "logits_real" in terms
        now = torch.stack([torch.as_tensor(terms.get(k, 0.0), device=self.means.device).double() for k in WATCHED])
        now = mean_over_ranks(now)
        if not now.isfinite().all():
            return {}
        self.counts += torch.tensor([1, int(judged)], device=self.counts.device)
        ages = self.counts[[0, 1, 1, 1, 1]].clamp(min=1)
        pace = torch.maximum(1 / ages, torch.full_like(self.means, 1 / self.window))
        pace[1:] *= judged
        pace[4] *= "disc_weight_clamped" in terms  # not before the autoencoder feels the discriminator
        self.means.copy_(self.means.lerp(now, pace))
        if int(self.counts[0]) >= self.window:
            self.best_l1.copy_(torch.minimum(self.best_l1, self.means[0]))
        if not judged:
            return {}
        for name, what in self.complaints().items():
            if rollbacks_so_far < self.rollbacks:
                raise DivergenceError(what, self.chance if name == "chance" else self.window)
            if name not in self.said:
                self.said.add(name)
                log.warning("the adversarial game: %s", what)
        return {"disc_weight_clamped_share": self.means[4]}

    def forget(self) -> None:
        """Start the running means again after a rollback, which made them stale; the best L1 stays."""
        self.means.zero_()
        self.counts.zero_()
        self.said.clear()

    def complaints(self) -> dict[str, str]:
        """The collapses that the running means show at the moment: name -> description."""
        l1, real, fake, accuracy, _ = self.means.tolist()
        batches, judged = self.counts.tolist()
        complaints = {}
        if batches > self.window and l1 > self.ruin * float(self.best_l1):
            complaints["ruin"] = (
                f"collapse: the reconstruction's L1 is {l1:.3f}, {l1 / float(self.best_l1):.1f} x its best"
            )
        if max(abs(real), abs(fake)) > self.logits:
            complaints["logits"] = (
                f"collapse: the discriminator's logits run away, {real:.1f} on real, {fake:.1f} on fake"
            )
        if judged >= self.chance and accuracy < 0.52:
            complaints["chance"] = (
                f"collapse: after {judged} batches the discriminator judges {accuracy:.0%} of patches rightly, no "
                "better than chance: its rate is far too high, or too low"
            )
        self.said &= complaints.keys()  # a collapse that has passed may be logged again
        return complaints
