# mypy: ignore-errors
"""What the Triton kernels of the family share: how rows are cut into programs, directions, and the circular functions.

Arithmetic is float32 (float64 for float64). A row is brought near 1 by an exact power of two before it is squared, so
that no length overflows. Sine, cosine and arc tangent are Taylor series after a reduction, of one or two units in the
last place: Triton's own are the hardware's approximations in float32 and missing in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...triton.math import exponent_of, grow, load, no_sums, power_of_two, quotient, root
from ...triton.rows import RowBlocks, at, columns, row_blocks
from .. import problem

# On the right of a tensor: on its left the interpreters of Triton 3.7 and 3.8 make a constant of the result.
EPS = tl.constexpr(problem.EPS)
PI = tl.constexpr(math.pi)
EIGHTH = tl.constexpr(math.sqrt(2) - 1)  # tan(pi / 8)


@triton.jit
def sine_and_cosine(angle):
    """Right to a unit or two of 1 up to |angle| = 2^13, within [-1, 1] beyond; NaN at infinity."""
    terms: tl.constexpr = 8 if angle.dtype == tl.float64 else 5
    # pi / 2 in three parts, the products of the first two exact.
    high: tl.constexpr = 1.57079632673412561417 if angle.dtype == tl.float64 else 1.5703125
    middle: tl.constexpr = 6.07710050630396597660e-11 if angle.dtype == tl.float64 else 4.837512969970703125e-4
    low: tl.constexpr = 2.02226624879595063154e-21 if angle.dtype == tl.float64 else 7.54978995489188216e-8
    turns = tl.floor(angle * (2 / PI) + 0.5)
    x = ((angle - turns * high) - turns * middle) - turns * low
    x = tl.where(tl.abs(x) > 1, 0.0, x)
    square = x * x
    sine = tl.full(x.shape, 1.0, x.dtype)
    cosine = sine
    for i in tl.static_range(terms):
        sine = 1.0 - sine * square * (1.0 / ((2 * (terms - i)) * (2 * (terms - i) + 1)))
        cosine = 1.0 - cosine * square * (1.0 / ((2 * (terms - i) - 1) * (2 * (terms - i))))
    sine = sine * x
    quarter = turns - 4.0 * tl.floor(turns * 0.25)
    swap = (quarter == 1) | (quarter == 3)
    sine, cosine = tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)
    return tl.where(quarter >= 2, -sine, sine), tl.where((quarter == 1) | (quarter == 2), -cosine, cosine)


@triton.jit
def twice_arc_tangent(a, b):
    """2 atan2(a, b) of a, b >= 0."""
    terms: tl.constexpr = 20 if a.dtype == tl.float64 else 8
    below, above = tl.where(a <= b, a, b), tl.where(a <= b, b, a)
    turned = below > above * EIGHTH
    divisor = tl.where(turned, below + above, above)
    x = quotient(tl.where(turned, below - above, below), tl.where(divisor == 0, 1.0, divisor))
    square = x * x
    series = tl.full(x.shape, 1.0 / (2 * terms + 1), x.dtype)
    for i in tl.static_range(terms):
        series = 1.0 / (2 * (terms - i) - 1) - series * square
    arc = 2.0 * x * series + turned.to(x.dtype) * (PI / 2)
    return tl.where(a <= b, arc, -arc + PI)


class RowPair(NamedTuple):
    """Two matrices whose rows belong together, the first argument of the kernels that read both."""

    x: torch.Tensor  # [rows, D], as y
    y: torch.Tensor
    x_stride: int
    y_stride: int


@triton.jit
def reciprocal_length(total, exponent):
    """1 / |x| in units of 2^-exponent, of the sum of squares in units of 4^exponent; 0 where |x| < EPS."""
    norm = root(total)
    short = norm < power_of_two(-exponent, total.dtype) * EPS
    return tl.where(short, 0.0, quotient(1.0, tl.where(short, 1.0, norm)))


@triton.jit
def direction(x):
    """(x / |x|, 1 / |x| in units of 2^-exponent, exponent) of whole rows."""
    exponent = exponent_of(tl.max(tl.abs(x), axis=1))
    x = x * power_of_two(-exponent, x.dtype)[:, None]
    inverse = reciprocal_length(tl.sum(x * x, axis=1), exponent)
    if x.shape[1] == 1:  # on a line two directions are the same or opposite, without a rounding
        unit = tl.where(inverse[:, None] == 0, 0.0, quotient(x, tl.where(x == 0, 1.0, tl.abs(x))))
    else:
        unit = x * inverse[:, None]
    return unit, inverse, exponent


@triton.jit
def directions(pair, row, column, mask):
    """`direction` of the rows of x, and that of y."""
    x, x_inverse, x_exponent = direction(load(at(pair.x, row, pair.x_stride) + column, mask))
    y, y_inverse, y_exponent = direction(load(at(pair.y, row, pair.y_stride) + column, mask))
    return x, x_inverse, x_exponent, y, y_inverse, y_exponent


@triton.jit
def wide_direction(start_ptr, there, blocks):
    """(where the row starts, and the last two of `direction`) of a row in blocks of BLOCK_D."""
    total = no_sums(start_ptr, 1)
    exponent = exponent_of(total)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        x = load(start_ptr + column, mask)
        exponent, factor = grow(exponent, tl.max(tl.abs(x), axis=1))
        x = x * power_of_two(-exponent, x.dtype)[:, None]
        total = total * factor * factor + tl.sum(x * x, axis=1)
    return start_ptr, reciprocal_length(total, exponent), exponent


@triton.jit
def wide_directions(pair, row, there, blocks):
    """`wide_direction` of a row of x and of y."""
    x = wide_direction(at(pair.x, row, pair.x_stride), there, blocks)
    return x, wide_direction(at(pair.y, row, pair.y_stride), there, blocks)


@triton.jit
def unit_tile(wide, column, mask):
    """Columns of the direction of a row, from its `wide_direction`."""
    start_ptr, inverse, exponent = wide
    x = load(start_ptr + column, mask)
    return x * power_of_two(-exponent, x.dtype)[:, None] * inverse[:, None]


@triton.jit
def reciprocal(inverse, exponent):
    """1 / |x|, 0 where |x| < EPS."""
    return inverse * power_of_two(-exponent, inverse.dtype)


class SphereConfiguration(NamedTuple):
    """How rows of one width are cut into programs."""

    block_rows: int
    block_d: int
    warps: int
    wide: bool = False

    def blocks(self, dim: int) -> RowBlocks:
        return row_blocks(dim, self.block_rows, self.block_d)


FORWARD, BACKWARD = 1024, 512  # elements of each tensor held by one warp: 32 a lane, and 16
WIDE_BLOCK = 4096


def configuration(dim: int, itemsize: int, tile: int) -> SphereConfiguration:
    """A row of up to `tile` elements stays within one warp, so that its sums need neither shared memory nor a barrier.
    Longer rows take more warps, and rows past 8 tiles a loop: 16 warps have 128 registers a lane."""
    block_d = triton.next_power_of_2(dim)
    tile = tile // 2 if itemsize == 8 else tile
    if block_d <= 64:  # the numbers kept per row cost registers too: at most one row a lane
        return SphereConfiguration(min(128, 2 * tile // block_d), block_d, 4)
    if block_d <= tile:
        return SphereConfiguration(tile // block_d, block_d, 1)
    if block_d <= 8 * tile:
        return SphereConfiguration(1, block_d, min(16, block_d // (tile // 2)))
    return SphereConfiguration(1, WIDE_BLOCK, 8, wide=True)
