"""How much autograd keeps for backward passes, counted as it is kept and let go."""

from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Kept:
    def __init__(self, tensor: Tensor, count: "KeptMemory") -> None:
        self.tensor, self.count = tensor.detach(), count  # not the node that made it, which keeps this
        count.change(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes(), 1)
        self.place = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()

    def __del__(self) -> None:
        self.count.change(*self.place, -1)


class KeptMemory(saved_tensors_hooks):
    """Within it, `peak` is the most bytes that were kept at once; a storage that is kept twice counts once."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], int] = {}
        self.now = self.peak = 0
        super().__init__(lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor)

    def change(self, place: int, size: int, by: int) -> None:
        """One more, or one fewer, keeps a storage."""
        key = place, size
        before = self.kept.get(key, 0)
        self.kept[key] = before + by
        if before == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        elif before + by == 0:
            self.now -= size
            del self.kept[key]

    def __enter__(self) -> Any:
        super().__enter__()
        return self
