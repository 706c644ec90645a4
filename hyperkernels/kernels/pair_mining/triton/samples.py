# mypy: ignore-errors
"""Weighted draws of pairs in Triton: the pair with the largest log weight - log E, E exponential of (seed, i, j, draw).

The random numbers belong to the pair, whatever the tiles and the splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ..problem import SampleCall, check_tile
from .order import best_of, key_dtype, lowest, merged, ordered, prepared, splits_within
from .tiles import columns_of, may_count, part_of, share_of_program, tile_of

_LARGEST_GROUP = 32  # draws of a program


@triton.jit
def _log_exponential(bits, dtype: tl.constexpr):
    """log(-log1p(-v)), v = (bits + 0.5) / 2^32: its inner logarithm is that of the smaller of v and 1 - v."""
    terms: tl.constexpr = 17 if dtype == tl.float64 else 8
    upper = bits >= 2**31
    near = (tl.where(upper, 0xFFFFFFFF - bits, bits).to(dtype) + 0.5) * 2.0**-32
    # -log(1 - v) = 2 artanh(v / (2 - v))
    t = near / (2.0 - near)
    square = t * t
    series = tl.full(bits.shape, 1.0 / (2 * terms + 1), dtype)
    for i in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - i) - 1)
    return tl.log(tl.where(upper, -tl.log(near), 2.0 * t * series))


@triton.jit
def _log_weights(u, WEIGHTS: tl.constexpr, p0, p1, inverse_temperature):
    """reference.log_weights says what; NaN stays."""
    if WEIGHTS == "exponential":
        weights = p0 * u
    else:
        smallest = 2.2250738585072014e-308 if u.dtype == tl.float64 else 1.1754943508222875e-38
        distance = tl.where(-u < p1, p1, -u)
        inside = 1.0 - distance * distance * 0.25
        inside = tl.where(inside < smallest, smallest, inside)
        weights = (2.0 - p0) * tl.log(distance) - (p0 - 3.0) * 0.5 * tl.log(inside)
    return weights * inverse_temperature


@triton.jit(do_not_specialize=["n", "m", "row_tiles", "column_tiles", "splits", "draws", "seed"])
def draw_kernel(
    pairs,  # TiledPairs
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    parameter_ptr,  # p0, p1 and 1 / temperature
    key_ptr,  # [splits, n, draws]
    column_ptr,  # [splits, n, draws] int32
    draws,
    seed,
    WEIGHTS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Owns GROUP draws of a tile of rows within one split of the columns."""
    share = tl.program_id(0) % (row_tiles * splits)
    row_tile, split, rows, first_tile, end_tile = share_of_program(share, pairs, n, row_tiles, column_tiles, splits)
    first_row, rows_left = rows
    dtype: tl.constexpr = key_ptr.dtype.element_ty
    group = tl.program_id(0) // (row_tiles * splits)
    p0, p1, inverse = tl.load(parameter_ptr), tl.load(parameter_ptr + 1), tl.load(parameter_ptr + 2)
    row = tl.arange(0, pairs.BLOCK_ROWS)
    place = tl.arange(0, GROUP)[None, :]
    keys = tl.zeros([pairs.BLOCK_ROWS, GROUP], dtype) + lowest(dtype)
    best_columns = tl.full([pairs.BLOCK_ROWS, GROUP], -1, tl.int32)
    for tile in range(first_tile, end_tile):
        if may_count(pairs, row_tile, tile):
            columns = columns_of(pairs, tile, m)
            parts = tile_of(pairs, rows, columns)
            for part in tl.static_range(pairs.PARTS):
                u, keep, first_column = part_of(pairs, parts, part, rows, columns)
                weights = _log_weights(u, WEIGHTS, p0, p1, inverse)
                column = first_column.to(tl.int32) + tl.arange(0, u.shape[1])[None, :]
                none = tl.zeros(u.shape, tl.uint32)
                c0 = none + column.to(tl.uint32)
                c1 = none + (first_row + row)[:, None].to(tl.uint32)
                for four in range(GROUP // 4):
                    c2 = none + (group * (GROUP // 4) + four).to(tl.uint32)
                    r0, r1, r2, r3 = tl.philox(seed, c0, c1, c2, none)
                    for i in range(4):
                        bits = tl.where(i < 2, tl.where(i == 0, r0, r1), tl.where(i == 2, r2, r3))
                        key = ordered(weights - _log_exponential(bits, u.dtype), keep)
                        best, at = best_of(key, column)
                        better = (place == four * 4 + i) & (best[:, None] > keys)
                        keys = tl.where(better, best[:, None], keys)
                        best_columns = tl.where(better, at[:, None], best_columns)
    draw = group * GROUP + place
    out = (split.to(tl.int64) * n + first_row + row)[:, None] * draws + draw
    mask = (row < rows_left)[:, None] & (draw < draws)
    tl.store(key_ptr + out, keys, mask=mask)
    tl.store(column_ptr + out, best_columns, mask=mask)


def pair_sample(call: SampleCall) -> torch.Tensor:
    problem, draws, seed, weights, p0, p1, temperature, tile = call
    check_tile(tile)
    if draws < 0:
        raise ValueError(f"draws must be at least 0; got {draws}")
    if weights not in ("exponential", "distance"):
        raise ValueError(f"weights must be exponential or distance; got {weights!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0; got {temperature}")
    tiles = prepared(problem)
    if tiles.n == 0 or tiles.m == 0 or draws == 0:
        return tiles.x.new_full((tiles.n, draws), -1, dtype=torch.int64)
    dtype = key_dtype(tiles.dtype)
    splits = splits_within(tiles, tiles.n * draws * (4 + dtype.itemsize))
    keys = tiles.x.new_empty(splits, tiles.n, draws, dtype=dtype)
    columns = tiles.x.new_empty(splits, tiles.n, draws, dtype=torch.int32)
    parameters = tiles.x.new_empty(3, dtype=tiles.dtype)
    parameters[0], parameters[1], parameters[2] = p0, p1, 1 / temperature
    largest = _LARGEST_GROUP if tiles.x.dtype.itemsize == 2 else 4
    group = max(4, min(largest, triton.next_power_of_2(draws)))
    launch(
        draw_kernel, tiles.row_tiles * splits * triton.cdiv(draws, group),
        *tiles.walk(splits), parameters, keys, columns, draws, seed, WEIGHTS=weights, GROUP=group, **tiles.options
    )  # fmt: skip
    return merged(keys, columns)[1]
