"""The library of C++ and CUDA kernels: loading it registers them with torch. One file serves every Python and every
torch from 2.10 on."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path

import torch

CAPABILITY_VARIABLE = "HYPERKERNELS_CPU_CAPABILITY"
PATH = Path(os.environ.get("HYPERKERNELS_LIBRARY", Path(__file__).with_name("libhyperkernels.so")))

# What builds the library, typed in the source folder. An installed package is replaced.
_IN_PLACE = Path(__file__).parents[1].joinpath("setup.py").exists()
BUILD_COMMAND = "pip install --no-build-isolation " + ("-e ." if _IN_PLACE else "--force-reinstall --no-deps .")


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or None and why."""
    if not PATH.exists():
        return None, f"the C++ kernels are not built; to build them, run in the source folder: {BUILD_COMMAND}"
    try:
        torch.ops.load_library(PATH)
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        cause = error.__cause__ or error
        return (
            None,
            f"the C++ kernels do not load ({cause}); to build them again, run in the source folder: {BUILD_COMMAND}",
        )
    library.hyperkernels_fact.restype = ctypes.c_char_p
    return library, None


def _watch_signals(library: ctypes.CDLL) -> None:
    """Ctrl-C ends an op in the middle: the library gets Python's own functions for it, by their addresses."""
    names = ("PyThread_get_thread_ident", "PyGILState_Ensure", "PyGILState_Release", "PyErr_CheckSignals")
    addresses = (ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in names)
    library.hyperkernels_watch_signals(ctypes.c_ulong(threading.main_thread().ident or 0), *addresses)


LIBRARY, OBSTACLE = _load()
if LIBRARY is not None:
    _watch_signals(LIBRARY)


def _fact(name: str) -> str:
    assert LIBRARY is not None
    return LIBRARY.hyperkernels_fact(name.encode()).decode()


@cache
def build_info() -> dict[str, str]:
    """compiler, instruction_sets and cuda_architectures of the build."""
    return {name: _fact(name) for name in ("compiler", "instruction_sets", "cuda_architectures")}


def signatures() -> dict[str, str]:
    """Of every op the types that its kernel takes and returns, as words of a schema."""
    return dict(line.split(": ", 1) for line in _fact("signatures").splitlines())


def cpu_capability() -> str:
    """The instruction set in use."""
    return _fact("cpu_capability")


def use_cpu_capability(name: str) -> str:
    """From now on the kernels of that instruction set, or the widest one below it that this processor has: the result.

    Raises:
        ValueError: there is no set of that name.
    """
    assert LIBRARY is not None
    if not LIBRARY.hyperkernels_use_cpu_capability(name.encode()):
        raise ValueError(f"{CAPABILITY_VARIABLE} must be baseline, avx2 or avx512; got {name}")
    return cpu_capability()


def poison_memory(on: bool) -> None:
    """For tests: results and scratch memory of the kernels start as NaN, and integers as a large number."""
    if LIBRARY is not None:
        LIBRARY.hyperkernels_poison_memory(int(on))


if LIBRARY is not None and os.environ.get(CAPABILITY_VARIABLE):
    use_cpu_capability(os.environ[CAPABILITY_VARIABLE])
