"""Finds wrappers that would treat the shards of the ranks as copies of one parameter.

DistributedDataParallel overwrites the shards with that of rank 0 and averages their gradients; FSDP builds one
parameter of pieces of all shards. Neither informs the modules inside it, so a module has to look for its wrapper.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .._backend import _untraced


def _replicated(wrapper: Any, module: int, weight: int) -> list[int]:
    # One that refused what it was to wrap holds nothing, though it may still be there.
    held = hasattr(wrapper, "reducer") and any(id(parameter) == weight for parameter in wrapper._module_parameters)
    return dist.get_process_group_ranks(wrapper.process_group) if held else []


def _fully_sharded(parameter: Any, module: int, weight: int) -> list[int]:
    held = id(parameter._module_info.module) == module and parameter._module_info.param_name == "weight"
    return parameter.mesh_info.mesh.mesh.flatten().tolist() if held else []


def _flattened(handle: Any, module: int, weight: int) -> list[int]:
    held = any((id(info.module), info.param_name) == (module, "weight") for info in handle.flat_param._param_infos)
    return dist.get_process_group_ranks(handle.process_group) if held else []


# What wrappers keep of the parameters that they hold, by name, since importing FSDP takes long: the ranks among which
# such a thing shares a module's weight out, none where it holds another.
_HOLDERS: dict[str, tuple[str, Callable[[Any, int, int], list[int]]]] = {
    "torch.nn.parallel.distributed.DistributedDataParallel": ("DistributedDataParallel", _replicated),
    "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam": ("fully_shard", _fully_sharded),
    "torch.distributed.fsdp._flat_param.FlatParamHandle": ("FullyShardedDataParallel", _flattened),
}


@_untraced
def holder(module: int, weight: int, ranks: tuple[int, ...]) -> str:
    """The name of the wrapper that handles the weight of a module over several of these ranks, "" if there is none;
    module and weight are given by their ids. It looks at every object of the process, which takes some tenths of a
    second."""
    known: dict[type, Any] = {}
    for found in gc.get_objects():
        kind = type(found)
        if kind not in known:
            names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
            known[kind] = next((_HOLDERS[name] for name in names if name in _HOLDERS), None)
        if known[kind] is not None:
            name, sharers = known[kind]
            if len(set(ranks).intersection(sharers(found, module, weight))) > 1:
                return str(name)
    return ""


@_untraced
def surroundings() -> int:
    """The id of the DistributedDataParallel whose forward is running, 0 if none is."""
    active = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return 0 if active is None else id(active)
