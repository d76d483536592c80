"""trainer.strategy=fsdp: weights, gradients, average and optimiser states are dealt to the ranks.

By torch's `fully_shard` (FSDP2), under which parameters keep their names and shapes: checkpoints are as all others.
"""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(modules: list[nn.Module], mesh: DeviceMesh) -> None:
    """Shard modules over the mesh, a module's `fsdp_blocks` each by itself, so that no two of them are gathered at a
    time; a module without that attribute is gathered as a whole."""
    for module in modules:
        if isinstance(module, FSDPModule) or not any(True for _ in module.parameters()):
            continue
        for block in getattr(module, "fsdp_blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether no rank holds it as a whole, so that all must run it together."""
    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_held(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is held: sharded over the same ranks, or as it is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
