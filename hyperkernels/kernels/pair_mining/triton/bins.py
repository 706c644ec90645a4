# mypy: ignore-errors
"""Pairs by bins of their similarity in Triton, each row with its own rising edges.

A program goes through the bins of its rows some at a time, so that their numbers stay in registers; the similarities
are computed again for every such group. The gradient of a pair is that of the sum of its bin: it goes through a bounded
workspace into two products, in float32, since bins of opposite signs cancel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ..problem import Bins, BinsBackwardCall, BinsCall, PairGradients, check_tile
from .kernels import Tiles
from .order import best_of, key_dtype, lowest, merged, numbers, ordered, prepared, splits_within
from .product import add_up
from .tiles import (
    columns_of,
    may_count,
    of_difference,
    part_of,
    places_of_tile,
    rows_of,
    share_of_program,
    tile_of,
    tile_of_block,
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
    pairs,  # TiledPairs
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    edge_ptr,  # [edges]
    offset_ptr,  # [n + 1]
    count_ptr,  # [splits, edges + n] int64, as the three below
    sum_ptr,
    key_ptr,
    column_ptr,  # int32
    edges,
    GROUP: tl.constexpr,
):
    """Owns the bins of a tile of rows within one split of the columns."""
    row_tile, split, rows, first_tile, end_tile = share_of_program(
        tl.program_id(0), pairs, n, row_tiles, column_tiles, splits
    )
    first_row, rows_left = rows
    row = tl.arange(0, pairs.BLOCK_ROWS)
    there = row < rows_left
    begin, own = _edges_of(offset_ptr, first_row, row, there, edges)
    place = tl.arange(0, GROUP)[None, :]
    key_type: tl.constexpr = key_ptr.dtype.element_ty
    for group in range(0, tl.max(own, axis=0) + 1, GROUP):
        counts = tl.zeros([pairs.BLOCK_ROWS, GROUP], tl.int32)
        sums = tl.zeros([pairs.BLOCK_ROWS, GROUP], sum_ptr.dtype.element_ty)
        keys = tl.zeros([pairs.BLOCK_ROWS, GROUP], key_type) + lowest(key_type)
        best_columns = tl.full([pairs.BLOCK_ROWS, GROUP], -1, tl.int32)
        for tile in range(first_tile, end_tile):
            if may_count(pairs, row_tile, tile):
                columns = columns_of(pairs, tile, m)
                parts = tile_of(pairs, rows, columns)
                for part in tl.static_range(pairs.PARTS):
                    u, rest, first_column = part_of(pairs, parts, part, rows, columns)
                    column = first_column.to(tl.int32) + tl.arange(0, u.shape[1])[None, :]
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
                        best_columns = tl.where(better, at[:, None], best_columns)
        at_bin = begin[:, None] + first_row + row[:, None] + group + place
        at_bin += split.to(tl.int64) * (edges + n)
        mask = there[:, None] & (group + place <= own[:, None])
        tl.store(count_ptr + at_bin, counts.to(tl.int64), mask=mask)
        tl.store(sum_ptr + at_bin, sums, mask=mask)
        tl.store(key_ptr + at_bin, keys, mask=mask)
        tl.store(column_ptr + at_bin, best_columns, mask=mask)


@triton.jit(do_not_specialize=["n", "m", "first_row_tile", "first_column_tile", "row_tiles", "column_tiles", "edges"])
def weight_kernel(
    pairs,  # TiledPairs
    n,
    m,
    first_row_tile,
    first_column_tile,
    row_tiles,  # of the block
    column_tiles,
    edge_ptr,  # [edges]
    offset_ptr,  # [n + 1]
    d_sum_ptr,  # [edges + n]
    h_ptr,  # [row_tiles * BLOCK_ROWS, column_tiles * BLOCK_COLUMNS]
    edges,
):
    """Owns one tile of H: the gradients of dot products, or of half squared distances with the sign turned."""
    row_tile, column_tile, row_at, column_at = tile_of_block(first_row_tile, first_column_tile, row_tiles)
    out = places_of_tile(pairs, h_ptr, row_at, column_at, column_tiles)
    width: tl.constexpr = out.shape[1]
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    if may_count(pairs, row_tile, column_tile):
        rows, columns = rows_of(pairs, row_tile, n), columns_of(pairs, column_tile, m)
        first_row, rows_left = rows
        row = tl.arange(0, pairs.BLOCK_ROWS)
        there = row < rows_left
        begin, own = _edges_of(offset_ptr, first_row, row, there, edges)
        parts = tile_of(pairs, rows, columns)
        for part in tl.static_range(pairs.PARTS):
            u, rest, _ = part_of(pairs, parts, part, rows, columns)
            rest = rest & there[:, None]
            h = tl.zeros(u.shape, dtype)
            for b in range(tl.max(own, axis=0) + 1):
                here = rest & _at_most(u, edge_ptr, begin, own, b)
                rest = rest & ~here
                d_sum = tl.load(d_sum_ptr + begin + first_row + row + b, mask=there & (b <= own), other=0.0)
                h = tl.where(here, d_sum[:, None], h)
            tl.store(out + part * width, of_difference(h, u, pairs.SIMILARITY))
    else:
        for part in tl.static_range(pairs.PARTS):
            tl.store(out + part * width, tl.zeros(out.shape, dtype))


def _check(tiles: Tiles, edges: torch.Tensor, offsets: torch.Tensor) -> None:
    if edges.dim() != 1 or edges.dtype != tiles.dtype:
        raise ValueError(f"edges must be [E] of {tiles.dtype}; got {tuple(edges.shape)} of {edges.dtype}")
    if offsets.shape != (tiles.n + 1,) or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be [{tiles.n + 1}] int64; got {tuple(offsets.shape)} of {offsets.dtype}")


def pair_bins(call: BinsCall) -> Bins:
    problem, edges, offsets, tile = call
    check_tile(tile)
    tiles = prepared(problem)
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
        largest = 2 if tiles.arch == "sm_100" else _LARGEST_GROUP
        group = min(largest, max(2, triton.next_power_of_2(len(edges) // tiles.n + 1)))
        launch(
            bin_kernel, tiles.row_tiles * splits,
            *tiles.walk(splits), edges.contiguous(), offsets.contiguous(), counts, sums, keys, columns, len(edges),
            GROUP=group, **tiles.options,
        )  # fmt: skip
    best, index = merged(keys, columns)
    return Bins(counts.sum(0), sums.sum(0), numbers(best, index >= 0), index)


def pair_bins_backward(call: BinsBackwardCall) -> PairGradients:
    p, edges, offsets, d_sum, tile, need_x, need_ref = call
    check_tile(tile)
    tiles = prepared(p)
    _check(tiles, edges, offsets)
    if d_sum.shape != (len(edges) + tiles.n,) or d_sum.dtype != tiles.dtype:
        raise ValueError(f"d_sum must be [{len(edges) + tiles.n}] of {tiles.dtype}; got {tuple(d_sum.shape)}")
    lists = (edges.contiguous(), offsets.contiguous(), d_sum.contiguous())
    x, ref = p.x, p.x if p.ref is None else p.ref
    # Both ends of a pair of x with itself are rows of x.
    need_ref = need_x if p.ref is None else need_ref
    dx = torch.zeros_like(x if need_x else x[:0], dtype=tiles.dtype, memory_format=torch.contiguous_format)
    dref = torch.zeros_like(ref if need_ref else ref[:0], dtype=tiles.dtype, memory_format=torch.contiguous_format)

    def fill(
        h: torch.Tensor, i: int, j: int, rows: int, columns: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        c = tiles.config
        row_tiles, column_tiles = triton.cdiv(rows, c.rows), triton.cdiv(columns, c.columns)
        launch(
            weight_kernel,
            row_tiles * column_tiles,
            *tiles.block(i, j, row_tiles, h.shape[1] // c.columns),
            *lists,
            h,
            len(edges),
            **tiles.options,
        )
        if p.similarity == "dot":
            return None, None
        block = h[:rows, :columns]
        return block.sum(1)[None], block.sum(0)[None]

    if tiles.n and tiles.m and tiles.d and (need_x or need_ref):
        add_up(tiles, tiles.dtype, fill, dx, dref, guarded=True)
    none = x.new_empty(0)
    if p.ref is None:
        return PairGradients((dx + dref).to(x.dtype) if need_x else none, none)
    return PairGradients(dx.to(x.dtype) if need_x else none, dref.to(x.dtype) if need_ref else none)
