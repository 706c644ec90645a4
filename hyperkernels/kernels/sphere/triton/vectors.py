# mypy: ignore-errors
"""Tangent part, exponential map and retraction of the vectors v at the points x, and their derivatives.

With p = x^ . v, w = v - p x^ and n = |w| each is A(n) x^ + B(n) w, and with nu = (A' g . x^ + B' g . w) / n

    dv = B g_ + nu w,    dx^ = (A - p B) g_ - (p nu + B g . x^) w,    g_ = g - (g . x^) x^.

v comes in units of 2^exponent as well, so that a long vector retracts to its direction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...triton.math import exponent_of, load, no_sums, power_of_two, quotient, root
from ...triton.rows import at, columns, program_rows, whole_rows
from .rows import direction, reciprocal, sine_and_cosine, unit_tile, wide_direction

TANGENT, EXP, RETRACT = (tl.constexpr(i) for i in range(3))
KINDS = {"tangent": TANGENT.value, "exp": EXP.value, "retract": RETRACT.value}
LONG = tl.constexpr(2.0**60)  # n whose square has lost the 1 beside it


@triton.jit
def _blend(length, unit, KIND: tl.constexpr):
    """(A, B unit, n) of n = length * unit."""
    n = length * unit
    if KIND == TANGENT:
        a, b = tl.zeros_like(n), unit
    elif KIND == EXP:
        sine, a = sine_and_cosine(n)
        b = tl.where(length == 0, unit, quotient(sine, tl.where(length == 0, 1.0, length)))
    else:
        long = n > LONG
        short = tl.where(long, 0.0, n)
        a = quotient(1.0, tl.where(long, n, root(1.0 + short * short)))
        b = tl.where(long, quotient(1.0, tl.where(long, length, 1.0)), a * unit)
    return a, b, n


@triton.jit
def _bend(length, unit, n, a, b, grad_x, grad_w, KIND: tl.constexpr):
    """nu unit, with b = B unit and grad_w = g . w / unit."""
    if KIND == TANGENT:
        nu = tl.zeros_like(n)
    elif KIND == EXP:
        # (cos n - sin n / n) / n^2, below 1 by its series.
        terms: tl.constexpr = 9 if n.dtype == tl.float64 else 5
        near = n < 1
        square = tl.where(near, n * n, 0.0)
        series = tl.full(n.shape, 1.0, n.dtype)
        for i in tl.static_range(terms):
            series = 1.0 - series * square * (1.0 / ((2 * (terms - i)) * (2 * (terms - i) + 3)))
        far = quotient(a - quotient(b, unit), tl.where(near, 1.0, length * length))
        near_side = series * (-1.0 / 3) * (unit * grad_w) * unit  # in this order: the square of the unit may overflow
        nu = tl.where(length == 0, 0.0, tl.where(near, near_side, far * grad_w) - b * grad_x)
    else:
        nu = -b * a * (a * grad_x + b * grad_w)
    return nu


@triton.jit
def _read(pair, row, column, mask):
    """(the three of `direction` of the rows of x; exponent of v, p and w in units of 2^exponent) of whole rows."""
    x, x_inverse, x_exponent = direction(load(at(pair.x, row, pair.x_stride) + column, mask))
    v = load(at(pair.y, row, pair.y_stride) + column, mask)
    exponent = exponent_of(tl.max(tl.abs(v), axis=1))
    v = v * power_of_two(-exponent, v.dtype)[:, None]
    part = tl.sum(x * v, axis=1)
    return x, x_inverse, x_exponent, exponent, part, v - part[:, None] * x


@triton.jit
def _read_wide(pair, row, there, blocks):
    """(`wide_direction` of x; where the row of v starts, the exponent of v, p in units of 2^exponent) of one row."""
    x_row = wide_direction(at(pair.x, row, pair.x_stride), there, blocks)
    v_start = at(pair.y, row, pair.y_stride)
    largest = no_sums(pair.x, 1)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        own = tl.max(tl.abs(load(v_start + column, mask)), axis=1)
        largest = tl.where(own > largest, own, largest)
    exponent = exponent_of(largest)
    part = no_sums(pair.x, 1)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        v = load(v_start + column, mask) * power_of_two(-exponent, part.dtype)[:, None]
        part += tl.sum(v * unit_tile(x_row, column, mask), axis=1)
    return x_row, (v_start, exponent, part)


@triton.jit
def _wide_tiles(x_row, v_row, column, mask):
    """(x^, w in units of 2^exponent)."""
    v_start, exponent, part = v_row
    x = unit_tile(x_row, column, mask)
    return x, load(v_start + column, mask) * power_of_two(-exponent, part.dtype)[:, None] - part[:, None] * x


@triton.jit(do_not_specialize=["rows"])
def vectors_kernel(pair, out_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns BLOCK_ROWS whole rows. Reads x and v once, writes the result once."""
    row, _, column, mask = whole_rows(tl.program_id(0), rows, blocks)
    x, _, _, exponent, _, w = _read(pair, row, column, mask)
    a, b, _ = _blend(root(tl.sum(w * w, axis=1)), power_of_two(exponent, w.dtype), KIND)
    out = b[:, None] * w
    if KIND != TANGENT:
        out += a[:, None] * x
    tl.store(at(out_ptr, row, blocks.D) + column, out, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def vectors_wide_kernel(pair, out_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns one row, in blocks of BLOCK_D, read again for each of its sums."""
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    x_row, v_row = _read_wide(pair, row, there, blocks)
    total = no_sums(pair.x, blocks.BLOCK_ROWS)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        _, w = _wide_tiles(x_row, v_row, column, mask)
        total += tl.sum(w * w, axis=1)
    a, b, _ = _blend(root(total), power_of_two(v_row[1], total.dtype), KIND)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        x, w = _wide_tiles(x_row, v_row, column, mask)
        tl.store(at(out_ptr, row, blocks.D) + column, a[:, None] * x + b[:, None] * w, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def vectors_backward_kernel(pair, grad_ptr, dx_ptr, dv_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns BLOCK_ROWS whole rows. Reads grad, x and v once, writes the gradients asked for once; the others are
    None."""
    row, _, column, mask = whole_rows(tl.program_id(0), rows, blocks)
    x, x_inverse, x_exponent, exponent, part, w = _read(pair, row, column, mask)
    grad = load(at(grad_ptr, row, blocks.D) + column, mask)
    scale, unit = power_of_two(-exponent, w.dtype), power_of_two(exponent, w.dtype)
    length = root(tl.sum(w * w, axis=1))
    grad_x, grad_w = tl.sum(grad * x, axis=1), tl.sum(grad * w, axis=1)
    a, b, n = _blend(length, unit, KIND)
    nu = _bend(length, unit, n, a, b, grad_x, grad_w, KIND)
    tangent = grad - grad_x[:, None] * x
    if dv_ptr is not None:
        dv = (b * scale)[:, None] * tangent + nu[:, None] * w
        tl.store(at(dv_ptr, row, blocks.D) + column, dv, mask=mask)
    if dx_ptr is not None:
        dx = (a - part * b)[:, None] * tangent - (part * nu * unit + b * grad_x)[:, None] * w
        tl.store(at(dx_ptr, row, blocks.D) + column, dx * reciprocal(x_inverse, x_exponent)[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows"])
def vectors_backward_wide_kernel(pair, grad_ptr, dx_ptr, dv_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns one row, in blocks of BLOCK_D, read again for each of its sums."""
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    grad_start = at(grad_ptr, row, blocks.D)
    x_row, v_row = _read_wide(pair, row, there, blocks)
    _, exponent, part = v_row
    scale, unit = power_of_two(-exponent, part.dtype), power_of_two(exponent, part.dtype)
    total = no_sums(pair.x, blocks.BLOCK_ROWS)
    grad_x, grad_w = total, total
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        x, w = _wide_tiles(x_row, v_row, column, mask)
        grad = load(grad_start + column, mask)
        total += tl.sum(w * w, axis=1)
        grad_x += tl.sum(grad * x, axis=1)
        grad_w += tl.sum(grad * w, axis=1)
    length = root(total)
    a, b, n = _blend(length, unit, KIND)
    nu = _bend(length, unit, n, a, b, grad_x, grad_w, KIND)
    x_reciprocal = reciprocal(x_row[1], x_row[2])
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        x, w = _wide_tiles(x_row, v_row, column, mask)
        tangent = load(grad_start + column, mask) - grad_x[:, None] * x
        if dv_ptr is not None:
            dv = (b * scale)[:, None] * tangent + nu[:, None] * w
            tl.store(at(dv_ptr, row, blocks.D) + column, dv, mask=mask)
        if dx_ptr is not None:
            dx = (a - part * b)[:, None] * tangent - (part * nu * unit + b * grad_x)[:, None] * w
            tl.store(at(dx_ptr, row, blocks.D) + column, dx * x_reciprocal[:, None], mask=mask)
