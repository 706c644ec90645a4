"""Bytes to model: the sources of Python's own standard library, which every machine that runs this has."""

from __future__ import annotations

import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from examples.recognizer.data import DataError

# Packages that others have installed, tests, and modules that are tables rather than code.
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
HELD_OUT = 10  # one file in so many is for validation


@dataclass(frozen=True)
class Text:
    """Files one after another, a zero byte between them, as uint8."""

    train: torch.Tensor
    validation: torch.Tensor
    files: int


def load(folder: Path | None = None) -> Text:
    """The .py files below ``folder``, the standard library's by default, in the order of their names.

    A file is for training or for validation by the checksum of its name: versions of Python agree about most files.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py"))
    names = [name for name in names if not LEFT_OUT.intersection(name.split("/"))]
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name in names:
        parts[zlib.crc32(name.encode()) % HELD_OUT == 0].append((folder / name).read_bytes())
    if not all(parts):
        raise DataError(f"{folder} has {len(names)} Python sources, too few to train on some and validate on others")
    train, validation = (torch.frombuffer(bytearray(b"\0".join(part)), dtype=torch.uint8) for part in parts)
    return Text(train, validation, len(names))


def windows(text: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """[n, length] int64: the bytes from each of ``starts`` on."""
    return text[starts[:, None] + torch.arange(length)].long()
