"""trainer.strategy=fsdp: each rank holds a part of the weights, gradients, average and optimiser states.

Torch's `fully_shard` (FSDP2) does it. Parameters keep their names and shapes, so that checkpoints are like all others.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """A network's `blocks`: those of its modules that it calls one after the other; none, if it names none.

    Raises:
        ValueError: if they are something else.
    """
    blocks = getattr(network, "blocks", ())
    if not isinstance(blocks, list | tuple | nn.ModuleList) or not all(isinstance(b, nn.Module) for b in blocks):
        raise ValueError(f"net: {type(network).__name__}.blocks must be modules that it calls one after the other")
    return list(blocks)


def shard(module: nn.Module, mesh: DeviceMesh, half: torch.dtype | None = None) -> None:
    """Shard a module over the mesh, its `blocks` each by itself, so that no two of them are gathered at a time.

    Args:
        mesh: over all of it; of a mesh of two dimensions over the last, with a copy in each row
        half: weights are gathered in this type, and the module computes under autocast to it, whoever calls it;
              gradients are still summed, and weights kept, in float32
    """
    if isinstance(module, FSDPModule) or not any(True for _ in module.parameters()):
        return
    # inputs are left alone: times in 8 bits would be others
    policy = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    if half is not None:
        module.forward = torch.autocast(mesh.device_type, half)(module.forward)
    fully_shard(module, mesh=mesh, mp_policy=policy)


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
