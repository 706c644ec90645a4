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
from .rows import at, columns, direction, program_rows, reciprocal, sine_and_cosine, unit_tile, wide_direction

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


@triton.jit(do_not_specialize=["rows"])
def vectors_kernel(
    x_ptr,  # [rows, D]
    v_ptr,  # [rows, D]
    out_ptr,  # [rows, D]
    x_stride,
    v_stride,
    rows,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_ROWS whole rows. Reads x and v once, writes the result once."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    column, mask = columns(0, there, D, BLOCK_D)
    x, _, _ = direction(load(at(x_ptr, row, x_stride) + column, mask))
    v = load(at(v_ptr, row, v_stride) + column, mask)
    exponent = exponent_of(tl.max(tl.abs(v), axis=1))
    v = v * power_of_two(-exponent, v.dtype)[:, None]
    w = v - tl.sum(x * v, axis=1)[:, None] * x
    a, b, _ = _blend(root(tl.sum(w * w, axis=1)), power_of_two(exponent, v.dtype), KIND)
    out = b[:, None] * w
    if KIND != TANGENT:
        out += a[:, None] * x
    tl.store(at(out_ptr, row, D) + column, out, mask=mask)


@triton.jit
def _wide_part(x_start, v_start, there, inverse, exponent, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(exponent of v, p in units of 2^exponent)."""
    largest = tl.zeros([1], inverse.dtype)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        own = tl.max(tl.abs(load(v_start + column, mask)), axis=1)
        largest = tl.where(own > largest, own, largest)
    v_exponent = exponent_of(largest)
    part = tl.zeros([1], inverse.dtype)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        v = load(v_start + column, mask) * power_of_two(-v_exponent, inverse.dtype)[:, None]
        part += tl.sum(v * unit_tile(x_start + column, mask, inverse, exponent), axis=1)
    return v_exponent, part


@triton.jit(do_not_specialize=["rows"])
def vectors_wide_kernel(
    x_ptr,
    v_ptr,
    out_ptr,
    x_stride,
    v_stride,
    rows,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # 1
    BLOCK_D: tl.constexpr,
):
    """Owns one row, in blocks of BLOCK_D, read again for each of its sums."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    x_start, v_start = at(x_ptr, row, x_stride), at(v_ptr, row, v_stride)
    x_inverse, x_exponent = wide_direction(x_start, there, D, BLOCK_D)
    v_exponent, part = _wide_part(x_start, v_start, there, x_inverse, x_exponent, D, BLOCK_D)
    scale = power_of_two(-v_exponent, part.dtype)
    total = no_sums(x_ptr, BLOCK_ROWS)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        x = unit_tile(x_start + column, mask, x_inverse, x_exponent)
        w = load(v_start + column, mask) * scale[:, None] - part[:, None] * x
        total += tl.sum(w * w, axis=1)
    a, b, _ = _blend(root(total), power_of_two(v_exponent, part.dtype), KIND)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        x = unit_tile(x_start + column, mask, x_inverse, x_exponent)
        w = load(v_start + column, mask) * scale[:, None] - part[:, None] * x
        tl.store(at(out_ptr, row, D) + column, a[:, None] * x + b[:, None] * w, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def vectors_backward_kernel(
    grad_ptr,  # [rows, D]
    x_ptr,  # [rows, D]
    v_ptr,  # [rows, D]
    dx_ptr,  # [rows, D], or None
    dv_ptr,  # [rows, D], or None
    x_stride,
    v_stride,
    rows,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_ROWS whole rows. Reads grad, x and v once, writes the gradients asked for once."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    column, mask = columns(0, there, D, BLOCK_D)
    x, x_inverse, x_exponent = direction(load(at(x_ptr, row, x_stride) + column, mask))
    v = load(at(v_ptr, row, v_stride) + column, mask)
    grad = load(at(grad_ptr, row, D) + column, mask)
    exponent = exponent_of(tl.max(tl.abs(v), axis=1))
    scale, unit = power_of_two(-exponent, v.dtype), power_of_two(exponent, v.dtype)
    v = v * scale[:, None]
    part = tl.sum(x * v, axis=1)
    w = v - part[:, None] * x
    length = root(tl.sum(w * w, axis=1))
    grad_x, grad_w = tl.sum(grad * x, axis=1), tl.sum(grad * w, axis=1)
    a, b, n = _blend(length, unit, KIND)
    nu = _bend(length, unit, n, a, b, grad_x, grad_w, KIND)
    tangent = grad - grad_x[:, None] * x
    if dv_ptr is not None:
        dv = (b * scale)[:, None] * tangent + nu[:, None] * w
        tl.store(at(dv_ptr, row, D) + column, dv, mask=mask)
    if dx_ptr is not None:
        dx = (a - part * b)[:, None] * tangent - (part * nu * unit + b * grad_x)[:, None] * w
        tl.store(at(dx_ptr, row, D) + column, dx * reciprocal(x_inverse, x_exponent)[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows"])
def vectors_backward_wide_kernel(
    grad_ptr,
    x_ptr,
    v_ptr,
    dx_ptr,
    dv_ptr,
    x_stride,
    v_stride,
    rows,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # 1
    BLOCK_D: tl.constexpr,
):
    """Owns one row, in blocks of BLOCK_D, read again for each of its sums."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    x_start, v_start, grad_start = at(x_ptr, row, x_stride), at(v_ptr, row, v_stride), at(grad_ptr, row, D)
    x_inverse, x_exponent = wide_direction(x_start, there, D, BLOCK_D)
    v_exponent, part = _wide_part(x_start, v_start, there, x_inverse, x_exponent, D, BLOCK_D)
    scale, unit = power_of_two(-v_exponent, part.dtype), power_of_two(v_exponent, part.dtype)
    total = no_sums(x_ptr, BLOCK_ROWS)
    grad_x, grad_w = total, total
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        x = unit_tile(x_start + column, mask, x_inverse, x_exponent)
        w = load(v_start + column, mask) * scale[:, None] - part[:, None] * x
        grad = load(grad_start + column, mask)
        total += tl.sum(w * w, axis=1)
        grad_x += tl.sum(grad * x, axis=1)
        grad_w += tl.sum(grad * w, axis=1)
    length = root(total)
    a, b, n = _blend(length, unit, KIND)
    nu = _bend(length, unit, n, a, b, grad_x, grad_w, KIND)
    x_reciprocal = reciprocal(x_inverse, x_exponent)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        x = unit_tile(x_start + column, mask, x_inverse, x_exponent)
        w = load(v_start + column, mask) * scale[:, None] - part[:, None] * x
        tangent = load(grad_start + column, mask) - grad_x[:, None] * x
        if dv_ptr is not None:
            dv = (b * scale)[:, None] * tangent + nu[:, None] * w
            tl.store(at(dv_ptr, row, D) + column, dv, mask=mask)
        if dx_ptr is not None:
            dx = (a - part * b)[:, None] * tangent - (part * nu * unit + b * grad_x)[:, None] * w
            tl.store(at(dx_ptr, row, D) + column, dx * x_reciprocal[:, None], mask=mask)
