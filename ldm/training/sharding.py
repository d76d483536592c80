"""trainer.strategy=fsdp: each rank holds a part of the weights, gradients, average and optimiser states.

Torch's `fully_shard` (FSDP2) does it. Parameters keep their names and shapes, so that checkpoints are like all others.
"""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(modules: list[nn.Module], mesh: DeviceMesh) -> None:
    """Shard modules over the mesh, a module's `fsdp_blocks` each by itself, so that no two of them are gathered at a
    time; a module without that attribute is gathered all at once."""
    for module in modules:
        if isinstance(module, FSDPModule) or not any(True for _ in module.parameters()):
            continue
        for block in getattr(module, "fsdp_blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether each rank holds a part of the module only, so that all ranks must run it together."""
    return isinstance(module, FSDPModule)


def sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """Those of its modules, itself among them, that are gathered each by itself."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def forget_gathered(module: nn.Module) -> None:
    """Let go of weights that a pass without gradients has left gathered (the outermost module's, for a backward pass
    that does not come): the next pass gathers what the shards then hold."""
    for part in sharded_parts(module):
        part.reshard()


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor on every rank: gathered if it is sharded, else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_held(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, laid out as `like` is: sharded over the same ranks, or as it is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
