# mypy: ignore-errors
"""The k best pairs of every row in Triton.

Small k: a program keeps the list of its rows in registers. A tile of similarities gives it the best pair of every row
at once, again and again while any row has one that belongs into its list; after the first tiles that is rarely so.
Larger k: similarities go through a bounded workspace, as keys that `torch.topk` selects from.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ..problem import TopK, TopKCall, check_tile
from .kernels import PROGRAMS, Tiles
from .order import NO_COLUMN, WORKSPACE, best_of, key_dtype, lowest, numbers, ordered, prepared, splits_within
from .tiles import columns_of, may_count, part_of, places_of_tile, rows_of, share_of_program, tile_of, tile_of_block

_LARGEST_LIST = {2: 64, 4: 32, 8: 32}  # pairs of a row that stay in registers, by the size of an element
_LARGEST_CHUNK = 65536  # columns of the workspace


@triton.jit(do_not_specialize=["n", "m", "row_tiles", "column_tiles", "splits", "k"])
def list_kernel(
    pairs,  # TiledPairs
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    key_ptr,  # [n, splits, k]
    column_ptr,  # [n, splits, k] int32
    k,
    LIST: tl.constexpr,  # at least k
):
    """Owns the k best pairs of a tile of rows within one split of the columns."""
    row_tile, split, rows, first_tile, end_tile = share_of_program(
        tl.program_id(0), pairs, n, row_tiles, column_tiles, splits
    )
    first_row, rows_left = rows
    dtype: tl.constexpr = key_ptr.dtype.element_ty
    place = tl.arange(0, LIST)[None, :]
    # Free places have columns that differ, so that they are filled one by one; those past k hold what nothing passes.
    best_columns = tl.zeros([pairs.BLOCK_ROWS, LIST], tl.int32) + place
    keys = tl.where(place < k, lowest(dtype), ~lowest(dtype)) + tl.zeros([pairs.BLOCK_ROWS, LIST], dtype)
    for tile in range(first_tile, end_tile):
        if may_count(pairs, row_tile, tile):
            columns = columns_of(pairs, tile, m)
            parts = tile_of(pairs, rows, columns)
            for part in tl.static_range(pairs.PARTS):
                u, keep, first_column = part_of(pairs, parts, part, rows, columns)
                key = ordered(u, keep)
                column = first_column.to(tl.int32) + tl.arange(0, u.shape[1])[None, :]
                best = tl.max(key, axis=1)
                worst = tl.min(keys, axis=1)
                while tl.max((best > worst).to(tl.int32), axis=0) > 0:
                    at = tl.min(tl.where(key == best[:, None], column, NO_COLUMN), axis=1)
                    is_worst = keys == worst[:, None]
                    last = tl.max(tl.where(is_worst, best_columns, -1), axis=1)
                    here = is_worst & (best_columns == last[:, None]) & (best > worst)[:, None]
                    keys = tl.where(here, best[:, None], keys)
                    best_columns = tl.where(here, at[:, None], best_columns)
                    # Where the row had nothing to gain this takes away a pair that has no place in its list either.
                    key = tl.where(column == at[:, None], lowest(dtype), key)
                    best = tl.max(key, axis=1)
                    worst = tl.min(keys, axis=1)
    keys = tl.where(place < k, keys, lowest(dtype))
    row = tl.arange(0, pairs.BLOCK_ROWS)
    out = ((first_row + row) * splits + split) * k
    for rank in range(k):
        best, at = best_of(keys, best_columns)
        tl.store(key_ptr + out + rank, best, mask=row < rows_left)
        tl.store(column_ptr + out + rank, tl.where(best == lowest(dtype), -1, at), mask=row < rows_left)
        keys = tl.where((keys == best[:, None]) & (best_columns == at[:, None]), lowest(dtype), keys)


@triton.jit(do_not_specialize=["n", "m", "first_row_tile", "first_column_tile", "row_tiles", "column_tiles"])
def key_kernel(
    pairs,  # TiledPairs
    n,
    m,
    first_row_tile,
    first_column_tile,
    row_tiles,  # of the block
    column_tiles,
    key_ptr,  # [row_tiles * BLOCK_ROWS, column_tiles * BLOCK_COLUMNS] int64
):
    """Owns the keys of one tile. A key of float32 has the column below it, so that no two are equal."""
    row_tile, column_tile, row_at, column_at = tile_of_block(first_row_tile, first_column_tile, row_tiles)
    out = places_of_tile(pairs, key_ptr, row_at, column_at, column_tiles)
    width: tl.constexpr = out.shape[1]
    if may_count(pairs, row_tile, column_tile):
        rows, columns = rows_of(pairs, row_tile, n), columns_of(pairs, column_tile, m)
        parts = tile_of(pairs, rows, columns)
        for part in tl.static_range(pairs.PARTS):
            u, keep, first_column = part_of(pairs, parts, part, rows, columns)
            packed = ordered(u, keep).to(tl.int64)
            if u.dtype != tl.float64:
                column = first_column.to(tl.int32) + tl.arange(0, width)[None, :]
                packed = (packed << 32) | (2**31 - 1 - column).to(tl.int64)
            tl.store(out + part * width, packed)
    else:
        for part in tl.static_range(pairs.PARTS):
            tl.store(out + part * width, tl.zeros(out.shape, tl.int64) + lowest(tl.int64))


def _first(keys: torch.Tensor, columns: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest keys of rows in which equal ones stand in the order of their columns."""
    keys, order = torch.sort(keys, dim=1, descending=True, stable=True)
    return keys[:, :k], columns.gather(1, order[:, :k])


def _short(tiles: Tiles, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = key_dtype(tiles.dtype)
    splits = splits_within(tiles, tiles.n * k * (4 + dtype.itemsize), 4 * PROGRAMS)
    keys = tiles.x.new_empty(tiles.n, splits * k, dtype=dtype)
    columns = tiles.x.new_empty(tiles.n, splits * k, dtype=torch.int32)
    launch(
        list_kernel, tiles.row_tiles * splits,
        *tiles.walk(splits), keys, columns, k, LIST=max(4, triton.next_power_of_2(k)), **tiles.options
    )  # fmt: skip
    return _first(keys, columns, k) if splits > 1 else (keys, columns)


def _chunks(tiles: Tiles) -> tuple[int, int]:
    """Tiles of rows and of columns that the workspace holds the keys of."""
    height, width = tiles.config.rows, tiles.config.columns
    column_tiles = min(tiles.column_tiles, _LARGEST_CHUNK // width)
    return max(1, min(tiles.row_tiles, WORKSPACE // 8 // (column_tiles * width * height))), column_tiles


def _long(tiles: Tiles, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """k is at most the number of columns."""
    height, width = tiles.config.rows, tiles.config.columns
    row_tiles, column_tiles = _chunks(tiles)
    workspace = tiles.x.new_empty(row_tiles * height * column_tiles * width, dtype=torch.int64)
    all_keys = tiles.x.new_empty(tiles.n, k, dtype=key_dtype(tiles.dtype))
    all_columns = tiles.x.new_empty(tiles.n, k, dtype=torch.int64)
    for first in range(0, tiles.row_tiles, row_tiles):
        rows = min(row_tiles, tiles.row_tiles - first)
        here = slice(first * height, min(tiles.n, (first + rows) * height))
        best = None
        for start in range(0, tiles.column_tiles, column_tiles):
            columns = min(column_tiles, tiles.column_tiles - start)
            keys = workspace[: rows * height * columns * width].view(rows * height, columns * width)
            block = tiles.block(here.start, start * width, rows, columns)
            launch(key_kernel, rows * columns, *block, keys, **tiles.options)
            best = _better(best, keys[: here.stop - here.start], start * width, k, tiles.dtype)
        assert best is not None
        found, at = best
        if at is None:
            found, at = found >> 32, NO_COLUMN.value - (found & NO_COLUMN.value)
        all_keys[here], all_columns[here] = found, at
    empty = all_keys == torch.iinfo(all_keys.dtype).min
    return all_keys, torch.where(empty, -1, all_columns)


def _better(best: Any, keys: torch.Tensor, first_column: int, k: int, dtype: torch.dtype) -> Any:
    """The k largest of the best so far and those of a chunk: (packed keys, None), or float64's keys and columns."""
    if dtype != torch.float64:
        found = keys.topk(min(k, keys.shape[1]), dim=1).values
        if best is not None:
            found = torch.cat([best[0], found], 1)
            found = found.topk(min(k, found.shape[1]), dim=1).values
        return found, None
    columns = torch.arange(first_column, first_column + keys.shape[1], device=keys.device).expand(keys.shape)
    found, at = _first(keys, columns, k)
    if best is None:
        return found, at
    return _first(torch.cat([best[0], found], 1), torch.cat([best[1], at], 1), k)


def pair_top_k(call: TopKCall) -> TopK:
    k = call.k
    check_tile(call.tile)
    if k < 0:
        raise ValueError(f"k must be at least 0; got {k}")
    tiles = prepared(call.problem)
    values = tiles.x.new_full((tiles.n, k), -torch.inf, dtype=tiles.dtype)
    indices = tiles.x.new_full((tiles.n, k), -1, dtype=torch.int64)
    reached = min(k, tiles.m)
    if tiles.n and reached:
        keys, columns = (_short if reached <= _LARGEST_LIST[tiles.x.element_size()] else _long)(tiles, reached)
        indices[:, :reached] = columns
        values[:, :reached] = numbers(keys, columns >= 0)
    return TopK(values, indices)
