"""What several test files share."""

import contextlib
import io
import itertools
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperkernels import _native

ROOT = Path(__file__).resolve().parents[2]

REPORT: list[str] = []

# What torch makes of an op's refusal of a value, which public functions have checked before: from 2.15 on it leaves C++
# no error of its own but IndexError.
REFUSED = (ValueError,) if torch.__version__ < (2, 15) else (ValueError, RuntimeError)


def report(line: str) -> None:
    """A line for the end of the run, of what a test found beyond its being green."""
    REPORT.append(line)


def need_cpp_kernels() -> None:
    """Skips the file that calls it where the C++ kernels are not built."""
    if _native.OBSTACLE is not None:
        pytest.skip(_native.OBSTACLE, allow_module_level=True)


def combinations(*axes: Iterable[Any], everyday: Callable[..., bool]) -> list[Any]:
    """All combinations as parameters of a test: `make test` takes those that `everyday` chooses."""
    return [
        pytest.param(*values, marks=() if everyday(*values) else pytest.mark.slow)
        for values in itertools.product(*axes)
    ]


# Both take a function whole and run our ops; inductor also generates C++, which takes seconds.
COMPILERS = combinations(["aot_eager", "inductor"], everyday=lambda compiler: compiler == "aot_eager")
LOWER_CAPABILITIES = combinations(["baseline", "avx2"], everyday=lambda capability: capability == "baseline")


@contextlib.contextmanager
def instruction_set(capability: str) -> Iterator[None]:
    """The C++ kernels of that set, in this process."""
    before = _native.cpu_capability()
    if _native.use_cpu_capability(capability) != capability:
        _native.use_cpu_capability(before)
        pytest.skip(f"this processor has no {capability}")
    try:
        yield
    finally:
        _native.use_cpu_capability(before)


def assert_passes_at(capability: str, file: str, names: str) -> None:
    """The tests of those names pass with the C++ kernels of a lower instruction set than this processor's own."""
    if capability == _native.cpu_capability():
        pytest.skip(f"{capability} is this processor's own: the tests themselves run with it")
    said = io.StringIO()
    with instruction_set(capability), contextlib.redirect_stdout(said):
        options = ["-q", "-x", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = pytest.main([*options, file, "-k", names])
    assert code == 0, said.getvalue()[-3000:]


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
