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

from .triton_kernels import PROGRAMS, Tiles, columns_of_split, may_count, parts_of, similarities, which_count
from .triton_order import (
    NO_COLUMN,
    WORKSPACE,
    best_of,
    key_dtype,
    lowest,
    narrow,
    numbers,
    ordered,
    prepared,
    rows_of,
    splits_within,
)

_LARGEST_LIST = {2: 64, 4: 32, 8: 32}  # pairs of a row that stay in registers, by the size of an element
_LARGEST_CHUNK = 65536  # columns of the workspace


@triton.jit(do_not_specialize=["n", "m", "row_tiles", "column_tiles", "splits", "k"])
def list_kernel(
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
    key_ptr,  # [n, splits, k]
    column_ptr,  # [n, splits, k] int32
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    k,
    LIST: tl.constexpr,  # at least k
    SELECT: tl.constexpr,
    SIMILARITY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Owns the k best pairs of a tile of rows within one split of the columns."""
    WIDTH: tl.constexpr = BLOCK_COLUMNS // PARTS
    row_tile, first_row, rows_left, split = rows_of(tl.program_id(0), row_tiles, n, BLOCK_ROWS)
    first, end = columns_of_split(bound_ptr, row_tile, split, splits, column_tiles)
    zero = tl.full([], 0, tl.int32)
    dtype: tl.constexpr = key_ptr.dtype.element_ty
    place = tl.arange(0, LIST)[None, :]
    # Free places have columns that differ, so that they are filled one by one; those past k hold what nothing passes.
    columns = tl.zeros([BLOCK_ROWS, LIST], tl.int32) + place
    keys = tl.where(place < k, lowest(dtype), ~lowest(dtype)) + tl.zeros([BLOCK_ROWS, LIST], dtype)
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
                keep = which_count(
                    u, label_ptr, ref_label_ptr, id_ptr, ref_id_ptr, lower_ptr, upper_ptr, first_row,
                    first_column + part * WIDTH, rows_left, columns_left - part * WIDTH, SELECT,
                )  # fmt: skip
                key = ordered(u, keep)
                column = tile * BLOCK_COLUMNS + part * WIDTH + tl.arange(0, WIDTH)[None, :]
                best = tl.max(key, axis=1)
                worst = tl.min(keys, axis=1)
                while tl.max((best > worst).to(tl.int32), axis=0) > 0:
                    at = tl.min(tl.where(key == best[:, None], column, NO_COLUMN), axis=1)
                    is_worst = keys == worst[:, None]
                    last = tl.max(tl.where(is_worst, columns, -1), axis=1)
                    here = is_worst & (columns == last[:, None]) & (best > worst)[:, None]
                    keys = tl.where(here, best[:, None], keys)
                    columns = tl.where(here, at[:, None], columns)
                    # Where the row had nothing to gain this takes away a pair that has no place in its list either.
                    key = tl.where(column == at[:, None], lowest(dtype), key)
                    best = tl.max(key, axis=1)
                    worst = tl.min(keys, axis=1)
    keys = tl.where(place < k, keys, lowest(dtype))
    row = tl.arange(0, BLOCK_ROWS)
    out = ((first_row + row) * splits + split) * k
    for rank in range(k):
        best, at = best_of(keys, columns)
        tl.store(key_ptr + out + rank, best, mask=row < rows_left)
        tl.store(column_ptr + out + rank, tl.where(best == lowest(dtype), -1, at), mask=row < rows_left)
        keys = tl.where((keys == best[:, None]) & (columns == at[:, None]), lowest(dtype), keys)


@triton.jit(do_not_specialize=["n", "m", "first_tile_of_rows", "first_tile_of_columns", "row_tiles", "chunk"])
def key_kernel(
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
    key_ptr,  # [row_tiles * BLOCK_ROWS, chunk] int64
    n,
    m,
    first_tile_of_rows,
    first_tile_of_columns,
    row_tiles,
    chunk,
    SELECT: tl.constexpr,
    SIMILARITY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Owns the keys of one tile. A key of float32 has the column below it, so that no two are equal."""
    WIDTH: tl.constexpr = BLOCK_COLUMNS // PARTS
    row_at, column_at = tl.program_id(0) % row_tiles, tl.program_id(0) // row_tiles
    row_tile, tile = first_tile_of_rows + row_at, first_tile_of_columns + column_at
    first_row, first_column = row_tile.to(tl.int64) * BLOCK_ROWS, tile.to(tl.int64) * BLOCK_COLUMNS
    rows_left = tl.minimum(n - first_row, BLOCK_ROWS).to(tl.int32)
    row = tl.arange(0, BLOCK_ROWS).to(tl.int64)[:, None]
    out = key_ptr + row_at.to(tl.int64) * BLOCK_ROWS * chunk + column_at * BLOCK_COLUMNS + row * chunk
    out += tl.arange(0, WIDTH)[None, :]
    if may_count(range_ptr, ref_range_ptr, row_tile, tile, SELECT):
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
            keep = which_count(
                u, label_ptr, ref_label_ptr, id_ptr, ref_id_ptr, lower_ptr, upper_ptr, first_row,
                first_column + part * WIDTH, rows_left, columns_left - part * WIDTH, SELECT,
            )  # fmt: skip
            packed = ordered(u, keep).to(tl.int64)
            if u.dtype != tl.float64:
                column = tile * BLOCK_COLUMNS + part * WIDTH + tl.arange(0, WIDTH)[None, :]
                packed = (packed << 32) | (2**31 - 1 - column).to(tl.int64)
            tl.store(out + part * WIDTH, packed)
    else:
        for part in tl.static_range(PARTS):
            tl.store(out + part * WIDTH, tl.zeros([BLOCK_ROWS, WIDTH], tl.int64) + lowest(tl.int64))


def _first(keys: torch.Tensor, columns: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest keys of rows in which equal ones stand in the order of their columns."""
    keys, order = torch.sort(keys, dim=1, descending=True, stable=True)
    return keys[:, :k], columns.gather(1, order[:, :k])


def _short(tiles: Tiles, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = key_dtype(tiles.dtype)
    splits = splits_within(tiles, tiles.n * k * (4 + dtype.itemsize), 4 * PROGRAMS)
    keys = tiles.x.new_empty(tiles.n, splits * k, dtype=dtype)
    columns = tiles.x.new_empty(tiles.n, splits * k, dtype=torch.int32)
    list_kernel[(tiles.row_tiles * splits,)](
        *tiles.tensors, *tiles.ranges, tiles.bounds, keys, columns, tiles.n, tiles.m, tiles.row_tiles,
        tiles.column_tiles, splits, k, LIST=max(4, triton.next_power_of_2(k)), **narrow(tiles),
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
            key_kernel[(rows * columns,)](
                *tiles.tensors, *tiles.ranges, keys, tiles.n, tiles.m, first, start, rows, columns * width,
                **narrow(tiles),
            )  # fmt: skip
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


def pair_top_k(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *problem, k, _, _ = args
    if k < 0:
        raise ValueError(f"k must be at least 0; got {k}")
    tiles = prepared(*problem)
    values = tiles.x.new_full((tiles.n, k), -torch.inf, dtype=tiles.dtype)
    indices = tiles.x.new_full((tiles.n, k), -1, dtype=torch.int64)
    reached = min(k, tiles.m)
    if tiles.n and reached:
        with torch.cuda.device_of(tiles.x):
            keys, columns = (_short if reached <= _LARGEST_LIST[tiles.x.element_size()] else _long)(tiles, reached)
            indices[:, :reached] = columns
            values[:, :reached] = numbers(keys, columns >= 0)
    return values, indices
