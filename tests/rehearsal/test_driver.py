"""The pretended driver refuses what a GPU would: a rehearsal that cannot fail proves nothing."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from tests.support import aot

from . import pretend_driver

pytestmark = pytest.mark.rehearsal

ONE = torch.ones(1)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor | None


@triton.jit
def _one():
    return 1.0


@triton.jit
def store_kernel(pointer):
    tl.store(pointer, _one())


@triton.jit
def store_both_kernel(pair, count):
    tl.store(pair.first, count)
    if pair.second is not None:
        tl.store(pair.second, count)


@triton.jit
def widen_kernel(pointer, count):
    tl.store(pointer, count.to(tl.int64))


@triton.jit
def product_kernel(pointer, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    at = row[:, None] * SIZE + row[None, :]
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for step in range(4):
        total += tl.dot(tl.load(pointer + step + at), tl.load(pointer + 2 * step + at))
    tl.store(pointer + at, total)


@triton.jit
def sorted_kernel(pointer, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(pointer + at)
    tl.store(pointer + at, value - tl.sum(value, axis=0))


@pytest.mark.parametrize("grid", [(1,), (2**31 - 1,), (1, 65535), (1, 1, 65535)])
def test_a_grid_that_fits(grid):
    store_kernel[grid](ONE)


@pytest.mark.parametrize("grid", [(1, 65536), (1, 1, 65536), (2**31,), (0,), (1, 0), (2**30, 4), (-1,)])
def test_a_grid_that_does_not_fit(grid):
    with pytest.raises((RuntimeError, OverflowError, ValueError), match=r"invalid argument|int|not launched"):
        store_kernel[grid](ONE)


def test_too_much_shared_memory():
    with pytest.raises(OutOfResources, match="shared memory"):
        product_kernel[(1,)](ONE.half(), SIZE=128, num_stages=8, num_warps=8)


def test_too_many_threads():
    with pytest.raises((OutOfResources, RuntimeError), match=r"threads|invalid argument"):
        store_kernel[(1,)](ONE, num_warps=64)


def test_none_where_a_kernel_wants_a_pointer():
    with pytest.raises(CompilationError):
        store_kernel[(1,)](None)


def test_tuples_with_and_without_none():
    store_both_kernel[(1,)](Pair(ONE, ONE), 3)
    store_both_kernel[(1,)](Pair(ONE, None), 3)


def test_an_argument_too_few():
    with pytest.raises(TypeError):
        store_both_kernel[(1,)](Pair(ONE, None))


def test_a_number_that_is_1_is_a_constant():
    """What only a number of the device can do fails there alone."""
    widen_kernel[(1,)](ONE.long(), 2)
    with pytest.raises(CompilationError, match="no attribute 'to'"):
        widen_kernel[(1,)](ONE.long(), 1)


def test_a_kernel_with_a_stack_is_seen():
    handle = sorted_kernel[(1,)](ONE, SIZE=16384, num_warps=1)
    assert aot.usage(handle.asm["cubin"])[1] > 0


def test_kernels_are_found_and_launches_recorded():
    here = sys.modules[__name__]
    found = pretend_driver.kernels_of([here])
    assert found == {pretend_driver.name_of(f) for name, f in vars(here).items() if name.endswith("_kernel")}
    store_kernel[(1,)](ONE)
    assert pretend_driver.name_of(store_kernel) in pretend_driver.compiled
