# mypy: ignore-errors
"""Tiles of similarities and which of their pairs count: the device functions of every kernel that walks over them.

A tile is BLOCK_ROWS rows of x by BLOCK_COLUMNS rows of ref; it is computed anew wherever it is needed. Rows and columns
past the last repeat it, so that nothing but D is padded: x and ref come in rows of STRIDE elements, zero past D.
Offsets within a tile are int32, its base is int64. The rows or columns of a tile or of a part of it are (the first,
int64; how many are left, int32, which past the last column may be below 1).

Where labels are codes each tile of rows or columns has the range of its labels, which rules out whole tiles of pairs:
rows sorted by label make a pass over positive pairs nearly free.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...triton.math import root


class TiledPairs(NamedTuple):
    """The first argument of the kernels: pointers, some of them None, and constants."""

    x: torch.Tensor  # [N, STRIDE]
    ref: torch.Tensor  # [M, STRIDE]
    square: torch.Tensor | None  # [N], the sums of squares of the rows; None for "dot"
    ref_square: torch.Tensor | None  # [M]
    label: torch.Tensor | None  # [N] int32 or int64
    ref_label: torch.Tensor | None  # [M], padded to whole tiles
    id: torch.Tensor | None  # [N] int32
    ref_id: torch.Tensor | None  # [M], padded to whole tiles
    lower: torch.Tensor | None  # [N]
    upper: torch.Tensor | None  # [N]
    range: torch.Tensor | None  # [row tiles, 2]; None: no tile is ruled out
    ref_range: torch.Tensor | None  # [column tiles, 2]
    bound: torch.Tensor | None  # [row tiles, 2]: the first and the end of the tiles of columns to walk over
    SELECT: tl.constexpr
    SIMILARITY: tl.constexpr
    STRIDE: tl.constexpr
    BLOCK_ROWS: tl.constexpr
    BLOCK_COLUMNS: tl.constexpr
    BLOCK_D: tl.constexpr
    PARTS: tl.constexpr  # slices of the columns


@triton.jit
def rows_of(pairs, row_tile, n):
    first = row_tile.to(tl.int64) * pairs.BLOCK_ROWS
    return first, tl.minimum(n - first, pairs.BLOCK_ROWS).to(tl.int32)


@triton.jit
def columns_of(pairs, column_tile, m):
    first = (tl.full([], 0, tl.int64) + column_tile) * pairs.BLOCK_COLUMNS
    left = m - first
    if m.dtype == tl.int64:  # elsewhere it fits, and a minimum costs registers
        left = tl.minimum(left, pairs.BLOCK_COLUMNS)
    return first, left.to(tl.int32)


@triton.jit
def columns_of_part(pairs, columns, part):
    first, left = columns
    width: tl.constexpr = pairs.BLOCK_COLUMNS // pairs.PARTS
    return first + part * width, left - part * width


@triton.jit
def similarities(pairs, rows, columns):
    """[BLOCK_ROWS, BLOCK_COLUMNS] in the dtype of the accumulator."""
    first_row, rows_left = rows
    first_column, columns_left = columns
    row = tl.minimum(tl.arange(0, pairs.BLOCK_ROWS), rows_left - 1)
    column = tl.minimum(tl.arange(0, pairs.BLOCK_COLUMNS), columns_left - 1)
    depth = tl.arange(0, pairs.BLOCK_D)
    x_ptrs = pairs.x + first_row * pairs.STRIDE + row[:, None] * pairs.STRIDE + depth[None, :]
    ref_ptrs = pairs.ref + first_column * pairs.STRIDE + column[None, :] * pairs.STRIDE + depth[:, None]
    dtype: tl.constexpr = tl.float64 if pairs.x.dtype.element_ty == tl.float64 else tl.float32
    u = tl.zeros([pairs.BLOCK_ROWS, pairs.BLOCK_COLUMNS], dtype)
    for start in range(0, pairs.STRIDE, pairs.BLOCK_D):
        u = tl.dot(tl.load(x_ptrs + start), tl.load(ref_ptrs + start), u, input_precision="ieee", out_dtype=dtype)
    if pairs.SIMILARITY != "dot":
        square = tl.load(pairs.square + first_row + row)[:, None]
        ref_square = tl.load(pairs.ref_square + first_column + column)[None, :]
        u = (square + ref_square) - 2 * u
        u = tl.where(u < 0, 0.0, u)  # NaN stays
        if pairs.SIMILARITY == "euclidean":
            u = root(u)
        u = 0.0 - u
    return u


@triton.jit
def _halves(tile):
    return tl.split(tl.permute(tl.reshape(tile, [tile.shape[0], 2, tile.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def _parts(tile, PARTS: tl.constexpr):
    """1, 2, 4 or 8 slices of the columns, in their order."""
    if PARTS == 1:
        parts = (tile,)
    else:
        a, b = _halves(tile)
        parts = (a, b)
        if PARTS > 2:
            a, b = _halves(parts[0])
            c, d = _halves(parts[1])
            parts = (a, b, c, d)
            if PARTS > 4:
                a, b = _halves(parts[0])
                c, d = _halves(parts[1])
                e, f = _halves(parts[2])
                g, h = _halves(parts[3])
                parts = (a, b, c, d, e, f, g, h)
    return parts


@triton.jit
def tile_of(pairs, rows, columns):
    """The similarities of a tile in PARTS slices. What is taken of a tile goes part by part: an operation on all of it
    would hold several copies of it in the registers."""
    return _parts(similarities(pairs, rows, columns), pairs.PARTS)


@triton.jit
def selected(pairs, rows, columns):
    """Which pairs of a part labels and ids let through; none past the last column."""
    first_row, rows_left = rows
    first_column, columns_left = columns
    width: tl.constexpr = pairs.BLOCK_COLUMNS // pairs.PARTS
    row = tl.minimum(tl.arange(0, pairs.BLOCK_ROWS), rows_left - 1)
    column = tl.arange(0, width)
    keep = (column < columns_left)[None, :]
    if pairs.label is not None:
        label = tl.load(pairs.label + first_row + row)[:, None]
        ref_label = tl.load(pairs.ref_label + first_column + column)[None, :]
        if pairs.label.dtype.element_ty == tl.int64:
            if pairs.SELECT == "positive":
                keep = keep & ((label & ref_label) != 0)
            elif pairs.SELECT == "negative":
                keep = keep & ((label & ref_label) == 0)
        else:
            # Labels below 0 are made to differ, so that one comparison serves the positive pairs.
            if pairs.SELECT == "positive":
                keep = tl.where(label < 0, -2, label) == ref_label
            else:
                keep = (ref_label >= 0) & (label >= 0)
                if pairs.SELECT == "negative":
                    keep = keep & (label != ref_label)
    if pairs.id is not None:
        id = tl.load(pairs.id + first_row + row)[:, None]
        ref_id = tl.load(pairs.ref_id + first_column + column)[None, :]
        keep = keep & (tl.where(id < 0, -2, id) != tl.maximum(ref_id, -1))
    return tl.broadcast_to(keep, [pairs.BLOCK_ROWS, width])


@triton.jit
def within(u, lower_ptr, upper_ptr, along, axis: tl.constexpr):
    """Which similarities lie within the bounds of their rows (axis 0) or of their columns (axis 1); NaN does."""
    first, left = along
    at = first + tl.minimum(tl.arange(0, u.shape[axis]), left - 1)
    inside = tl.full(u.shape, 1, tl.int1)
    if lower_ptr is not None:
        lower = tl.expand_dims(tl.load(lower_ptr + at), 1 - axis)
        inside = inside & ~(u <= lower)
    if upper_ptr is not None:
        upper = tl.expand_dims(tl.load(upper_ptr + at), 1 - axis)
        inside = inside & ~(u >= upper)
    return inside


@triton.jit
def part_of(pairs, parts, part: tl.constexpr, rows, columns):
    """(similarities, which of them count, first column) of a part of a tile; rows past the last repeat it, columns past
    the last do not count."""
    u = parts[part]
    columns = columns_of_part(pairs, columns, part)
    keep = selected(pairs, rows, columns)
    keep = keep & within(u, pairs.lower, pairs.upper, rows, 0)
    # What labels decide is tied to the similarities: a count of it would be taken in another layout, at twice the cost.
    return u, keep & ~((u != u) & (u == u)), columns[0]


@triton.jit
def _may_count(low, high, ref_low, ref_high, SELECT: tl.constexpr):
    """Whether tiles of rows and columns with these ranges of labels can have a pair that counts."""
    some = (low <= high) & (ref_low <= ref_high)
    if SELECT == "positive":
        some = some & (low <= ref_high) & (ref_low <= high)
    else:
        some = some & ((low != high) | (ref_low != ref_high) | (low != ref_low))
    return some


@triton.jit
def may_count(pairs, row_tile, column_tile):
    """The same of two tiles by number."""
    some = True
    if pairs.range is not None:
        row_at = pairs.range + row_tile * 2
        column_at = pairs.ref_range + column_tile * 2
        some = _may_count(
            tl.load(row_at), tl.load(row_at + 1), tl.load(column_at), tl.load(column_at + 1), pairs.SELECT
        )  # fmt: skip
    return some


@triton.jit
def share_of_program(program, pairs, n, row_tiles, column_tiles, splits):
    """(tile of rows, split, rows, first and end of its tiles of columns, which rise) of a program. Those that run
    together share a split, and with it ref in the cache."""
    row_tile = program % row_tiles
    split = program // row_tiles
    first = split * 0
    end = column_tiles
    if pairs.bound is not None:
        first = tl.load(pairs.bound + row_tile * 2)
        end = tl.load(pairs.bound + row_tile * 2 + 1)
    tiles = (end - first).to(tl.int64)
    first_tile = (first + tiles * split // splits).to(tl.int32)
    end_tile = (first + tiles * (split + 1) // splits).to(tl.int32)
    return row_tile, split, rows_of(pairs, row_tile, n), first_tile, end_tile


@triton.jit
def of_difference(h, u, SIMILARITY: tl.constexpr):
    """What the difference of two rows is multiplied by, from the gradient of their similarity; the same where it is
    their dot product."""
    if SIMILARITY == "squared_euclidean":
        h = h * 2.0
    elif SIMILARITY == "euclidean":
        # Also where no pair counts the distance may be NaN.
        h = tl.where((u == 0) | (h == 0), 0.0, h / tl.where(u == 0, 1.0, 0.0 - u))
    return h


@triton.jit
def tile_of_block(first_row_tile, first_column_tile, row_tiles):
    """(tile of rows, tile of columns) of a program that owns one tile of a block, and their numbers within it."""
    row_at = tl.program_id(0) % row_tiles
    column_at = tl.program_id(0) // row_tiles
    return first_row_tile + row_at, first_column_tile + column_at, row_at, column_at


@triton.jit
def places_of_tile(pairs, block_ptr, row_at, column_at, column_tiles):
    """Where the first part of a tile stands in a block of numbers, [.., column_tiles * BLOCK_COLUMNS]."""
    # What the compiler sees to be a multiple of a tile is stored in vectors.
    stride = column_tiles * pairs.BLOCK_COLUMNS
    block_ptr += row_at.to(tl.int64) * pairs.BLOCK_ROWS * stride + column_at * pairs.BLOCK_COLUMNS
    row = tl.arange(0, pairs.BLOCK_ROWS)[:, None]
    return block_ptr + row * stride + tl.arange(0, pairs.BLOCK_COLUMNS // pairs.PARTS)[None, :]


@triton.jit(do_not_specialize=["ref_tiles"])
def bound_kernel(
    range_ptr,  # [tiles, 2]
    ref_range_ptr,  # [ref_tiles, 2]
    bound_ptr,  # [tiles, 2]
    ref_tiles,
    SELECT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Owns a tile: the first and the end of the tiles of ref that may have a pair with it; 0 and 0 where none has."""
    tile = tl.program_id(0).to(tl.int64)
    low = tl.load(range_ptr + tile * 2)
    high = tl.load(range_ptr + tile * 2 + 1)
    first = tl.full([BLOCK], 2**31 - 1, tl.int32)
    end = tl.zeros([BLOCK], tl.int32)
    for start in range(0, ref_tiles, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < ref_tiles
        ref_low = tl.load(ref_range_ptr + at.to(tl.int64) * 2, mask=there, other=0)
        ref_high = tl.load(ref_range_ptr + at.to(tl.int64) * 2 + 1, mask=there, other=-1)
        some = there & _may_count(low, high, ref_low, ref_high, SELECT)
        first = tl.where(some, tl.minimum(first, at), first)
        end = tl.where(some, at + 1, end)
    end = tl.max(end, axis=0)
    tl.store(bound_ptr + tile * 2, tl.minimum(tl.min(first, axis=0), end))
    tl.store(bound_ptr + tile * 2 + 1, end)


@triton.jit
def square_kernel(x_ptr, square_ptr, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Owns the sum of squares of one row."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = square_ptr.dtype.element_ty
    total = tl.zeros([BLOCK_D], dtype)
    for start in range(0, STRIDE, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        value = tl.load(x_ptr + row * STRIDE + column, mask=column < STRIDE, other=0.0).to(dtype)
        total += value * value
    tl.store(square_ptr + row, tl.sum(total, axis=0))
