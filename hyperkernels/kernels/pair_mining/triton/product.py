# mypy: ignore-errors
"""The products of the backward passes in Triton: a block of H or its transpose by the other operand.

H_ij is what turns x_i and ref_j into each other's gradients: with the sums of H's rows and columns where the similarity
is a distance, dx = H ref - rowsum(H) x and dref = H^T x - colsum(H) ref.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ...triton.math import mask_if
from .kernels import PROGRAMS, Tiles

WORKSPACE = 128 * 2**20
BLOCK = 8192  # rows of a block: with as many columns the two products fill a machine


@triton.jit(
    do_not_specialize=[
        "rows",
        "row_tiles",
        "splits",
        "first_row_tile",
        "first_inner",
        "inner",
        "block_column_tiles",
        "start",
    ]
)
def product_kernel(
    h_ptr,  # [.., block_columns]
    b_ptr,  # [.., STRIDE]: ref, or x for the transpose of H
    bound_ptr,  # [tiles, 2]: the tiles of the inner dimension that count for a tile of the result, or None
    sum_ptr,  # [splits, row_tiles * BLOCK_ROWS, STRIDE]
    row_tiles,
    splits,
    first_row_tile,
    first_inner,  # the first row of b that the block has, a whole number of tiles
    inner,  # how many it has
    block_column_tiles,
    start,  # whether nothing has been summed yet
    TRANSPOSED: tl.constexpr,
    TILE: tl.constexpr,  # of the inner dimension
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    GUARDED: tl.constexpr,  # pairs that do not count must not see a row that is not finite
):
    """Owns BLOCK_ROWS rows and BLOCK_D columns of one split's share of H b or H^T b, and adds it to what is there."""
    program = tl.program_id(0)
    first_d = program % (STRIDE // BLOCK_D) * BLOCK_D
    program = program // (STRIDE // BLOCK_D)
    row_tile = program % row_tiles
    split = program // row_tiles
    first_row = row_tile.to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    depth = first_d + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_INNER)
    origin = tl.full([], 0, tl.int64)
    # Steps of BLOCK_INNER from the block's first; those past the last row of b are in its last tile, where H is 0.
    first = origin.to(tl.int32)
    end = tl.cdiv(inner, BLOCK_INNER)
    if bound_ptr is not None:
        bound = bound_ptr + (first_row_tile + row_tile) * 2
        tile_of_first = first_inner // TILE
        first = tl.maximum(tl.load(bound) - tile_of_first, 0).to(tl.int32) * (TILE // BLOCK_INNER)
        end = tl.minimum((tl.load(bound + 1) - tile_of_first).to(tl.int32) * (TILE // BLOCK_INNER), end)
    steps = tl.maximum(end - first, 0).to(tl.int64)
    from_step = first + (steps * split // splits).to(tl.int32)
    to_step = first + (steps * (split + 1) // splits).to(tl.int32)
    # A tile of H spans less than the workspace: its offsets are int32.
    # What the compiler sees to be a multiple of a tile is loaded in vectors.
    block_columns = block_column_tiles * (BLOCK_ROWS if TRANSPOSED else TILE)
    if TRANSPOSED:
        h_ptr += first_row
        h_step = origin + BLOCK_INNER * block_columns
        h_offsets = row[:, None] + k[None, :] * block_columns
    else:
        h_ptr += first_row * block_columns
        h_step = origin + BLOCK_INNER
        h_offsets = row[:, None] * block_columns + k[None, :]
    b_ptr += first_inner.to(tl.int64) * STRIDE
    b_offsets = k[:, None] * STRIDE + depth[None, :]
    sum_ptr += (split * row_tiles + row_tile).to(tl.int64) * BLOCK_ROWS * STRIDE
    sum_ptrs = sum_ptr + row[:, None] * STRIDE + depth[None, :]
    dtype: tl.constexpr = sum_ptr.dtype.element_ty
    total = tl.load(sum_ptrs, mask=mask_if(start == 0, tl.full(sum_ptrs.shape, 1, tl.int1)), other=0.0)
    for step in range(from_step, to_step):
        h = tl.load(h_ptr + step * h_step + h_offsets)
        left = inner - step * BLOCK_INNER
        b = tl.load(b_ptr + (origin + step) * (BLOCK_INNER * STRIDE) + b_offsets, mask=k[:, None] < left, other=0.0)
        if GUARDED:
            b = b.to(h.dtype)
            wild = b - b != 0
            b = tl.where(wild, 0.0, b)
            if tl.max(tl.max(wild.to(tl.int32), axis=1), axis=0) > 0:
                seen = tl.dot((h != 0).to(tl.float16), wild.to(tl.float16))
                total = tl.where(seen > 0, float("nan"), total)
        total = tl.dot(h, b, total, input_precision="ieee", out_dtype=dtype)
    tl.store(sum_ptrs, total)


class Gradient:
    """The gradient of a range of rows of x or ref as it adds up, in the accumulator's dtype; `ends` are all rows of the
    other operand."""

    def __init__(self, t: Tiles, ends: torch.Tensor, rows: int, inner: int, transposed: bool, size: int) -> None:
        self.t, self.ends, self.rows, self.transposed, self.size = t, ends, rows, transposed, size
        c = t.config
        self.tile, self.inner_tile = (c.columns, c.rows) if transposed else (c.rows, c.columns)
        widest = {8: 32, 4: 64, 2: 256}[size]
        self.width = next(w for w in (256, 128, 64, 32, 16) if w <= widest and t.stride % w == 0)
        self.row_tiles = triton.cdiv(rows, self.tile)
        self.depth = min(self.inner_tile, {8: 16, 4: 16, 2: 64}[size])
        # Parts of the inner dimension, of the first block at least four steps each, where the result is small.
        programs = self.row_tiles * (t.stride // self.width)
        self.splits = max(1, min(PROGRAMS // programs, inner // (4 * self.depth)))
        self.sum = t.x.new_empty(self.splits, self.row_tiles * self.tile, t.stride, dtype=t.dtype)
        self.own: torch.Tensor | None = None  # sums of the rows of H
        self.started = False

    def add(
        self, h: torch.Tensor, sums: torch.Tensor | None, first: int, first_inner: int, inner: int, guarded: bool
    ) -> None:
        """What a block of H gives: rows from `first`, and `inner` rows of the other operand from `first_inner`."""
        t = self.t
        launch(
            product_kernel, self.row_tiles * (t.stride // self.width) * self.splits,
            h, self.ends, t.column_bounds if self.transposed else t.bounds, self.sum,
            self.row_tiles, self.splits, first // self.tile, first_inner, inner, h.shape[1] // t.config.columns,
            int(not self.started), TRANSPOSED=self.transposed, TILE=self.inner_tile, STRIDE=t.stride,
            BLOCK_ROWS=self.tile, BLOCK_D=self.width, BLOCK_INNER=self.depth, GUARDED=guarded,
            num_warps=8 if self.tile * self.width >= 128 * 128 or self.size > 2 else 4,
            num_stages=t.config.stages,
        )  # fmt: skip
        self.started = True
        if sums is not None:
            own = sums.sum(0)[: self.rows]
            self.own = own if self.own is None else self.own + own

    def finish(self, out: torch.Tensor, own_rows: torch.Tensor, unit: torch.Tensor | None) -> None:
        """Write the gradient; own_rows are those whose gradient it is."""
        total = (self.sum[0] if self.splits == 1 else self.sum.sum(0))[: self.rows]
        if self.own is not None:
            own = self.own[:, None]
            total -= torch.where(own == 0, 0, own * own_rows)  # a row without pairs may hold anything
        if unit is not None:
            total /= unit
        out.copy_(total[:, : out.shape[1]])


def add_up(
    t: Tiles,
    dtype: torch.dtype,
    fill: Callable[[torch.Tensor, int, int, int, int], tuple[torch.Tensor | None, torch.Tensor | None]],
    dx: torch.Tensor,
    dref: torch.Tensor,
    unit: torch.Tensor | None = None,
    guarded: bool = False,
) -> None:
    """Write the gradients that are not empty, over one block of H, of that dtype, at a time.

    Args:
        fill: writes the block that begins with a row and a column and has some rows and columns; returns partial sums
            of its rows, [.., rows at least], and columns, or None for "dot".
        unit: what H is too large by.
        guarded: H may be finite where a pair with a row that is not finite counts. Elsewhere it is NaN there and says
            so alone: the product reads 0 in place of such numbers, and pairs that do not count see nothing of them.
    """
    c = t.config
    height = min(max(1, BLOCK // c.rows), t.row_tiles) * c.rows
    width = min(max(1, WORKSPACE // (height * dtype.itemsize * c.columns)), t.column_tiles) * c.columns
    h = t.x.new_empty(height, width, dtype=dtype)
    need_x, need_ref = dx.numel() > 0, dref.numel() > 0
    x, ref = (
        ends.nan_to_num(0, 0, 0) if needed and not guarded else ends
        for ends, needed in ((t.x, need_ref), (t.ref, need_x))
    )
    row_blocks, column_blocks = range(0, t.n, height), range(0, t.m, width)
    # One gradient alone is summed in a buffer of one block.
    order = [(i, j) for i, j in itertools.product(row_blocks, column_blocks)]
    if need_ref:
        order = [(i, j) for j, i in itertools.product(column_blocks, row_blocks)]
    of_rows: dict[int, Gradient] = {}
    of_columns: dict[int, Gradient] = {}
    for i, j in order:
        rows, columns = min(height, t.n - i), min(width, t.m - j)
        row_sums, column_sums = fill(h, i, j, rows, columns)
        if need_x:
            if i not in of_rows:
                of_rows[i] = Gradient(t, ref, rows, columns, False, dtype.itemsize)
            of_rows[i].add(h, row_sums, i, j, columns, guarded)
            if j + width >= t.m:
                of_rows.pop(i).finish(dx[i : i + rows], t.x[i : i + rows], unit)
        if need_ref:
            if j not in of_columns:
                of_columns[j] = Gradient(t, x, columns, rows, True, dtype.itemsize)
            of_columns[j].add(h, column_sums, j, i, rows, guarded)
            if i + height >= t.n:
                of_columns.pop(j).finish(dref[j : j + columns], t.ref[j : j + columns], unit)
