# mypy: ignore-errors
"""How many pairs of every row count, and the list of them, in Triton: one kernel for both, so that the similarities of
the two passes agree bit by bit."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ..problem import CountCall, ListCall, PairList, check_tile
from .kernels import Tiles
from .order import prepared, splits_within
from .tiles import columns_of, may_count, part_of, share_of_program, tile_of


@triton.jit(do_not_specialize=["n", "m", "row_tiles", "column_tiles", "splits", "total"])
def pair_kernel(
    pairs,  # TiledPairs
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    count_ptr,  # [splits, n]: written where there is no list, else the places taken by the splits before
    offset_ptr,  # [n + 1], or None: the pairs are only counted
    column_ptr,  # [total]
    value_ptr,  # [total]
    total,
):
    """Owns the pairs of a tile of rows within one split of the columns."""
    row_tile, split, rows, first_tile, end_tile = share_of_program(
        tl.program_id(0), pairs, n, row_tiles, column_tiles, splits
    )
    first_row, rows_left = rows
    row = tl.arange(0, pairs.BLOCK_ROWS)
    there = row < rows_left
    own = split.to(tl.int64) * n + first_row + row
    taken = tl.zeros([pairs.BLOCK_ROWS], tl.int32)
    if offset_ptr is not None:
        begin = tl.load(offset_ptr + first_row + row, mask=there, other=0)
        limit = tl.load(offset_ptr + first_row + row + 1, mask=there, other=0)
        if count_ptr is not None:
            begin += tl.load(count_ptr + own, mask=there, other=0)
        # Whatever the offsets say, a row writes neither outside the list nor past its own part of it.
        room = tl.where(begin < 0, 0, tl.maximum(tl.minimum(limit, total), 0) - begin)
        room = tl.maximum(tl.minimum(room, m), 0).to(tl.int32)
    for tile in range(first_tile, end_tile):
        if may_count(pairs, row_tile, tile):
            columns = columns_of(pairs, tile, m)
            parts = tile_of(pairs, rows, columns)
            for part in tl.static_range(pairs.PARTS):
                u, keep, first_column = part_of(pairs, parts, part, rows, columns)
                kept = (keep & there[:, None]).to(tl.int32)
                new = tl.sum(kept, axis=1)
                if offset_ptr is not None:
                    if tl.max(kept, axis=None) > 0:
                        place = taken[:, None] + tl.cumsum(kept, axis=1) - 1
                        mask = (kept > 0) & (place < room[:, None])
                        column = tl.broadcast_to(first_column + tl.arange(0, u.shape[1])[None, :], u.shape)
                        tl.store((column_ptr + begin)[:, None] + place, column, mask=mask)
                        tl.store((value_ptr + begin)[:, None] + place, u, mask=mask)
                taken += new
    if offset_ptr is None:
        tl.store(count_ptr + own, taken.to(tl.int64), mask=there)


def _launch(tiles: Tiles, splits: int, *lists: Any, total: int) -> None:
    launch(pair_kernel, tiles.row_tiles * splits, *tiles.walk(splits), *lists, total, **tiles.options)


def _counts(tiles: Tiles, splits: int) -> torch.Tensor:
    """[splits, n]"""
    counts = tiles.x.new_empty(splits, tiles.n, dtype=torch.int64)
    _launch(tiles, splits, counts, None, None, None, total=0)
    return counts


def pair_count(call: CountCall) -> torch.Tensor:
    check_tile(call.tile)
    tiles = prepared(call.problem)
    if tiles.n == 0 or tiles.m == 0:
        return tiles.x.new_zeros(tiles.n, dtype=torch.int64)
    return _counts(tiles, splits_within(tiles, 8 * tiles.n)).sum(0)


def pair_list(call: ListCall) -> PairList:
    """Where the columns are split, the pairs are counted once more: the offsets do not tell the splits apart."""
    offsets, total = call.offsets, call.total
    check_tile(call.tile)
    tiles = prepared(call.problem)
    if offsets.shape != (tiles.n + 1,) or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be [{tiles.n + 1}] int64; got {tuple(offsets.shape)} of {offsets.dtype}")
    if total < 0:
        raise ValueError(f"total must be at least 0; got {total}")
    # What offsets beyond the counts leave unwritten.
    columns = tiles.x.new_full((total,), -1, dtype=torch.int64)
    values = tiles.x.new_full((total,), torch.nan, dtype=tiles.dtype)
    if total and tiles.n and tiles.m:
        splits = splits_within(tiles, 8 * tiles.n)
        before = None
        if splits > 1:
            counts = _counts(tiles, splits)
            before = counts.cumsum(0) - counts
        _launch(tiles, splits, before, offsets.contiguous(), columns, values, total=total)
    return PairList(columns, values)
