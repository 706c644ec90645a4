# mypy: ignore-errors
"""The order in which the selecting kernels compare: integers that rise with the similarities, NaN above all of them.

The smallest integer stands for a pair that does not count. Of equal ones the lowest column goes first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..problem import PairProblem
from .kernels import PROGRAMS, Tiles

WORKSPACE = 128 * 2**20
NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def lowest(dtype: tl.constexpr):
    """The key of a pair that does not count."""
    return tl.full([], -(2**63), tl.int64) if dtype == tl.int64 else tl.full([], -(2**31), tl.int32)


@triton.jit
def ordered(u, keep):
    """Keys of similarities: int32 of float32, int64 of float64."""
    u = tl.where(u == 0, 0.0, u)  # -0 is no less than 0
    if u.dtype == tl.float64:
        bits = u.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & (2**63 - 1))
        key = tl.where(u == u, key, tl.full([], 2**63 - 1, tl.int64))
    else:
        bits = u.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & (2**31 - 1))
        key = tl.where(u == u, key, 2**31 - 1)
    return tl.where(keep, key, lowest(key.dtype))


@triton.jit
def best_of(key, column):
    """(the largest key of every row, its lowest column)."""
    best = tl.max(key, axis=1)
    return best, tl.min(tl.where(key == best[:, None], column, NO_COLUMN), axis=1)


def key_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32


def numbers(keys: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The similarities that keys stand for, -inf where no pair counts."""
    bits = keys.element_size() * 8
    values = (keys ^ ((keys >> bits - 1) & 2 ** (bits - 1) - 1)).view(torch.float64 if bits == 64 else torch.float32)
    return torch.where(counts, values, -torch.inf)


def merged(keys: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best over the splits, [splits, ...], whose columns rise: the first of equal ones."""
    if len(keys) == 1:
        return keys[0], columns[0].long()
    best = keys.amax(0)
    split = (keys == best).to(torch.uint8).argmax(0, keepdim=True)
    return best, columns.gather(0, split)[0].long()


def prepared(problem: PairProblem) -> Tiles:
    """The problem for kernels that hold many numbers of every pair of a part: its parts are
    narrow, and it has 8 warps where a thread of 4 would have 64 similarities."""
    tiles = Tiles(problem, 3)
    c = tiles.config
    if tiles.m + c.columns > NO_COLUMN.value:
        raise ValueError(f"ref must have fewer than 2^31 rows on a GPU; got {tiles.m}")
    warps = max(c.warps, 8 if c.rows * c.columns >= 64 * 128 else 1)
    tiles.config = c._replace(parts=max(1, min(8, c.columns // 16)), warps=warps)
    return tiles


def splits_within(tiles: Tiles, bytes_of_a_split: int, programs: int = 8 * PROGRAMS) -> int:
    """Parts of the columns with programs of their own: to fill the machine, within the workspace; of the sizes only."""
    wanted = min(tiles.splits(), programs // max(1, tiles.row_tiles), WORKSPACE // max(1, bytes_of_a_split))
    return max(1, wanted)
