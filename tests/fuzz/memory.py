"""What fresh memory holds, chosen at run time, and how much of it there is."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import torch

PATTERNS = ("junk", "zero")
# Outputs with parts that nobody reads: tiles of cosines are as wide as the widest of them.
SCRATCH = {"class_statistics": ("kept",)}

_M_PERTURB = -6  # of mallopt: the byte whose complement fills what malloc hands out
_LIBC = ctypes.CDLL(None)
_C10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
_FLAGS = {pattern: ctypes.c_bool.in_dll(_C10, f"FLAGS_caffe2_cpu_allocator_do_{pattern}_fill") for pattern in PATTERNS}


def fill(pattern: str | None) -> None:
    """Tensors begin as junk (NaN as float32) or as zeros from here on, and what C++ allocates as 0xff or 0x01.

    None: as they come.
    """
    for name, flag in _FLAGS.items():
        flag.value = name == pattern
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_PERTURB, {"junk": 0x100, "zero": 0xFE, None: 0}[pattern])


def limit(more: int) -> None:
    """Allocations beyond `more` bytes from here on fail, so that a huge size is an exception and not a full machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
