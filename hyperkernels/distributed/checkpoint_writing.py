"""Writing of checkpoints: what ``load`` would refuse is refused before anything is written."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from . import checkpoint_metadata, files


def _is_plain(value: Any) -> bool:
    """Whether ``load`` would read the value."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:
        return False
    return True


def _culprit(name: str, value: Any) -> tuple[str, Any]:
    """The name and value of the innermost entry that ``load`` would refuse."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, entry in entries:
        if not _is_plain(key):
            return f"a key of {name}", key
        if not _is_plain(entry):
            return _culprit(f"{name}[{key!r}]", entry)
    return name, value


def check_plain(name: str, value: Any) -> None:
    """Check that ``load`` will accept ``value``; ``name`` is for the message.

    Raises:
        TypeError: an entry, which is named, is not a tensor, number, string, or list or dict of them.
    """
    if not _is_plain(value):
        entry, found = _culprit(name, value)
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        raise TypeError(f"{entry} must be a tensor, number, string, list or dict, which load takes; got {kind}")


class Planner(DefaultSavePlanner):
    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                check_plain(item.index.fqn, self.lookup_object(item.index))
        return plan


class Writer(FileSystemWriter):
    """A writer that locks the folder, and reports errors of the disk with the path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.held = contextlib.ExitStack()

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if is_coordinator:
            folder = Path(self.path)
            with files.naming(folder):
                folder.mkdir(parents=True, exist_ok=True)
            self.held.enter_context(files.locked(folder))
            if (folder / checkpoint_metadata.FILE).exists():
                raise FileExistsError(f"{folder} holds a checkpoint already")

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with files.naming(self.path):
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with files.naming(self.path):
            super().finish(metadata, results)
