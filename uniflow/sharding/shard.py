"""Sharding of models with torch's `fully_shard` (FSDP2), block by block."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from uniflow.core.part import Part
from uniflow.layers.blocks import find_blocks


@dataclass
class Sharding:
    """How `shard` spreads a model.

    Attributes:
        mesh: the processes; of a mesh of two dimensions the first replicates and the second shards.
        gather_dtype: type in which parameters are gathered for use; None is their own.
        reshard_after_forward: whether a block's parameters are given back after its forward pass and gathered again
            for the backward pass.
    """

    mesh: DeviceMesh
    gather_dtype: torch.dtype | None = None
    reshard_after_forward: bool = True

    def apply(self, module: nn.Module, **options: Any) -> None:
        """`fully_shard`, from the parameters and buffers that process 0 has."""
        module.to(self.mesh.device_type)
        for tensor in (*module.parameters(), *module.buffers()):
            if not isinstance(tensor, DTensor):  # a block of it, sharded before
                torch.distributed.broadcast(tensor.detach(), src=0)
        # Inputs keep their types: autocast decides what is computed in which.
        policy = MixedPrecisionPolicy(
            param_dtype=self.gather_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        fully_shard(module, mesh=self.mesh, mp_policy=policy, **options)


def shard(part: nn.Module, sharding: Sharding) -> None:
    """Spread the parameters of a part over processes, block by block.

    A part may be used only through its `forward` and its `entry_points`, which gather its parameters. All processes
    have to use it equally often.

    Args:
        part: an encoder, bottleneck, decoder or pixel loss; it is changed in place, and its parameters become
            DTensors. Blocks have to be called as modules.
        sharding: how.

    Raises:
        ValueError: if the part says that it cannot be sharded.
    """
    if isinstance(part, Part):
        part.check_shardable()
    if isinstance(part, FSDPModule) or next(part.parameters(), None) is None:
        return
    for block in find_blocks(part):
        sharding.apply(block, reshard_after_forward=sharding.reshard_after_forward)
    sharding.apply(part)
    for name in getattr(part, "entry_points", ()):  # of parts and heads
        _register(part, name)


def _register(part: nn.Module, name: str) -> None:
    """Gather the parameters around the method `name`, unless another entry point has done so already."""
    plain = getattr(part, name)
    register_fsdp_forward_method(part, name)
    gathering = getattr(part, name)

    @functools.wraps(plain)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.__dict__.get("_is_gathered"):
            return plain(*args, **kwargs)
        self.__dict__["_is_gathered"] = True
        try:
            return gathering(*args, **kwargs)
        finally:
            del self.__dict__["_is_gathered"]

    part.__dict__[name] = MethodType(method, part)


def is_sharded(module: nn.Module) -> bool:
    """Whether any part of `module` has been sharded by `shard`."""
    return any(isinstance(m, FSDPModule) for m in module.modules())


def reshard(module: nn.Module) -> None:
    """Free all gathered parameters, so that `module.parameters()` are the DTensors that are trained.

    After an evaluation some are still gathered.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The whole state of a module, on the CPU of process 0, and empty on the others. All processes have to call it.

    For a module that is not sharded it is `state_dict()`, on all processes.
    """
    if not is_sharded(module):
        return module.state_dict()
    reshard(module)
    return dict(get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))  # type: ignore[arg-type]


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's pieces of DTensors, which share their memory; other tensors as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def spread_like(target: Tensor | None, value: Tensor) -> Tensor:
    """A whole tensor that every process has, spread as `target` is; as it is if that is not a DTensor."""
    if not isinstance(target, DTensor):
        return value
    placed = value.to(target.device_mesh.device_type)
    return distribute_tensor(placed, target.device_mesh, target.placements, src_data_rank=None)
