# mypy: ignore-errors
"""How rows and products are cut into programs and tiles: device functions of several families."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class RowBlocks(NamedTuple):
    """How rows of D elements are cut, the last argument of a kernel."""

    D: tl.constexpr
    BLOCK_ROWS: tl.constexpr
    BLOCK_D: tl.constexpr


def row_blocks(dim: int, block_rows: int, block_d: int) -> RowBlocks:
    return RowBlocks(tl.constexpr(dim), tl.constexpr(block_rows), tl.constexpr(block_d))


@triton.jit
def program_rows(program, rows, BLOCK_ROWS: tl.constexpr):
    """(rows of the program: int64 [BLOCK_ROWS], which of them exist)."""
    row = tl.zeros([BLOCK_ROWS], tl.int64) + program  # of the host's type where the interpreter counts a loop
    row = row * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return row, row < rows


@triton.jit
def columns(start, there, blocks):
    """(columns [1, BLOCK_D] from start on, mask of the tile)."""
    column = start + tl.arange(0, blocks.BLOCK_D)[None, :]
    mask = there[:, None]
    if blocks.D % blocks.BLOCK_D != 0:
        mask = mask & (column < blocks.D)
    return column, mask


@triton.jit
def whole_rows(program, rows, blocks):
    """(rows of the program, which of them exist, their columns, mask of the tile)."""
    row, there = program_rows(program, rows, blocks.BLOCK_ROWS)
    column, mask = columns(0, there, blocks)
    return row, there, column, mask


@triton.jit
def at(pointer, row, stride):
    """Where the rows start."""
    return pointer + (row * stride)[:, None]


@triton.jit
def row_tile(program, start, rows, blocks):
    """Columns from start on of the rows of a program, one after the other in memory: (offset of the first row: int64,
    offsets from it: int32 [BLOCK_ROWS, BLOCK_D], mask)."""
    first = program.to(tl.int64) * blocks.BLOCK_ROWS
    row = tl.arange(0, blocks.BLOCK_ROWS)[:, None]
    column = start + tl.arange(0, blocks.BLOCK_D)[None, :]
    mask = row < tl.minimum(rows - first, blocks.BLOCK_ROWS).to(tl.int32)
    if blocks.D % blocks.BLOCK_D != 0:
        mask = mask & (column < blocks.D)
    return first * blocks.D, row * blocks.D + column, mask


@triton.jit
def part_of_product(row_tiles, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr):
    """(tile of rows, split of the inner dimension, columns [BLOCK_D]) of a program that owns a part of a product. The
    columns of a tile run side by side."""
    first = tl.program_id(0) % (STRIDE // BLOCK_D) * BLOCK_D
    program = tl.program_id(0) // (STRIDE // BLOCK_D)
    return program % row_tiles, program // row_tiles, first + tl.arange(0, BLOCK_D)
