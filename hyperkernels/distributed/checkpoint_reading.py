"""Reading of checkpoints that may be hostile: none of their code is run, and no other file is read."""

from __future__ import annotations

import io
import os
import zipfile
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from . import checkpoint_metadata


class _Part(io.RawIOBase):
    """``length`` bytes of an open file, as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        super().__init__()
        self.file, self.start, self.length, self.at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self.file.seek(self.start + self.at)
        count: int = self.file.readinto(view[: max(0, self.length - self.at)])  # type: ignore[attr-defined]
        self.at += count
        return count


def load_plain(source: IO[bytes] | str, where: str, **options: Any) -> Any:
    """Load what ``torch.save`` wrote, if it is tensors, numbers, strings, and lists and dicts of them only.

    Raises:
        ValueError: it holds other objects, or would unpack to more bytes than the file has.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if isinstance(source, str):
            size = os.path.getsize(source)
        else:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
        if unpacked > size:
            raise ValueError(f"it unpacks to {unpacked} bytes from {size}")
        return torch.load(source, map_location="cpu", weights_only=True, **options)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{where} cannot be loaded: {error}") from error


class Planner(DefaultLoadPlanner):
    """A planner that accepts plain values only, for items that are not tensors."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], load_plain(value, f"{name} of the checkpoint"))


class Reader(FileSystemReader):
    """A reader of a folder whose metadata is read once and checked."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if not hasattr(self, "_found"):
            self._found = checkpoint_metadata.read(self.path)
        return self._found

    def _read(self, item: ReadItem, part: io.BufferedReader, planner: LoadPlanner) -> None:
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(part.read()))
            return
        where = f"{item.storage_index.fqn} of {self.path}"
        found = load_plain(part, where)
        if not isinstance(found, torch.Tensor) or found.layout != torch.strided:
            raise ValueError(f"{where} is no tensor")
        for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            found = found.narrow(dim, start, length)
        target = planner.resolve_tensor(item).detach()
        if target.shape != found.shape:
            raise ValueError(f"{where} has shape {tuple(found.shape)}, not {tuple(target.shape)}")
        target.copy_(found)
        planner.commit_tensor(item, target)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        def name(item: ReadItem) -> str:
            path: str = self.storage_data[item.storage_index].relative_path
            return path

        for file, items in groupby(sorted(plan.items, key=name), key=name):
            with checkpoint_metadata.inside(Path(self.path), file).open("rb") as stream:
                for item in items:
                    place = self.storage_data[item.storage_index]
                    self._read(item, io.BufferedReader(_Part(stream, place.offset, place.length)), planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done
