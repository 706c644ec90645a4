"""What several test files share."""

import contextlib
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

REPORT: list[str] = []


def report(line: str) -> None:
    """A line for the end of the run, of what a test found beyond its being green."""
    REPORT.append(line)


def combinations(*axes: Iterable[Any], everyday: Callable[..., bool]) -> list[Any]:
    """All combinations as parameters of a test: `make test` takes those that `everyday` chooses."""
    return [
        pytest.param(*values, marks=() if everyday(*values) else pytest.mark.slow)
        for values in itertools.product(*axes)
    ]


# Both take a function whole and run our ops; inductor also generates C++, which takes seconds.
COMPILERS = combinations(["aot_eager", "inductor"], everyday=lambda compiler: compiler == "aot_eager")
LOWER_CAPABILITIES = combinations(["baseline", "avx2"], everyday=lambda capability: capability == "baseline")


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
