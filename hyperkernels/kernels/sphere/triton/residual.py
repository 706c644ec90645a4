# mypy: ignore-errors
"""The normalised residual r / |r|, r = h^ + alpha (block^ - h^), and scale * x^, with their derivatives.

With g_r = (g - (g . out) out) / |r| the gradients before the projection of each direction are (1 - alpha) g_r and
alpha g_r, and that of alpha is the sum over the rows of (block^ - h^) g_r. The programs of a backward pass go over the
rows in steps, and each leaves one row of partial sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...triton.math import load, no_sums
from .rows import at, columns, direction, program_rows, reciprocal, reciprocal_length, unit_tile, wide_direction


@triton.jit
def _load_columns(pointer, column, D: tl.constexpr):
    """Numbers per dimension, as a row of the tile."""
    return tl.load(pointer + column, mask=column < D, other=0.0)


@triton.jit
def _plain_reciprocal(total):
    """1 / |r| of a sum of squares in units of 1."""
    return reciprocal_length(total, tl.zeros_like(total).to(tl.int32))


@triton.jit(do_not_specialize=["rows"])
def residual_kernel(
    h_ptr,  # [rows, D]
    block_ptr,  # [rows, D]
    alpha_ptr,  # [D]
    out_ptr,  # [rows, D]
    h_stride,
    block_stride,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_ROWS whole rows. Reads h and block once, writes the result once."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    column, mask = columns(0, there, D, BLOCK_D)
    h, _, _ = direction(load(at(h_ptr, row, h_stride) + column, mask))
    block, _, _ = direction(load(at(block_ptr, row, block_stride) + column, mask))
    r = h + _load_columns(alpha_ptr, column, D) * (block - h)
    out = r * _plain_reciprocal(tl.sum(r * r, axis=1))[:, None]
    tl.store(at(out_ptr, row, D) + column, out, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def residual_wide_kernel(
    h_ptr,
    block_ptr,
    alpha_ptr,
    out_ptr,
    h_stride,
    block_stride,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # 1
    BLOCK_D: tl.constexpr,
):
    """Owns one row, in blocks of BLOCK_D, read three times."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    h_start, block_start = at(h_ptr, row, h_stride), at(block_ptr, row, block_stride)
    h_inverse, h_exponent = wide_direction(h_start, there, D, BLOCK_D)
    block_inverse, block_exponent = wide_direction(block_start, there, D, BLOCK_D)
    total = no_sums(h_ptr, BLOCK_ROWS)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        h = unit_tile(h_start + column, mask, h_inverse, h_exponent)
        block = unit_tile(block_start + column, mask, block_inverse, block_exponent)
        r = h + _load_columns(alpha_ptr, column, D) * (block - h)
        total += tl.sum(r * r, axis=1)
    inverse = _plain_reciprocal(total)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        h = unit_tile(h_start + column, mask, h_inverse, h_exponent)
        block = unit_tile(block_start + column, mask, block_inverse, block_exponent)
        r = h + _load_columns(alpha_ptr, column, D) * (block - h)
        tl.store(at(out_ptr, row, D) + column, r * inverse[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows"])
def residual_backward_kernel(
    grad_ptr,  # [rows, D]
    h_ptr,  # [rows, D]
    block_ptr,  # [rows, D]
    alpha_ptr,  # [D]
    dh_ptr,  # [rows, D], or None
    dblock_ptr,  # [rows, D], or None
    dalpha_ptr,  # [programs, D] partial sums, or None
    h_stride,
    block_stride,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Every programs-th group of BLOCK_ROWS whole rows. Reads grad, h and block once, writes the gradients asked for
    once; the sums for alpha stay in registers."""
    dalpha = tl.zeros([BLOCK_ROWS, BLOCK_D], alpha_ptr.dtype.element_ty)
    for group in range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row, there = program_rows(group, rows, BLOCK_ROWS)
        column, mask = columns(0, there, D, BLOCK_D)
        h, h_inverse, h_exponent = direction(load(at(h_ptr, row, h_stride) + column, mask))
        block, block_inverse, block_exponent = direction(load(at(block_ptr, row, block_stride) + column, mask))
        grad = load(at(grad_ptr, row, D) + column, mask)
        alpha = _load_columns(alpha_ptr, column, D)  # anew, from the caches: held, it would cost registers
        r = h + alpha * (block - h)
        inverse = _plain_reciprocal(tl.sum(r * r, axis=1))
        radial = tl.sum(grad * r, axis=1) * inverse * inverse
        grad = (grad - radial[:, None] * r) * inverse[:, None]
        if dalpha_ptr is not None:
            dalpha += (block - h) * grad
        if dh_ptr is not None:
            dh = (1.0 - alpha) * grad
            dh = (dh - tl.sum(dh * h, axis=1)[:, None] * h) * reciprocal(h_inverse, h_exponent)[:, None]
            tl.store(at(dh_ptr, row, D) + column, dh, mask=mask)
        if dblock_ptr is not None:
            alpha = _load_columns(alpha_ptr, column, D)
            dblock = alpha * grad
            along = tl.sum(dblock * block, axis=1)[:, None]
            dblock = (dblock - along * block) * reciprocal(block_inverse, block_exponent)[:, None]
            tl.store(at(dblock_ptr, row, D) + column, dblock, mask=mask)
    if dalpha_ptr is not None:
        column = tl.arange(0, BLOCK_D)
        tl.store(dalpha_ptr + tl.program_id(0).to(tl.int64) * D + column, tl.sum(dalpha, axis=0), mask=column < D)


@triton.jit(do_not_specialize=["rows"])
def residual_backward_wide_kernel(
    grad_ptr,
    h_ptr,
    block_ptr,
    alpha_ptr,
    dh_ptr,
    dblock_ptr,
    dalpha_ptr,  # zeros
    h_stride,
    block_stride,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # 1
    BLOCK_D: tl.constexpr,
):
    """Every programs-th row, in blocks of BLOCK_D, read four times; the sums for alpha are kept in the program's own
    row of partial sums."""
    for group in range(tl.program_id(0), rows, tl.num_programs(0)):
        row, there = program_rows(group, rows, BLOCK_ROWS)
        h_start, block_start = at(h_ptr, row, h_stride), at(block_ptr, row, block_stride)
        grad_start = at(grad_ptr, row, D)
        h_inverse, h_exponent = wide_direction(h_start, there, D, BLOCK_D)
        block_inverse, block_exponent = wide_direction(block_start, there, D, BLOCK_D)
        total = no_sums(h_ptr, BLOCK_ROWS)
        radial, along_h, along_block = total, total, total
        for start in range(0, D, BLOCK_D):
            column, mask = columns(start, there, D, BLOCK_D)
            h = unit_tile(h_start + column, mask, h_inverse, h_exponent)
            block = unit_tile(block_start + column, mask, block_inverse, block_exponent)
            r = h + _load_columns(alpha_ptr, column, D) * (block - h)
            total += tl.sum(r * r, axis=1)
            radial += tl.sum(load(grad_start + column, mask) * r, axis=1)
        inverse = _plain_reciprocal(total)
        radial = radial * inverse * inverse
        for start in range(0, D, BLOCK_D):
            column, mask = columns(start, there, D, BLOCK_D)
            h = unit_tile(h_start + column, mask, h_inverse, h_exponent)
            block = unit_tile(block_start + column, mask, block_inverse, block_exponent)
            alpha = _load_columns(alpha_ptr, column, D)
            r = h + alpha * (block - h)
            grad = (load(grad_start + column, mask) - radial[:, None] * r) * inverse[:, None]
            along_h += tl.sum((1.0 - alpha) * grad * h, axis=1)
            along_block += tl.sum(alpha * grad * block, axis=1)
        h_reciprocal = reciprocal(h_inverse, h_exponent)
        block_reciprocal = reciprocal(block_inverse, block_exponent)
        for start in range(0, D, BLOCK_D):
            column, mask = columns(start, there, D, BLOCK_D)
            h = unit_tile(h_start + column, mask, h_inverse, h_exponent)
            block = unit_tile(block_start + column, mask, block_inverse, block_exponent)
            alpha = _load_columns(alpha_ptr, column, D)
            r = h + alpha * (block - h)
            grad = (load(grad_start + column, mask) - radial[:, None] * r) * inverse[:, None]
            if dh_ptr is not None:
                dh = ((1.0 - alpha) * grad - along_h[:, None] * h) * h_reciprocal[:, None]
                tl.store(at(dh_ptr, row, D) + column, dh, mask=mask)
            if dblock_ptr is not None:
                dblock = (alpha * grad - along_block[:, None] * block) * block_reciprocal[:, None]
                tl.store(at(dblock_ptr, row, D) + column, dblock, mask=mask)
            if dalpha_ptr is not None:
                sums = dalpha_ptr + tl.program_id(0).to(tl.int64) * D + column
                tl.store(sums, tl.load(sums, mask=mask, other=0.0) + (block - h) * grad, mask=mask)
        tl.debug_barrier()  # the next row adds to what other threads may have written


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_kernel(
    x_ptr,  # [rows, D]
    scale_ptr,  # [scale_rows, D]
    out_ptr,  # [rows, D]
    x_stride,
    scale_rows,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_ROWS whole rows. Reads x once, writes the result once; the scale comes from the caches."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    column, mask = columns(0, there, D, BLOCK_D)
    x, _, _ = direction(load(at(x_ptr, row, x_stride) + column, mask))
    # One remainder of 64 bits a program.
    first = (tl.program_id(0).to(tl.int64) * BLOCK_ROWS % scale_rows).to(tl.int32)
    scale_row = (first + tl.arange(0, BLOCK_ROWS)) % scale_rows
    scale = tl.load(scale_ptr + (scale_row.to(tl.int64) * D)[:, None] + column, mask=mask, other=0.0)
    tl.store(at(out_ptr, row, D) + column, x * scale, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_wide_kernel(
    x_ptr,
    scale_ptr,
    out_ptr,
    x_stride,
    scale_rows,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # 1
    BLOCK_D: tl.constexpr,
):
    """Owns one row, in blocks of BLOCK_D, read twice."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    x_start = at(x_ptr, row, x_stride)
    inverse, exponent = wide_direction(x_start, there, D, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        column, mask = columns(start, there, D, BLOCK_D)
        scale = tl.load(at(scale_ptr, row % scale_rows, D) + column, mask=mask, other=0.0)
        x = unit_tile(x_start + column, mask, inverse, exponent)
        tl.store(at(out_ptr, row, D) + column, x * scale, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_backward_kernel(
    grad_ptr,  # [rows, D]
    x_ptr,  # [rows, D]
    scale_ptr,  # [scale_rows, D]
    dx_ptr,  # [rows, D], or None
    dscale_ptr,  # [programs / scale_rows, scale_rows, D] partial sums, or None
    x_stride,
    scale_rows,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns one row of the scale and of those rows of x that take it every so many groups of BLOCK_ROWS. Reads grad and
    x once, writes dx once; the sums for the scale stay in registers."""
    own = tl.program_id(0) % scale_rows
    shares = tl.num_programs(0) // scale_rows
    every = tl.arange(0, BLOCK_D)[None, :]
    scale = _load_columns(scale_ptr + own.to(tl.int64) * D, every, D)
    dscale = tl.zeros([BLOCK_ROWS, BLOCK_D], scale.dtype)
    rounds = rows // scale_rows
    for group in range(tl.program_id(0) // scale_rows, tl.cdiv(rounds, BLOCK_ROWS), shares):
        turn, there = program_rows(group, rounds, BLOCK_ROWS)
        row = turn * scale_rows + own
        column, mask = columns(0, there, D, BLOCK_D)
        x, inverse, exponent = direction(load(at(x_ptr, row, x_stride) + column, mask))
        grad = load(at(grad_ptr, row, D) + column, mask)
        if dscale_ptr is not None:
            dscale += grad * x
        if dx_ptr is not None:
            dx = grad * scale
            dx = (dx - tl.sum(dx * x, axis=1)[:, None] * x) * reciprocal(inverse, exponent)[:, None]
            tl.store(at(dx_ptr, row, D) + column, dx, mask=mask)
    if dscale_ptr is not None:
        column = tl.arange(0, BLOCK_D)
        tl.store(dscale_ptr + tl.program_id(0).to(tl.int64) * D + column, tl.sum(dscale, axis=0), mask=column < D)


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_backward_wide_kernel(
    grad_ptr,
    x_ptr,
    scale_ptr,
    dx_ptr,
    dscale_ptr,  # zeros
    x_stride,
    scale_rows,
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # 1
    BLOCK_D: tl.constexpr,
):
    """The same of wide rows, in blocks of BLOCK_D, read three times; the sums for the scale are kept in the program's
    own row of partial sums."""
    own = tl.program_id(0) % scale_rows
    shares = tl.num_programs(0) // scale_rows
    for turn in range(tl.program_id(0) // scale_rows, rows // scale_rows, shares):
        row, there = program_rows(own.to(tl.int64) + turn * scale_rows, rows, BLOCK_ROWS)
        x_start, grad_start = at(x_ptr, row, x_stride), at(grad_ptr, row, D)
        inverse, exponent = wide_direction(x_start, there, D, BLOCK_D)
        along = no_sums(x_ptr, BLOCK_ROWS)
        for start in range(0, D, BLOCK_D):
            column, mask = columns(start, there, D, BLOCK_D)
            x = unit_tile(x_start + column, mask, inverse, exponent)
            scale = _load_columns(scale_ptr + own.to(tl.int64) * D, column, D)
            along += tl.sum(load(grad_start + column, mask) * scale * x, axis=1)
        factor = reciprocal(inverse, exponent)
        for start in range(0, D, BLOCK_D):
            column, mask = columns(start, there, D, BLOCK_D)
            x = unit_tile(x_start + column, mask, inverse, exponent)
            grad = load(grad_start + column, mask)
            if dx_ptr is not None:
                scale = _load_columns(scale_ptr + own.to(tl.int64) * D, column, D)
                dx = (grad * scale - along[:, None] * x) * factor[:, None]
                tl.store(at(dx_ptr, row, D) + column, dx, mask=mask)
            if dscale_ptr is not None:
                sums = dscale_ptr + tl.program_id(0).to(tl.int64) * D + column
                tl.store(sums, tl.load(sums, mask=mask, other=0.0) + grad * x, mask=mask)
        tl.debug_barrier()  # the next row adds to what other threads may have written
