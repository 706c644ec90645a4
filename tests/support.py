"""What several test files share."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

REPORT: list[str] = []


def report(line: str) -> None:
    """A line for the end of the run, of what a test found beyond its being green."""
    REPORT.append(line)


LOWER_CAPABILITIES = ["baseline", pytest.param("avx2", marks=pytest.mark.slow)]


def assert_passes_at(capability: str, file: str, names: str) -> None:
    """The tests of those names pass with the C++ kernels of an instruction set, which a process chooses once."""
    environment = os.environ | {"HYPERKERNELS_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", names]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@contextlib.contextmanager
def room(size):
    """No file gets larger than so many bytes, which the system answers as it does a full disk. For no longer than what
    is tried takes: the tests' own output may be a larger file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
