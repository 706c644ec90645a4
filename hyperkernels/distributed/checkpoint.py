"""Checkpoints of models with sharded classes: written by any number of ranks, readable by any other number.

They have the format of torch.distributed.checkpoint. Tensors with a row for every centre (the weight and the
optimiser's state) are DTensors: every rank writes its own rows with their offset, and reads the rows that it needs. If
the number of classes is not a multiple of the number of ranks, the shards differ from those that DTensor would choose,
so each states its offset.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import _check
from .collectives import Ranks
from .sharded import ShardedModule, sharded_of
from .shards import Shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


def as_dtensor(local: torch.Tensor, shards: Shards, ranks: Ranks, sub_centers: int) -> torch.Tensor:
    """This rank's rows [num_local * sub_centers, ...] as a DTensor over all ranks; it shares the memory."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

    size = torch.Size((shards.num_classes * sub_centers, *local.shape[1:]))
    place = (shards.start(ranks.rank) * sub_centers, *(0 for _ in local.shape[1:]))
    wrapper = LocalShardsWrapper([local], [place]) if len(local) else LocalShardsWrapper([], [])
    assert ranks.group is not None
    mesh = DeviceMesh.from_group(ranks.group, local.device.type)
    strides = torch.empty(size, device="meta").stride()
    return DTensor.from_local(wrapper, mesh, [Shard(0)], run_check=False, shape=size, stride=strides)


def local_rows(value: Any, shards: Shards, ranks: Ranks, sub_centers: int) -> torch.Tensor:
    """This rank's rows of a DTensor of ``as_dtensor`` or of a tensor of all rows. A tensor of this rank's rows is
    returned unchanged."""
    first, size = shards.start(ranks.rank) * sub_centers, shards.size(ranks.rank) * sub_centers
    if hasattr(value, "to_local"):
        shard = value.to_local()
        if not hasattr(shard, "local_shards"):
            return value.full_tensor()[first : first + size]
        here = shard.local_shards()
        return here[0] if here else torch.empty(0, *value.shape[1:], dtype=value.dtype, device=value.device)
    return value[first : first + size] if len(value) == shards.num_classes * sub_centers else value


def _names(module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """The name prefixes that wrappers add, each with the prefix that it replaces."""
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.parallel.DistributedDataParallel):
            yield f"{name}.module.".lstrip("."), f"{name}.".lstrip(".")


class _Model:
    """A module and its state under the names without the prefixes of wrappers."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.wrappers = sorted(_names(module), key=lambda pair: -len(pair[0]))
        self.heads = sharded_of(module)
        self.names: dict[torch.Tensor, str] = {
            parameter: self.own(name) for name, parameter in module.named_parameters()
        }
        self.rowless: dict[str, dict[str, torch.Tensor]] = {}

    def own(self, name: str) -> str:
        for wrapped, plain in self.wrappers:
            if name.startswith(wrapped):
                name = plain + name[len(wrapped) :]
        return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")

    def state_dict(self) -> dict[str, Any]:
        state = {self.own(name): value for name, value in self.module.state_dict().items()}
        # The state_dict of a head may have the rows of this rank alone, as that of compat.insightface.
        return {**state, **{self.names[weight]: self._whole(weight, weight.detach()) for weight in self.heads}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict({name: state[self.own(name)] for name in self.module.state_dict()})

    def parameters_of(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """The parameters in the order in which the optimiser's state_dict numbers them."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(parameter not in self.names for parameter in parameters):
            raise ValueError("optimizer must hold parameters of module alone")
        return parameters

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        parameters, found = self.parameters_of(optimizer), optimizer.state_dict()
        state = {}
        for number, values in found["state"].items():
            parameter = parameters[number]
            state[self.names[parameter]] = {
                name: self._whole(parameter, value)
                for name, value in values.items()
                if not self._is_rowless(parameter, value)
            }
        groups = [
            {**group, "params": [self.names[parameters[number]] for number in group["params"]]}
            for group in found["param_groups"]
        ]
        return {"state": state, "param_groups": groups}

    def load_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, found: dict[str, Any]) -> None:
        parameters = self.parameters_of(optimizer)
        numbers = {self.names[parameter]: number for number, parameter in enumerate(parameters)}
        state = {}
        for name, values in found["state"].items():
            head = self.heads.get(parameters[numbers[name]])
            state[numbers[name]] = {
                key: value if head is None or not isinstance(value, torch.Tensor) else _rows_here(head, value)
                for key, value in {**self.rowless.get(name, {}), **values}.items()
            }
        groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in found["param_groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _is_rowless(self, parameter: torch.Tensor, value: Any) -> bool:
        """Whether a state tensor has no rows: it is left out of the checkpoint, since it has no offset among the
        others."""
        return parameter in self.heads and isinstance(value, torch.Tensor) and value.dim() > 0 and not len(value)

    def _whole(self, parameter: torch.Tensor, value: Any) -> Any:
        head = self.heads.get(parameter)
        if head is None or head.world_size == 1 or not isinstance(value, torch.Tensor):
            return value
        if not value.dim() or len(value) != len(parameter):
            return value
        return as_dtensor(value, head.shards, head.ranks, head.sub_centers)

    def optimizer_template(self, optimizer: torch.optim.Optimizer, number: str, metadata: Any) -> dict[str, Any]:
        """Empty tensors for the optimiser's state in the checkpoint, which a new optimiser does not have yet."""
        state: dict[str, dict[str, Any]] = {}
        parameters = {self.names[parameter]: parameter for parameter in self.parameters_of(optimizer)}
        for key, path in metadata.planner_data.items():
            if tuple(path[:3]) != ("optimizer", number, "state") or len(path) != 5 or path[3] not in parameters:
                continue
            name, entry = path[3:]
            room = self._room(parameters[name], metadata.state_dict_metadata[key])
            values = state.setdefault(name, {})
            if self._is_rowless(parameters[name], room):
                self.rowless.setdefault(name, {})[entry] = room
            else:
                values[entry] = self._whole(parameters[name], room)
        return {"state": state, "param_groups": self.optimizer_state_dict(optimizer)["param_groups"]}

    def _room(self, parameter: torch.Tensor, stored: Any) -> Any:
        if not hasattr(stored, "properties"):
            return None  # no tensor: it is put in place whole
        size, dtype, head = stored.size, stored.properties.dtype, self.heads.get(parameter)
        if head is not None and size and size[0] == head.num_classes * head.sub_centers:
            return parameter.new_empty(len(parameter), *size[1:], dtype=dtype)
        if size == parameter.shape:
            return torch.empty_like(parameter, dtype=dtype)  # a DTensor for a DTensor
        return torch.empty(size, dtype=dtype, device=parameter.device if size else None)


def _rows_here(head: ShardedModule, value: torch.Tensor) -> torch.Tensor:
    if not value.dim() or len(value) != head.num_classes * head.sub_centers:
        return value
    return local_rows(value, head.shards, head.ranks, head.sub_centers)


@contextlib.contextmanager
def _dcp() -> Iterator[Any]:
    import torch.distributed.checkpoint as dcp  # not with the package: it takes a while

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")  # one process will do
        try:
            yield dcp
        except dcp.api.CheckpointException as error:
            # No Exception, it passes by those who catch what goes wrong; what it holds is the same on all ranks.
            first: BaseException = error.failures[min(error.failures)][0]
            raise first from error


def _numbered(optimizer: Optimizers) -> dict[str, torch.optim.Optimizer]:
    if optimizer is None:
        return {}
    several = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    return {str(number): one for number, one in enumerate(several)}


def state_dict(module: torch.nn.Module, optimizer: Optimizers = None) -> dict[str, Any]:
    """The state that ``save`` writes, for torch.distributed.checkpoint: ``{"model": ..., "optimizer": {"0": ...}}``, by
    the parameters' names. Tensors are not copied."""
    model = _Model(module)
    states = {number: model.optimizer_state_dict(one) for number, one in _numbered(optimizer).items()}
    return {"model": model.state_dict(), "optimizer": states}


def save(
    path: str | os.PathLike[str],
    module: torch.nn.Module,
    optimizer: Optimizers = None,
    extra: dict[str, Any] | None = None,
    process_group: ProcessGroup | None = None,
) -> None:
    """Write a checkpoint into the folder ``path``; all ranks call it, each writes what it holds.

    Args:
        path: a folder for this checkpoint alone. ``latest`` ignores it until the checkpoint is complete.
        module: the model, which holds a ``hk.nn.PartialFC``; its other parts may be wrapped in DistributedDataParallel
            or sharded by ``fully_shard``.
        optimizer: an optimiser of parameters of ``module``, a list of several, or None.
        extra: further values that ``load`` returns, the same on all ranks: tensors, numbers, strings, and lists and
            dicts of them.
        process_group: the ranks that hold the model; None: all.

    Raises:
        FileExistsError: the folder has a complete checkpoint; if the run were killed it would be left half overwritten.
        TypeError: ``extra``, or an entry of the optimiser or of the module's state, is not of the kinds above; the
            message names it. Nothing has been written then.
        OSError: the disk is full, or another error of the operating system.
        FolderInUse: another run is writing into the folder (a RuntimeError).
    """
    from . import checkpoint_writing as writing

    state = state_dict(module, optimizer)
    if extra is not None:
        writing.check_plain("extra", extra)
        buffer = io.BytesIO()
        torch.save(extra, buffer)
        state["extra"] = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    writer = writing.Writer(path)
    with writer.held, _dcp() as dcp:
        dcp.save(state, storage_writer=writer, planner=writing.Planner(), process_group=process_group)


def load(
    path: str | os.PathLike[str],
    module: torch.nn.Module,
    optimizer: Optimizers = None,
    process_group: ProcessGroup | None = None,
) -> dict[str, Any] | None:
    """Read a checkpoint of ``save`` into the module and the optimiser, on any number of ranks; return its ``extra``.

    All ranks call it; every rank reads only the rows that it holds. The checkpoint need not be trusted: no code in its
    files is run, and no other file is read.

    Raises:
        FileNotFoundError: there is no complete checkpoint in the folder.
        ValueError: the files are not a checkpoint, are truncated, name files outside the folder, hold objects that
            ``save`` would refuse, or declare more data than they hold.
    """
    from . import checkpoint_reading as reading

    model = _Model(module)
    reader = reading.Reader(os.fspath(path))
    metadata = reader.read_metadata()
    state: dict[str, Any] = {"model": model.state_dict()}
    stored: Any = metadata.state_dict_metadata.get("extra")
    if stored is not None:
        state["extra"] = torch.empty(stored.size, dtype=torch.uint8)  # of the size that its file has
    optimizers = _numbered(optimizer)
    state["optimizer"] = {number: model.optimizer_template(one, number, metadata) for number, one in optimizers.items()}
    with _dcp() as dcp:
        dcp.load(state, storage_reader=reader, planner=reading.Planner(), process_group=process_group)
    model.load_state_dict(state["model"])
    for number, one in optimizers.items():
        model.load_optimizer_state_dict(one, state["optimizer"][number])
    if stored is None:
        return None
    return reading.load_plain(io.BytesIO(state["extra"].numpy().tobytes()), f"extra of {os.fspath(path)}")


def _age(folders: list[Path]) -> Callable[[Path], int]:
    """The sort key of the checkpoints: the number at the end of the name, if the names differ in it alone
    (``step-12``), else the time of writing."""
    names = {folder: re.fullmatch(r"(.*?)(\d+)", folder.name) for folder in folders}
    if len({name and name[1] for name in names.values()}) == 1 and all(names.values()):
        return lambda folder: int(folder.name[len(names[folder][1]) :])  # type: ignore[index]
    return lambda folder: (folder / ".metadata").lstat().st_mtime_ns


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The last complete checkpoint in ``folder``, or None. A run that was killed while it saved can continue from the
    one before.

    If the names differ only in a number at the end (``step-9``, ``step-10``), the last one is that with the highest
    number, otherwise the one that was written last. A checkpoint with missing or truncated files is not complete.
    """
    from . import checkpoint_metadata as metadata

    # torch.distributed.checkpoint puts its metadata in place when everything else is there.
    found = [path.parent for path in Path(folder).glob("*/.metadata")]
    for path in sorted(found, key=_age(found), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            metadata.read(path)
            return path
    return None


def _entry(found: Any, name: str, otherwise: Any = None) -> Any:
    return found.get(name, otherwise) if isinstance(found, dict) else None


@torch.no_grad()
def load_insightface(head: ShardedModule, paths: Sequence[str | os.PathLike[str]]) -> None:
    """Load the class centres from the files of insightface's arcface_torch, one file for each rank.

    Args:
        head: a ``hk.nn.PartialFC`` with as many classes as the files have together, on any number of ranks; every rank
            reads the rows that it holds.
        paths: the files in the order of their ranks, any number: each is ``{"weight": [num_local, D]}``, or a
            ``checkpoint_gpu_{rank}.pt``, which has this dict in ``state_dict_softmax_fc``.

    Raises:
        TypeError: a weight is not a floating-point tensor.
        ValueError: a file has another format, or the files do not have the number of classes or the embedding size of
            the head.
    """
    from .checkpoint_reading import load_plain

    weights = []
    for path in paths:
        # Only what is read of a mapped file comes into memory.
        found = load_plain(os.fspath(path), f"{path}", mmap=True)
        weight = _entry(_entry(found, "state_dict_softmax_fc", found), "weight")
        _check.tensor(f"weight of {path}", weight, dim=2)
        if not weight.is_floating_point():
            raise TypeError(f"weight of {path} must be floating-point; got {weight.dtype}")
        if weight.shape[1] != head.embedding_size:
            raise ValueError(f"{path} must have embeddings of {head.embedding_size}; got shape {tuple(weight.shape)}")
        weights.append(weight)
    rows, total = head.num_classes * head.sub_centers, sum(len(weight) for weight in weights)
    if total != rows:
        raise ValueError(f"paths must have {rows} rows in all, as the head; got {total} in {len(weights)} files")
    first, start = head.class_start * head.sub_centers, 0
    end = first + len(head.weight)
    for weight in weights:
        low, high = max(first, start), min(end, start + len(weight))
        if low < high:
            head.weight[low - first : high - first].copy_(weight[low - start : high - start])
        start += len(weight)
