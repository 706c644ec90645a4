"""Peak memory of a call, as the operating system or the CUDA allocator sees it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch


def _status(field: str) -> int:
    """Bytes of a /proc/self/status field given in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Largest memory held during ``call`` above what was held before it, results included, in bytes.

    On the CPU it is the peak resident set, so scratch of worker threads and of libraries counts as well; pages never
    touched do not. Call it once before, so that thread pools and caches of libraries are not charged to it. Linux only
    on the CPU.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from the present
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM") - before
    del result
    return peak
