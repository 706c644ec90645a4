# mypy: ignore-errors
"""Pairs by bins of their similarity in Triton, each row with its own rising edges.

A program goes through the bins of its rows some at a time, so that their numbers stay in registers; the similarities
are computed again for every such group. The gradient of a pair is that of the sum of its bin: it goes through a bounded
workspace into two products, in float32, since bins of opposite signs cancel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from . import triton_kernels
from .reference import Problem
from .triton_kernels import Tiles, columns_of_split, may_count, parts_of, similarities, which_count
from .triton_order import (
    WORKSPACE,
    best_of,
    key_dtype,
    lowest,
    merged,
    narrow,
    numbers,
    ordered,
    prepared,
    rows_of,
    splits_within,
)

_LARGEST_GROUP = 8  # bins of a row in registers


@triton.jit
def _edges_of(offset_ptr, first_row, row, there, edges):
    """(first edge, number of edges) of rows; whatever the offsets say, they lie within the edges."""
    begin = tl.load(offset_ptr + first_row + row, mask=there, other=0)
    last = tl.load(offset_ptr + first_row + row + 1, mask=there, other=0)
    begin = tl.minimum(tl.maximum(begin, 0), edges)
    return begin, (tl.minimum(tl.maximum(last, begin), edges) - begin).to(tl.int32)


@triton.jit
def _at_most(u, edge_ptr, begin, own, index):
    """Whether similarities are at most the edge of that index of their rows; past the last edge all are, NaN too."""
    edge = tl.load(edge_ptr + begin + index, mask=index < own, other=0.0)
    return (u <= edge[:, None]) | (index >= own)[:, None]


@triton.jit(do_not_specialize=["n", "m", "row_tiles", "column_tiles", "splits", "edges"])
def bin_kernel(
    x_ptr,  # the first ten as of similarities and which_count
    ref_ptr,
    square_ptr,
    ref_square_ptr,
    label_ptr,
    ref_label_ptr,
    id_ptr,
    ref_id_ptr,
    lower_ptr,
    upper_ptr,
    range_ptr,  # as in may_count
    ref_range_ptr,
    bound_ptr,  # as in columns_of_split
    edge_ptr,  # [edges]
    offset_ptr,  # [n + 1]
    count_ptr,  # [splits, edges + n] int64, as the three below
    sum_ptr,
    key_ptr,
    column_ptr,  # int32
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    edges,
    GROUP: tl.constexpr,
    SELECT: tl.constexpr,
    SIMILARITY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Owns the bins of a tile of rows within one split of the columns."""
    WIDTH: tl.constexpr = BLOCK_COLUMNS // PARTS
    row_tile, first_row, rows_left, split = rows_of(tl.program_id(0), row_tiles, n, BLOCK_ROWS)
    first, end = columns_of_split(bound_ptr, row_tile, split, splits, column_tiles)
    zero = tl.full([], 0, tl.int32)
    row = tl.arange(0, BLOCK_ROWS)
    there = row < rows_left
    begin, own = _edges_of(offset_ptr, first_row, row, there, edges)
    place = tl.arange(0, GROUP)[None, :]
    key_type: tl.constexpr = key_ptr.dtype.element_ty
    for group in range(0, tl.max(own, axis=0) + 1, GROUP):
        counts = tl.zeros([BLOCK_ROWS, GROUP], tl.int32)
        sums = tl.zeros([BLOCK_ROWS, GROUP], sum_ptr.dtype.element_ty)
        keys = tl.zeros([BLOCK_ROWS, GROUP], key_type) + lowest(key_type)
        columns = tl.full([BLOCK_ROWS, GROUP], -1, tl.int32)
        for step in range(first, end):
            tile = zero + step
            if may_count(range_ptr, ref_range_ptr, row_tile, tile, SELECT):
                first_column = tile.to(tl.int64) * BLOCK_COLUMNS
                columns_left = (m - first_column).to(tl.int32)
                parts = parts_of(
                    similarities(
                        x_ptr, ref_ptr, square_ptr, ref_square_ptr, first_row, first_column, rows_left, columns_left,
                        SIMILARITY, STRIDE, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_D,
                    ),
                    PARTS,
                )  # fmt: skip
                for part in tl.static_range(PARTS):
                    u = parts[part]
                    rest = which_count(
                        u, label_ptr, ref_label_ptr, id_ptr, ref_id_ptr, lower_ptr, upper_ptr, first_row,
                        first_column + part * WIDTH, rows_left, columns_left - part * WIDTH, SELECT,
                    )  # fmt: skip
                    column = tile * BLOCK_COLUMNS + part * WIDTH + tl.arange(0, WIDTH)[None, :]
                    if group > 0:
                        rest = rest & ~_at_most(u, edge_ptr, begin, own, group - 1)
                    for b in range(GROUP):
                        here = rest & _at_most(u, edge_ptr, begin, own, group + b)
                        rest = rest & ~here
                        best, at = best_of(ordered(u, here), column)
                        is_bin = place == b
                        counts += tl.where(is_bin, tl.sum(here.to(tl.int32), axis=1)[:, None], 0)
                        sums += tl.where(is_bin, tl.sum(tl.where(here, u, 0.0), axis=1)[:, None], 0.0)
                        better = is_bin & (best[:, None] > keys)
                        keys = tl.where(better, best[:, None], keys)
                        columns = tl.where(better, at[:, None], columns)
        at_bin = begin[:, None] + first_row + row[:, None] + group + place
        at_bin += split.to(tl.int64) * (edges + n)
        mask = there[:, None] & (group + place <= own[:, None])
        tl.store(count_ptr + at_bin, counts.to(tl.int64), mask=mask)
        tl.store(sum_ptr + at_bin, sums, mask=mask)
        tl.store(key_ptr + at_bin, keys, mask=mask)
        tl.store(column_ptr + at_bin, columns, mask=mask)


@triton.jit(do_not_specialize=["n", "m", "first_tile_of_rows", "first_tile_of_columns", "row_tiles", "chunk", "edges"])
def weight_kernel(
    x_ptr,
    ref_ptr,
    square_ptr,
    ref_square_ptr,
    label_ptr,
    ref_label_ptr,
    id_ptr,
    ref_id_ptr,
    lower_ptr,
    upper_ptr,
    range_ptr,
    ref_range_ptr,
    edge_ptr,  # [edges]
    offset_ptr,  # [n + 1]
    d_sum_ptr,  # [edges + n]
    h_ptr,  # [row_tiles * BLOCK_ROWS, chunk]
    n,
    m,
    first_tile_of_rows,
    first_tile_of_columns,
    row_tiles,
    chunk,
    edges,
    SELECT: tl.constexpr,
    SIMILARITY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Owns one tile of H: the gradients of dot products, or of half squared distances with the sign turned."""
    WIDTH: tl.constexpr = BLOCK_COLUMNS // PARTS
    row_at, column_at = tl.program_id(0) % row_tiles, tl.program_id(0) // row_tiles
    row_tile, tile = first_tile_of_rows + row_at, first_tile_of_columns + column_at
    first_row, first_column = row_tile.to(tl.int64) * BLOCK_ROWS, tile.to(tl.int64) * BLOCK_COLUMNS
    row = tl.arange(0, BLOCK_ROWS)
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    out = h_ptr + row_at.to(tl.int64) * BLOCK_ROWS * chunk + column_at * BLOCK_COLUMNS
    out += row.to(tl.int64)[:, None] * chunk + tl.arange(0, WIDTH)[None, :]
    if may_count(range_ptr, ref_range_ptr, row_tile, tile, SELECT):
        rows_left = tl.minimum(n - first_row, BLOCK_ROWS).to(tl.int32)
        columns_left = (m - first_column).to(tl.int32)
        there = row < rows_left
        begin, own = _edges_of(offset_ptr, first_row, row, there, edges)
        parts = parts_of(
            similarities(
                x_ptr, ref_ptr, square_ptr, ref_square_ptr, first_row, first_column, rows_left, columns_left,
                SIMILARITY, STRIDE, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_D,
            ),
            PARTS,
        )  # fmt: skip
        for part in tl.static_range(PARTS):
            u = parts[part]
            rest = which_count(
                u, label_ptr, ref_label_ptr, id_ptr, ref_id_ptr, lower_ptr, upper_ptr, first_row,
                first_column + part * WIDTH, rows_left, columns_left - part * WIDTH, SELECT,
            )  # fmt: skip
            rest = rest & there[:, None]
            h = tl.zeros([BLOCK_ROWS, WIDTH], dtype)
            for b in range(tl.max(own, axis=0) + 1):
                here = rest & _at_most(u, edge_ptr, begin, own, b)
                rest = rest & ~here
                d_sum = tl.load(d_sum_ptr + begin + first_row + row + b, mask=there & (b <= own), other=0.0)
                h = tl.where(here, d_sum[:, None], h)
            if SIMILARITY == "squared_euclidean":
                h = 2.0 * h
            elif SIMILARITY == "euclidean":
                h = tl.where((u == 0) | (h == 0), 0.0, h / tl.where(u == 0, 1.0, -u))
            tl.store(out + part * WIDTH, h)
    else:
        for part in tl.static_range(PARTS):
            tl.store(out + part * WIDTH, tl.zeros([BLOCK_ROWS, WIDTH], dtype))


def _check(tiles: Tiles, edges: torch.Tensor, offsets: torch.Tensor) -> None:
    if edges.dim() != 1 or edges.dtype != tiles.dtype:
        raise ValueError(f"edges must be [E] of {tiles.dtype}; got {tuple(edges.shape)} of {edges.dtype}")
    if offsets.shape != (tiles.n + 1,) or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be [{tiles.n + 1}] int64; got {tuple(offsets.shape)} of {offsets.dtype}")


def pair_bins(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    *problem, edges, offsets, _, _ = args
    tiles = prepared(*problem)
    _check(tiles, edges, offsets)
    bins = len(edges) + tiles.n
    splits = splits_within(tiles, bins * (12 + 2 * tiles.dtype.itemsize))
    # Written here for the rows without a column, and for bins that are nobody's.
    counts = tiles.x.new_zeros(splits, bins, dtype=torch.int64)
    sums = tiles.x.new_zeros(splits, bins, dtype=tiles.dtype)
    dtype = key_dtype(tiles.dtype)
    keys = tiles.x.new_full((splits, bins), torch.iinfo(dtype).min, dtype=dtype)
    columns = tiles.x.new_full((splits, bins), -1, dtype=torch.int32)
    if tiles.n and tiles.m:
        largest = 2 if triton_kernels.architecture() == "sm_100" else _LARGEST_GROUP
        group = min(largest, max(2, triton.next_power_of_2(len(edges) // tiles.n + 1)))
        with torch.cuda.device_of(tiles.x):
            bin_kernel[(tiles.row_tiles * splits,)](
                *tiles.tensors, *tiles.ranges, tiles.bounds, edges.contiguous(), offsets.contiguous(), counts, sums,
                keys, columns, tiles.n, tiles.m, tiles.row_tiles, tiles.column_tiles, splits, len(edges), GROUP=group,
                **narrow(tiles),
            )  # fmt: skip
    best, index = merged(keys, columns)
    return counts.sum(0), sums.sum(0), numbers(best, index >= 0), index


def _chunks(tiles: Tiles) -> tuple[int, int]:
    """Tiles of rows and of columns that the workspace holds the weights of: all rows where they fit."""
    elements = WORKSPACE // tiles.dtype.itemsize // (tiles.config.rows * tiles.config.columns)
    row_tiles = min(tiles.row_tiles, elements)
    return row_tiles, min(tiles.column_tiles, elements // row_tiles)


def _add(into: torch.Tensor, h: torch.Tensor, own: torch.Tensor, other: torch.Tensor, dot: bool) -> None:
    into.addmm_(h, other)
    if not dot:
        into.addcmul_(own, h.sum(1, keepdim=True), value=-1)


def pair_bins_backward(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *problem, edges, offsets, d_sum, _, _, need_x, need_ref = args
    p = Problem(*problem)
    tiles = prepared(*problem)
    _check(tiles, edges, offsets)
    if d_sum.shape != (len(edges) + tiles.n,) or d_sum.dtype != tiles.dtype:
        raise ValueError(f"d_sum must be [{len(edges) + tiles.n}] of {tiles.dtype}; got {tuple(d_sum.shape)}")
    x, ref = p.x, p.x if p.ref is None else p.ref
    need_ref = need_ref and p.ref is not None
    dx = torch.zeros_like(x if need_x else x[:0], dtype=tiles.dtype, memory_format=torch.contiguous_format)
    dref = torch.zeros_like(ref if need_ref else ref[:0], dtype=tiles.dtype, memory_format=torch.contiguous_format)
    of_columns = dx if p.ref is None else dref
    height, width, dot = tiles.config.rows, tiles.config.columns, p.similarity == "dot"
    if tiles.n and tiles.m and tiles.d and (need_x or need_ref):
        row_tiles, column_tiles = _chunks(tiles)
        workspace = x.new_empty(row_tiles * height * column_tiles * width, dtype=tiles.dtype)
        lists = (edges.contiguous(), offsets.contiguous(), d_sum.contiguous())
        with torch.cuda.device_of(x):
            for first in range(0, tiles.row_tiles, row_tiles):
                rows = min(row_tiles, tiles.row_tiles - first)
                own = slice(first * height, min(tiles.n, (first + rows) * height))
                x_part = x[own].to(tiles.dtype)
                for start in range(0, tiles.column_tiles, column_tiles):
                    columns = min(column_tiles, tiles.column_tiles - start)
                    other = slice(start * width, min(tiles.m, (start + columns) * width))
                    h = workspace[: rows * height * columns * width].view(rows * height, columns * width)
                    weight_kernel[(rows * columns,)](
                        *tiles.tensors, *tiles.ranges, *lists, h, tiles.n, tiles.m, first, start, rows,
                        columns * width, len(edges), **narrow(tiles),
                    )  # fmt: skip
                    h = h[: own.stop - own.start, : other.stop - other.start]
                    ref_part = ref[other].to(tiles.dtype)
                    if need_x:
                        _add(dx[own], h, x_part, ref_part, dot)
                    if need_ref or p.ref is None:
                        _add(of_columns[other], h.t(), ref_part, x_part, dot)
    return (
        dx.to(x.dtype) if need_x else x.new_empty(0),
        dref.to(x.dtype) if need_ref else x.new_empty(0),
    )
