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
from ...triton.rows import at, columns, program_rows, whole_rows
from .rows import direction, directions, reciprocal, reciprocal_length, unit_tile, wide_direction, wide_directions


@triton.jit
def _load_columns(pointer, column, D: tl.constexpr):
    """Numbers per dimension, as a row of the tile."""
    return tl.load(pointer + column, mask=column < D, other=0.0)


@triton.jit
def _plain_reciprocal(total):
    """1 / |r| of a sum of squares in units of 1."""
    return reciprocal_length(total, tl.zeros_like(total).to(tl.int32))


@triton.jit
def _mixed(wide, alpha_ptr, column, mask, D: tl.constexpr):
    """(h^, block^, alpha, r) of a tile, from the `wide_directions`."""
    h_row, block_row = wide
    h, block = unit_tile(h_row, column, mask), unit_tile(block_row, column, mask)
    alpha = _load_columns(alpha_ptr, column, D)
    return h, block, alpha, h + alpha * (block - h)


@triton.jit
def _before_direction(grad, unit, inverse, exponent):
    """The gradient of whole rows, from that of their directions."""
    return (grad - tl.sum(grad * unit, axis=1)[:, None] * unit) * reciprocal(inverse, exponent)[:, None]


@triton.jit
def _store_sums(pointer, sums, blocks):
    """Write the program's row of partial sums."""
    column = tl.arange(0, blocks.BLOCK_D)
    own = pointer + tl.program_id(0).to(tl.int64) * blocks.D
    tl.store(own + column, tl.sum(sums, axis=0), mask=column < blocks.D)


@triton.jit
def _add_to_sums(pointer, column, mask, change, D: tl.constexpr):
    """The same where it is kept in memory."""
    sums = pointer + tl.program_id(0).to(tl.int64) * D + column
    tl.store(sums, tl.load(sums, mask=mask, other=0.0) + change, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def residual_kernel(pair, alpha_ptr, out_ptr, rows, blocks):
    """Owns BLOCK_ROWS whole rows. Reads h and block, which are x and y of the pair, once, writes the result once. alpha
    is [D]."""
    row, _, column, mask = whole_rows(tl.program_id(0), rows, blocks)
    h, _, _, block, _, _ = directions(pair, row, column, mask)
    r = h + _load_columns(alpha_ptr, column, blocks.D) * (block - h)
    out = r * _plain_reciprocal(tl.sum(r * r, axis=1))[:, None]
    tl.store(at(out_ptr, row, blocks.D) + column, out, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def residual_wide_kernel(pair, alpha_ptr, out_ptr, rows, blocks):
    """Owns one row, in blocks of BLOCK_D, read three times."""
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    wide = wide_directions(pair, row, there, blocks)
    total = no_sums(pair.x, blocks.BLOCK_ROWS)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        _, _, _, r = _mixed(wide, alpha_ptr, column, mask, blocks.D)
        total += tl.sum(r * r, axis=1)
    inverse = _plain_reciprocal(total)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        _, _, _, r = _mixed(wide, alpha_ptr, column, mask, blocks.D)
        tl.store(at(out_ptr, row, blocks.D) + column, r * inverse[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows"])
def residual_backward_kernel(pair, alpha_ptr, grad_ptr, dh_ptr, dblock_ptr, dalpha_ptr, rows, blocks):
    """Every programs-th group of BLOCK_ROWS whole rows. Reads grad, h and block once, writes the gradients asked for
    once; the others are None. dalpha is [programs, D], partial sums that stay in registers until the end."""
    dalpha = tl.zeros([blocks.BLOCK_ROWS, blocks.BLOCK_D], alpha_ptr.dtype.element_ty)
    for group in range(tl.program_id(0), tl.cdiv(rows, blocks.BLOCK_ROWS), tl.num_programs(0)):
        row, _, column, mask = whole_rows(group, rows, blocks)
        h, h_inverse, h_exponent, block, block_inverse, block_exponent = directions(pair, row, column, mask)
        grad = load(at(grad_ptr, row, blocks.D) + column, mask)
        alpha = _load_columns(alpha_ptr, column, blocks.D)  # anew, from the caches: held, it would cost registers
        r = h + alpha * (block - h)
        inverse = _plain_reciprocal(tl.sum(r * r, axis=1))
        radial = tl.sum(grad * r, axis=1) * inverse * inverse
        grad = (grad - radial[:, None] * r) * inverse[:, None]
        if dalpha_ptr is not None:
            dalpha += (block - h) * grad
        if dh_ptr is not None:
            dh = _before_direction((1.0 - alpha) * grad, h, h_inverse, h_exponent)
            tl.store(at(dh_ptr, row, blocks.D) + column, dh, mask=mask)
        if dblock_ptr is not None:
            alpha = _load_columns(alpha_ptr, column, blocks.D)
            dblock = _before_direction(alpha * grad, block, block_inverse, block_exponent)
            tl.store(at(dblock_ptr, row, blocks.D) + column, dblock, mask=mask)
    if dalpha_ptr is not None:
        _store_sums(dalpha_ptr, dalpha, blocks)


@triton.jit(do_not_specialize=["rows"])
def residual_backward_wide_kernel(pair, alpha_ptr, grad_ptr, dh_ptr, dblock_ptr, dalpha_ptr, rows, blocks):
    """Every programs-th row, in blocks of BLOCK_D, read four times; dalpha, which comes as zeros, is added to."""
    for group in range(tl.program_id(0), rows, tl.num_programs(0)):
        row, there = program_rows(group, rows, blocks.BLOCK_ROWS)
        grad_start = at(grad_ptr, row, blocks.D)
        wide = wide_directions(pair, row, there, blocks)
        total = no_sums(pair.x, blocks.BLOCK_ROWS)
        radial, along_h, along_block = total, total, total
        for start in range(0, blocks.D, blocks.BLOCK_D):
            column, mask = columns(start, there, blocks)
            _, _, _, r = _mixed(wide, alpha_ptr, column, mask, blocks.D)
            total += tl.sum(r * r, axis=1)
            radial += tl.sum(load(grad_start + column, mask) * r, axis=1)
        inverse = _plain_reciprocal(total)
        radial = radial * inverse * inverse
        for start in range(0, blocks.D, blocks.BLOCK_D):
            column, mask = columns(start, there, blocks)
            h, block, alpha, r = _mixed(wide, alpha_ptr, column, mask, blocks.D)
            grad = (load(grad_start + column, mask) - radial[:, None] * r) * inverse[:, None]
            along_h += tl.sum((1.0 - alpha) * grad * h, axis=1)
            along_block += tl.sum(alpha * grad * block, axis=1)
        h_row, block_row = wide
        h_reciprocal = reciprocal(h_row[1], h_row[2])
        block_reciprocal = reciprocal(block_row[1], block_row[2])
        for start in range(0, blocks.D, blocks.BLOCK_D):
            column, mask = columns(start, there, blocks)
            h, block, alpha, r = _mixed(wide, alpha_ptr, column, mask, blocks.D)
            grad = (load(grad_start + column, mask) - radial[:, None] * r) * inverse[:, None]
            if dh_ptr is not None:
                dh = ((1.0 - alpha) * grad - along_h[:, None] * h) * h_reciprocal[:, None]
                tl.store(at(dh_ptr, row, blocks.D) + column, dh, mask=mask)
            if dblock_ptr is not None:
                dblock = (alpha * grad - along_block[:, None] * block) * block_reciprocal[:, None]
                tl.store(at(dblock_ptr, row, blocks.D) + column, dblock, mask=mask)
            if dalpha_ptr is not None:
                _add_to_sums(dalpha_ptr, column, mask, (block - h) * grad, blocks.D)
        tl.debug_barrier()  # the next row adds to what other threads may have written


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_kernel(x_ptr, scale_ptr, out_ptr, x_stride, scale_rows, rows, blocks):
    """Owns BLOCK_ROWS whole rows. Reads x once, writes the result once; the scale [scale_rows, D] comes from the
    caches."""
    row, _, column, mask = whole_rows(tl.program_id(0), rows, blocks)
    x, _, _ = direction(load(at(x_ptr, row, x_stride) + column, mask))
    # One remainder of 64 bits a program.
    first = (tl.program_id(0).to(tl.int64) * blocks.BLOCK_ROWS % scale_rows).to(tl.int32)
    scale_row = (first + tl.arange(0, blocks.BLOCK_ROWS)) % scale_rows
    scale = tl.load(scale_ptr + (scale_row.to(tl.int64) * blocks.D)[:, None] + column, mask=mask, other=0.0)
    tl.store(at(out_ptr, row, blocks.D) + column, x * scale, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_wide_kernel(x_ptr, scale_ptr, out_ptr, x_stride, scale_rows, rows, blocks):
    """Owns one row, in blocks of BLOCK_D, read twice."""
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    x_row = wide_direction(at(x_ptr, row, x_stride), there, blocks)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        scale = tl.load(at(scale_ptr, row % scale_rows, blocks.D) + column, mask=mask, other=0.0)
        tl.store(at(out_ptr, row, blocks.D) + column, unit_tile(x_row, column, mask) * scale, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_backward_kernel(
    x_ptr, scale_ptr, grad_ptr, dx_ptr, dscale_ptr, x_stride, scale_rows, rows, blocks
):  # fmt: skip
    """Owns one row of the scale and of those rows of x that take it every so many groups of BLOCK_ROWS. Reads grad and
    x once, writes dx once. dscale is [programs / scale_rows, scale_rows, D], partial sums that stay in registers until
    the end. What is not asked for is None."""
    own = tl.program_id(0) % scale_rows
    shares = tl.num_programs(0) // scale_rows
    every = tl.arange(0, blocks.BLOCK_D)[None, :]
    scale = _load_columns(scale_ptr + own.to(tl.int64) * blocks.D, every, blocks.D)
    dscale = tl.zeros([blocks.BLOCK_ROWS, blocks.BLOCK_D], scale.dtype)
    rounds = rows // scale_rows
    for group in range(tl.program_id(0) // scale_rows, tl.cdiv(rounds, blocks.BLOCK_ROWS), shares):
        turn, _, column, mask = whole_rows(group, rounds, blocks)
        row = turn * scale_rows + own
        x, inverse, exponent = direction(load(at(x_ptr, row, x_stride) + column, mask))
        grad = load(at(grad_ptr, row, blocks.D) + column, mask)
        if dscale_ptr is not None:
            dscale += grad * x
        if dx_ptr is not None:
            dx = _before_direction(grad * scale, x, inverse, exponent)
            tl.store(at(dx_ptr, row, blocks.D) + column, dx, mask=mask)
    if dscale_ptr is not None:
        _store_sums(dscale_ptr, dscale, blocks)


@triton.jit(do_not_specialize=["rows"])
def scaled_unit_norm_backward_wide_kernel(
    x_ptr, scale_ptr, grad_ptr, dx_ptr, dscale_ptr, x_stride, scale_rows, rows, blocks
):  # fmt: skip
    """The same of wide rows, in blocks of BLOCK_D, read three times; dscale, which comes as zeros, is added to."""
    own = tl.program_id(0) % scale_rows
    shares = tl.num_programs(0) // scale_rows
    for turn in range(tl.program_id(0) // scale_rows, rows // scale_rows, shares):
        row, there = program_rows(own.to(tl.int64) + turn * scale_rows, rows, blocks.BLOCK_ROWS)
        grad_start = at(grad_ptr, row, blocks.D)
        x_row = wide_direction(at(x_ptr, row, x_stride), there, blocks)
        along = no_sums(x_ptr, blocks.BLOCK_ROWS)
        for start in range(0, blocks.D, blocks.BLOCK_D):
            column, mask = columns(start, there, blocks)
            x = unit_tile(x_row, column, mask)
            scale = _load_columns(scale_ptr + own.to(tl.int64) * blocks.D, column, blocks.D)
            along += tl.sum(load(grad_start + column, mask) * scale * x, axis=1)
        factor = reciprocal(x_row[1], x_row[2])
        for start in range(0, blocks.D, blocks.BLOCK_D):
            column, mask = columns(start, there, blocks)
            x = unit_tile(x_row, column, mask)
            grad = load(grad_start + column, mask)
            if dx_ptr is not None:
                scale = _load_columns(scale_ptr + own.to(tl.int64) * blocks.D, column, blocks.D)
                dx = (grad * scale - along[:, None] * x) * factor[:, None]
                tl.store(at(dx_ptr, row, blocks.D) + column, dx, mask=mask)
            if dscale_ptr is not None:
                _add_to_sums(dscale_ptr, column, mask, grad * x, blocks.D)
        tl.debug_barrier()  # the next row adds to what other threads may have written
