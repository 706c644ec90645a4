"""The environment in which the instrumented library runs inside an ordinary Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Of operator new, which must not return null: elsewhere an allocation of this size is bad_alloc, and an exception.
TOO_LARGE = ("allocation-size-too-big", "out-of-memory", "exceeds maximum supported size")
OPTIONS = {
    "detect_leaks": 0,  # Python frees little at its end
    "allocator_may_return_null": 1,
    "max_allocation_size_mb": 2048,
    "quarantine_size_mb": 64,
    "print_stacktrace": 1,
    "halt_on_error": 1,
    "handle_segv": 1,
}


def library(name: str) -> str:
    compiler = os.environ.get("CXX", "g++").split()[0]
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def environment(folder: Path) -> dict[str, str]:
    options = ":".join(f"{name}={value}" for name, value in OPTIONS.items())
    options += f":log_path={folder / 'reports' / 'report'}"
    return os.environ | {
        # The sanitizer finds __cxa_throw only where the C++ library is there before it.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": options,
        "HYPERKERNELS_LIBRARY": str(folder / "hyperkernels" / "libhyperkernels.so"),
    }


def explained(reports: Path) -> list[str]:
    """The reports, but for those of an allocation that was refused."""
    texts = [f"{path.name}\n{path.read_text()}" for path in sorted(reports.glob("report*"))]
    return [
        text for text in texts if "ERROR" in text or "runtime error" in text if not any(w in text for w in TOO_LARGE)
    ]
