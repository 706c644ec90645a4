"""Peak memory of a call, as the operating system or the CUDA allocator sees it, and a limit on what a call may take."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


def _kilobytes(file: str, field: str) -> int:
    """Bytes of a field of a /proc file that is given in kB."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {file}")


def _status(field: str) -> int:
    return _kilobytes("/proc/self/status", field)


def machine_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return _kilobytes("/proc/meminfo", "MemTotal")


@contextlib.contextmanager
def limited(device: str) -> Iterator[None]:
    """On the CPU an allocation beyond the machine's free memory fails in here, as it does on a GPU: else the operating
    system would promise the pages and end the process when they are touched. Linux only."""
    if device == "cuda":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    room = _status("VmData") + _kilobytes("/proc/meminfo", "MemAvailable")
    resource.setrlimit(resource.RLIMIT_DATA, (room if before[1] < 0 else min(room, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def exhausted(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch's allocator of the CPU raises a plain RuntimeError."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and "DefaultCPUAllocator" in str(problem)


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
