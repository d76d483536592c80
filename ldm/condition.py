"""What a network is told besides the state and the time: one value, which is dropped, indexed and moved as a whole."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """The third argument of every network, net(x_t, t, condition). Only the network looks inside.

    label:   class indices, long [B]; num_classes, the null class, says that the whole condition was dropped
    context: tokens to which a network attends, [B, L, D]; or their numbers, long [B, L], where it embeds them itself
    mask:    which of them are there, bool [B, L]; None: all
    concat:  what is put beside x_t, [B, C', h, w]
    s:       the second time of an average velocity, [B]
    w:       the scale of guidance that a student was taught, [B]
    """

    label: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None
    s: Tensor | None = None
    w: Tensor | None = None

    @classmethod
    def of(cls, given: "Condition | Tensor") -> "Condition":
        """A condition, or labels [B] alone as one."""
        return given if isinstance(given, Condition) else cls(given)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Every part that is there, changed."""
        return Condition(**{name: change(part) for name, part in self.parts().items()})

    def parts(self) -> dict[str, Tensor]:
        """Those that are there, by their names."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    def rows(self, index: Tensor | slice | Sequence[int]) -> "Condition":
        """Those of some samples."""
        return self.each(lambda part: part[index])

    def turn(self, indices: Iterable[int]) -> "Condition":
        """Those of samples that take the rows in turn."""
        return self.rows([index % len(self.label) for index in indices])

    def to(self, device: torch.device) -> "Condition":
        """On a device."""
        return self.each(lambda part: part.to(device, non_blocking=True))

    def beside(self, other: "Condition") -> "Condition":
        """The rows of two that have the same parts, one after the other."""
        return _joined(self, other, lambda ours, theirs: torch.cat([ours, theirs]))

    def dropped(self, where: Tensor, null: "Condition") -> "Condition":
        """With the one row `null` where `where`, bool [B], is true; the times and scales stay.

        Raises:
            ValueError: where null has not the same parts.
        """

        def chosen(part: Tensor, nothing: Tensor) -> Tensor:
            return torch.where(where.reshape(-1, *[1] * (part.dim() - 1)), nothing, part)

        said = self._replace(s=None, w=None)
        return _joined(said, null.to(self.label.device), chosen)._replace(s=self.s, w=self.w)

    def says_nothing(self, null: "Condition") -> Tensor:
        """Where a row is the null one, bool [B], times and scales apart."""
        same = self.label == null.label.to(self.label.device)
        for ours, nothing in ((self.concat, null.concat), (self.context, null.context), (self.mask, null.mask)):
            if ours is not None and nothing is not None:
                same = same & (ours == nothing.to(ours)).flatten(1).all(1)
        return same

    def unsaid(self, null: "Condition") -> "Condition":
        """All of it dropped."""
        return self.dropped(torch.ones_like(self.label, dtype=torch.bool), null)

    def refuse(self, network: str, takes: Sequence[str]) -> None:
        """ValueError if it has a part that a network does not take."""
        for name in self.parts():
            if name not in takes:
                raise ValueError(f"{network} takes no {name} in its condition: {_BUILT[name]}")


_BUILT = {  # what makes a network take a part
    "label": "leave it out",
    "context": "build it with net.context_dim",
    "mask": "build it with net.context_dim",
    "concat": "build it with net.concat_channels",
    "s": "build it with net.second_time=true",
    "w": "build it with net.takes_guidance=true",
}


def no_label(num_classes: int) -> Condition:
    """The null condition of labels alone, of one row."""
    return Condition(torch.tensor([num_classes]))


def labelled(labels: Tensor, null: Condition) -> Condition:
    """A condition of labels [B] and of nothing else, as far as the null one has more."""
    n = len(labels)
    rows = null.to(labels.device).each(lambda part: part.expand(n, *part.shape[1:]))
    return rows._replace(label=labels)


def _joined(a: Condition, b: Condition, join: Callable[[Tensor, Tensor], Tensor]) -> Condition:
    """Two conditions part by part, of contexts as long as the longer one's; ValueError unless both have the same."""
    if a.context is not None and b.context is not None and not _alike(a, b):
        length = max(a.context.shape[1], b.context.shape[1])
        a, b = _padded(a, a.context, length), _padded(b, b.context, length)
    ours, theirs = a.parts(), b.parts()
    if ours.keys() != theirs.keys():
        only = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise ValueError(f"one of two conditions has {only}, and the other has not")
    return Condition(**{name: join(part, theirs[name]) for name, part in ours.items()})


def _alike(a: Condition, b: Condition) -> bool:
    """Whether two contexts are equally long, and both are masked or neither is."""
    return a.context.shape[1] == b.context.shape[1] and (a.mask is None) == (b.mask is None)  # type: ignore[union-attr]


def _padded(condition: Condition, context: Tensor, length: int) -> Condition:
    """With a context of `length` tokens, of which the further ones are masked."""
    n, have = context.shape[:2]
    mask = torch.ones(n, have, dtype=torch.bool, device=context.device) if condition.mask is None else condition.mask
    more = context.new_zeros(n, length - have, *context.shape[2:])
    return condition._replace(
        context=torch.cat([context, more], dim=1), mask=torch.cat([mask, mask.new_zeros(n, length - have)], dim=1)
    )
