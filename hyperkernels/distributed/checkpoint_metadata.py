"""Reads the ``.metadata`` of a checkpoint so that a hostile file can neither run code nor name other files.

``.metadata`` is a pickle of classes of torch.distributed.checkpoint. Here every class that it may name is replaced by
an inert one, which only stores its arguments. The metadata is then built again from numbers, names and sizes that are
checked, also against the files of the folder.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import math
import os
import pickle
import pickletools
import types
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

FILE = ".metadata"


class _Inert:
    """Stands for a class or function: stores the arguments and the state that it was given."""

    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> _Inert:
        made = object.__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _is_own(value: Any, module: types.ModuleType) -> bool:
    if not isinstance(value, type) or value.__module__ != module.__name__:
        return False
    return dataclasses.is_dataclass(value) or issubclass(value, enum.Enum)


@functools.cache
def _known() -> dict[tuple[str, str], Any]:
    """The inert replacement of each class, function and dtype in the metadata of this version of torch."""
    own = [value for module in (metadata, filesystem) for value in vars(module).values() if _is_own(value, module)]
    names = [(value.__module__, value.__qualname__) for value in (*own, torch.serialization._get_layout)]
    names.append(("torch", "Size"))
    # The folder that it was written to, which Python 3.13 has under another name; nothing is made of it.
    kinds = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    names += [(module, kind) for module in ("pathlib", "pathlib._local") for kind in kinds]
    dtypes = {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    return {**{name: type(name[1], (_Inert,), {}) for name in names}, **dtypes}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _known().get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint's metadata")
        return known


def _unpickled(content: bytes) -> Any:
    for operation, argument, _ in pickletools.genops(content):
        # The unpickler makes room for every number below that of an entry of its memo.
        if operation.name.endswith("PUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"entry {argument} of the memo in {len(content)} bytes")
    return _Unpickler(io.BytesIO(content)).load()


def _fields(value: Any, kind: str, *names: str) -> list[Any]:
    if not isinstance(value, _Inert) or type(value).__name__ != kind or not isinstance(value.state, dict):
        raise ValueError(f"it has {type(value).__name__} in place of {kind}")
    return [value.state.get(name) for name in names]


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"it has {value!r:.60} in place of a size")
    return value


def _size(value: Any) -> torch.Size:
    if not isinstance(value, _Inert) or type(value).__name__ != "Size" or len(value.args) != 1:
        raise ValueError(f"it has {type(value).__name__} in place of a torch.Size")
    return torch.Size([_number(number) for number in tuple(value.args[0])])


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"it has {type(value).__name__} in place of a name")
    return value


def _chunk(value: Any, size: torch.Size) -> ChunkStorageMetadata:
    chunk = ChunkStorageMetadata(*(_size(part) for part in _fields(value, "ChunkStorageMetadata", "offsets", "sizes")))
    if not len(chunk.offsets) == len(chunk.sizes) == len(size) or any(
        start + length > whole for start, length, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)
    ):
        raise ValueError(f"a part of size {tuple(chunk.sizes)} reaches beyond its tensor of size {tuple(size)}")
    return chunk


def _stored(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(value, _Inert) and type(value).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    properties, found, parts = _fields(value, "TensorStorageMetadata", "properties", "size", "chunks")
    if not isinstance(properties, _Inert) or type(properties).__name__ != "TensorProperties" or not properties.state:
        raise ValueError("it has a tensor without TensorProperties")
    dtype = properties.state[0]  # the others say nothing about what is stored
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"it has {type(dtype).__name__} in place of a dtype")
    size = _size(found)
    chunks = [_chunk(part, size) for part in parts]
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"the parts of a tensor of size {tuple(size)} are not the whole of it")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _index(value: Any) -> MetadataIndex:
    name, offset = _fields(value, "MetadataIndex", "fqn", "offset")
    return MetadataIndex(_text(name), None if offset is None else _size(offset))


def _place(value: Any) -> _StorageInfo:
    path, offset, length, transforms = _fields(
        value, "_StorageInfo", "relative_path", "offset", "length", "transform_descriptors"
    )
    if transforms:
        raise ValueError("it has items that are compressed or otherwise transformed")
    return _StorageInfo(_text(path), _number(offset), _number(length))


def _path(value: Any) -> tuple[str | int, ...]:
    if type(value) is not tuple or any(type(part) not in (str, int) for part in value):
        raise ValueError("the place of an item is no tuple of names and numbers")
    return value


def _made(found: Any) -> Metadata:
    items, paths, places = _fields(found, "Metadata", "state_dict_metadata", "planner_data", "storage_data")
    return Metadata(
        {_text(name): _stored(value) for name, value in items.items()},
        planner_data={_text(name): _path(value) for name, value in (paths or {}).items()},
        storage_data={_index(index): _place(value) for index, value in places.items()},
        storage_meta=StorageMeta(),
    )


def inside(folder: Path, name: str) -> Path:
    """The path of the file ``name`` of a checkpoint.

    Raises:
        ValueError: it is outside ``folder``, by an absolute path, ``..`` or a symbolic link.
        FileNotFoundError: it does not exist, or is not a plain file.
    """
    path = folder / name
    if ".." in Path(name).parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / FILE} names {name!r}, which is outside the folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no plain file")
    return path


def _check_files(folder: Path, found: Metadata) -> None:
    """Check that all data that the metadata declares fit into the files that it names."""
    sizes = {place.relative_path: 0 for place in found.storage_data.values()}
    for name in sizes:
        sizes[name] = inside(folder, name).stat().st_size
    held: Counter[str] = Counter()
    for place in found.storage_data.values():
        held[place.relative_path] += place.length
        if max(place.offset + place.length, held[place.relative_path]) > sizes[place.relative_path]:
            raise ValueError(f"{folder / place.relative_path} is shorter than {folder / FILE} says: it was cut off")
    for name, stored in found.state_dict_metadata.items():
        if isinstance(stored, BytesStorageMetadata):
            parts = [(MetadataIndex(name), 0)]
        else:
            width = stored.properties.dtype.itemsize
            parts = [(MetadataIndex(name, part.offsets), math.prod(part.sizes) * width) for part in stored.chunks]
        for index, size in parts:
            if index not in found.storage_data:
                raise ValueError(f"{folder / FILE} names no file for {name}")
            if size > found.storage_data[index].length:
                raise ValueError(f"{folder / FILE} gives {name} a size that its file does not hold")


def read(folder: str | os.PathLike[str]) -> Metadata:
    """The metadata of a complete checkpoint.

    Raises:
        FileNotFoundError: there is no ``.metadata`` in ``folder``, or a file that it names is missing.
        ValueError: it is not the metadata of a checkpoint, names another class or a file outside ``folder``, or
            declares more data than the files hold.
    """
    folder = Path(folder)
    path = inside(folder, FILE)
    try:
        found = _made(_unpickled(path.read_bytes()))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no metadata of a checkpoint: {error}") from error
    _check_files(folder, found)
    return found
