# mypy: ignore-errors
"""The gradient of the pair statistics in Triton, over one block of rows and columns at a time.

`product` says what H is: here the gradient of u_ij over what the similarity takes of it. A block of H is
stored in the dtype of the operands, and its sums are those of H as it is rounded. Where ref is None H is symmetric, of
both ends of every pair, and dx alone is all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...._dtypes import accumulate_dtype
from ...triton.launch import launch
from ...triton.math import sigmoid
from ..problem import PairBackwardCall, PairGradients, PairProblem, check_tile, gradient_results
from .forward import TRANSFORMS, _circle, _power, parameters_of
from .kernels import Tiles, check, check_rows
from .product import add_up
from .tiles import (
    columns_of,
    columns_of_part,
    may_count,
    of_difference,
    places_of_tile,
    rows_of,
    selected,
    tile_of,
    tile_of_block,
    within,
)

_LARGEST_HALF = tl.constexpr(65504.0)


class PairSide(NamedTuple):
    """The numbers of the rows or of the columns."""

    lower: torch.Tensor | None  # [size], as all but the coefficients
    upper: torch.Tensor | None
    coefficients: torch.Tensor | None  # [4, size]
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    lse: torch.Tensor | None

    def check(self, x: torch.Tensor, transform: str) -> None:
        check_rows(x, lower=self.lower, upper=self.upper, scale=self.scale, offset=self.offset)
        c = self.coefficients
        if c is None or c.shape != (4, len(x)) or c.dtype != accumulate_dtype(x.dtype):
            got = None if c is None else tuple(c.shape)
            raise ValueError(f"coefficients must be [4, {len(x)}] of the accumulator's dtype; got {got}")
        if transform != "none":
            if self.scale is None or self.lse is None:
                raise ValueError(f"the transform {transform!r} needs a scale and a log-sum-exp")
            check_rows(x, lse=self.lse)

    def ready(self, transform: str) -> PairSide:
        """Contiguous, without what the transform does not read."""
        read = self if transform != "none" else self._replace(scale=None, offset=None, lse=None)
        return PairSide(*(None if v is None else v.contiguous() for v in read))


@triton.jit
def _number(pointer, at, axis: tl.constexpr):
    """One per row (axis 0) or per column (axis 1) of a tile."""
    return tl.expand_dims(tl.load(pointer + at), 1 - axis)


@triton.jit
def _gradient(u, keep, side, parameter_ptr, size, along, axis: tl.constexpr, TRANSFORM: tl.constexpr):
    """Of the similarities, from the numbers of the rows (axis 0) or of the columns (axis 1); 0 where no pair counts."""
    first, left = along
    at = first + tl.minimum(tl.arange(0, u.shape[axis]), left - 1)
    stride = size.to(tl.int64)
    constant_ptr = side.coefficients + 2 * stride
    gradient = _number(constant_ptr, at, axis) + _number(constant_ptr + stride, at, axis) * u
    if TRANSFORM != "none":
        scale = _number(side.scale, at, axis)
        factor = _number(side.coefficients, at, axis)
        if TRANSFORM == "softplus":
            z = scale * u
            if side.offset is not None:
                z += _number(side.offset, at, axis)
            gradient += factor * sigmoid(z)
        else:
            # The power is computed again and may pass the lse by a rounding: a share is at most 1, NaN stays NaN.
            power = _power(u, scale, parameter_ptr, TRANSFORM) - _number(side.lse, at, axis)
            share = tl.exp(tl.where(power > 0, 0.0, power))
            if TRANSFORM == "linear":
                factor += _number(side.coefficients + stride, at, axis) * u
            else:
                _, reach, _ = _circle(u, scale, parameter_ptr)
                factor *= reach
            gradient += factor * share
    return tl.where(keep & within(u, side.lower, side.upper, along, axis), gradient, 0.0)


@triton.jit
def _tile_is_read(pairs, column_bound_ptr, row_tile, column_tile):
    """Whether one of the two products walks over a tile of H."""
    read = True
    if pairs.bound is not None:
        bound, column_bound = pairs.bound + row_tile * 2, column_bound_ptr + column_tile * 2
        read = (column_tile >= tl.load(bound)) & (column_tile < tl.load(bound + 1))
        read = read | ((row_tile >= tl.load(column_bound)) & (row_tile < tl.load(column_bound + 1)))
    return read


@triton.jit(
    do_not_specialize=["n", "m", "first_row_tile", "first_column_tile", "row_tiles", "block_column_tiles", "block_rows"]
)
def gradient_kernel(
    pairs,  # TiledPairs
    n,
    m,
    first_row_tile,
    first_column_tile,
    row_tiles,  # of the block
    block_column_tiles,
    column_bound_ptr,  # [column tiles, 2], or None
    of_rows,  # PairSide
    of_columns,  # PairSide; its coefficients are None where the columns have no statistics
    parameter_ptr,
    unit_ptr,  # a power of two that brings H into the range of float16, or None
    h_ptr,  # [block_rows, block_column_tiles * BLOCK_COLUMNS]
    row_sum_ptr,  # [column tiles of the block, block_rows], or None for "dot"
    column_sum_ptr,  # [row tiles of the block, block_column_tiles * BLOCK_COLUMNS]
    block_rows,
    TRANSFORM: tl.constexpr,
):
    """Owns a tile of H and the sums of its rows and columns."""
    row_tile, column_tile, row_at, column_at = tile_of_block(first_row_tile, first_column_tile, row_tiles)
    if _tile_is_read(pairs, column_bound_ptr, row_tile, column_tile) == 0:
        return
    h_ptrs = places_of_tile(pairs, h_ptr, row_at, column_at, block_column_tiles)
    width: tl.constexpr = h_ptrs.shape[1]
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    if may_count(pairs, row_tile, column_tile) == 0:
        for part in tl.static_range(pairs.PARTS):
            tl.store(h_ptrs + part * width, tl.zeros(h_ptrs.shape, dtype))
        return
    rows, columns = rows_of(pairs, row_tile, n), columns_of(pairs, column_tile, m)
    row = tl.arange(0, pairs.BLOCK_ROWS)
    parts = tile_of(pairs, rows, columns)
    if row_sum_ptr is not None:
        row_sum = tl.zeros([pairs.BLOCK_ROWS], parts[0].dtype)
    for part in tl.static_range(pairs.PARTS):
        u = parts[part]
        columns_here = columns_of_part(pairs, columns, part)
        keep = selected(pairs, rows, columns_here) & (row < rows[1])[:, None]
        h = _gradient(u, keep, of_rows, parameter_ptr, n, rows, 0, TRANSFORM)
        if of_columns.coefficients is not None:
            h += _gradient(u, keep, of_columns, parameter_ptr, m, columns_here, 1, TRANSFORM)
        h = of_difference(h, u, pairs.SIMILARITY)
        if unit_ptr is not None:
            h = h * tl.load(unit_ptr)
            h = tl.where(h != h, h, tl.minimum(tl.maximum(h, 0.0 - _LARGEST_HALF), _LARGEST_HALF))
        h = h.to(dtype)
        tl.store(h_ptrs + part * width, h)
        if row_sum_ptr is not None:
            rounded = h.to(u.dtype)
            row_sum += tl.sum(rounded, axis=1)
            at = (row_at.to(tl.int64) * block_column_tiles + column_at) * pairs.BLOCK_COLUMNS + part * width
            tl.store(column_sum_ptr + at + tl.arange(0, width), tl.sum(rounded, axis=0))
    if row_sum_ptr is not None:
        at = column_at.to(tl.int64) * block_rows + row_at * pairs.BLOCK_ROWS
        tl.store(row_sum_ptr + at + row, row_sum)


def _unit(*coefficients: torch.Tensor | None) -> torch.Tensor:
    """The power of two that brings the largest coefficients near 64: float16 then holds shares of 1e-9, and small
    distances, which coefficients are divided by, have room."""
    sizes = [c.abs().sum(0) for c in coefficients if c is not None]
    largest = torch.stack([torch.where(s.isfinite(), s, 0).amax() for s in sizes]).amax()
    return torch.ldexp(torch.ones_like(largest), (7 - torch.frexp(largest).exponent).clamp(-100, 100))


def pair_statistics_backward(call: PairBackwardCall) -> PairGradients:
    """The op `pair_statistics_backward_triton`."""
    problem, transform = call.problem, call.transform
    check(problem)
    check_tile(call.tile)
    x, ref = problem.x, problem.ref
    if transform.name not in TRANSFORMS:
        raise ValueError(f"transform must be one of {TRANSFORMS}; got {transform.name!r}")
    if call.columns and (ref is None or call.of_columns.coefficients is None):
        raise ValueError("statistics of the columns need a ref and coefficients")
    row_side = PairSide(lower=problem.lower, upper=problem.upper, **call.rows._asdict())
    column_side = row_side if ref is None else PairSide(*[None] * 6)
    if call.columns:
        column_side = PairSide(**call.of_columns._asdict())
        column_side.check(ref, transform.name)
    row_side.check(x, transform.name)
    need_ref = call.need_ref and ref is not None
    out = gradient_results(x, ref, call.need_x, need_ref)
    if x.numel() == 0 or (ref is not None and ref.numel() == 0) or not (call.need_x or need_ref):
        return PairGradients(*(t.zero_() for t in out))
    _run(problem, row_side, column_side, parameters_of(x, transform), transform.name, *out)
    return out


def _run(
    problem: PairProblem,
    row_side: PairSide,
    column_side: PairSide,
    parameters: torch.Tensor | None,
    transform: str,
    dx: torch.Tensor,
    dref: torch.Tensor,
) -> None:
    t = Tiles(problem, burden=3 if problem.x.dtype.itemsize == 2 else 4)
    unit = _unit(row_side.coefficients, column_side.coefficients) if t.x.dtype == torch.float16 else None
    row_side, column_side = row_side.ready(transform), column_side.ready(transform)

    def fill(
        h: torch.Tensor, i: int, j: int, rows: int, columns: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (height, width), c = h.shape, t.config
        row_tiles, column_tiles = triton.cdiv(rows, c.rows), triton.cdiv(columns, c.columns)
        sums: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if t.similarity != "dot":  # tiles that are left out have sums of 0
            empty = t.x.new_empty if t.bounds is None else t.x.new_zeros
            sums = (empty(column_tiles, height, dtype=t.dtype), empty(row_tiles, width, dtype=t.dtype))
        launch(
            gradient_kernel, row_tiles * column_tiles,
            *t.block(i, j, row_tiles, width // c.columns), t.column_bounds, row_side, column_side, parameters, unit, h,
            *sums, height, TRANSFORM=transform, **t.options,
        )  # fmt: skip
        return sums

    add_up(t, t.x.dtype, fill, dx, dref, unit)
