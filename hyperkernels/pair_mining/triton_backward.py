# mypy: ignore-errors
"""The gradient of the pair statistics in Triton, over one block of rows and columns at a time.

H_ij is the gradient of u_ij over what turns x_i and ref_j into each other's gradients: with the sums of H's rows and
columns where the similarity is a distance, dx = H ref - rowsum(H) x and dref = H^T x - colsum(H) ref. A block of H is
stored in the dtype of the operands, and its sums are those of H as it is rounded. Where ref is None H is symmetric, of
both ends of every pair, and dx alone is all.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl

from .._triton_math import sigmoid
from .op import _fake_backward
from .reference import Problem, accumulate_dtype
from .triton_forward import TRANSFORMS, _circle, _power, parameters_of
from .triton_kernels import Tiles, check, check_rows, may_count, parts_of, selected, similarities, within
from .triton_product import Gradient

WORKSPACE = 128 * 2**20
BLOCK = 8192  # rows of a block: with as many columns the two products fill a machine
_LARGEST_HALF = tl.constexpr(65504.0)


@triton.jit
def _number(pointer, at, axis: tl.constexpr):
    """One per row (axis 0) or per column (axis 1) of a tile."""
    return tl.expand_dims(tl.load(pointer + at), 1 - axis)


@triton.jit
def _gradient(
    u,
    keep,
    coefficient_ptr,  # [4, size]
    scale_ptr,  # [size], as those below; or None
    offset_ptr,
    value_ptr,
    lower_ptr,
    upper_ptr,
    parameter_ptr,
    size,
    first,
    left,
    axis: tl.constexpr,
    TRANSFORM: tl.constexpr,
):
    """Of the similarities, from the numbers of the rows (axis 0) or of the columns (axis 1); 0 where no pair counts."""
    at = first + tl.minimum(tl.arange(0, u.shape[axis]), left - 1)
    stride = size.to(tl.int64)
    gradient = _number(coefficient_ptr + 2 * stride, at, axis) + _number(coefficient_ptr + 3 * stride, at, axis) * u
    if TRANSFORM != "none":
        scale = _number(scale_ptr, at, axis)
        factor = _number(coefficient_ptr, at, axis)
        if TRANSFORM == "softplus":
            z = scale * u
            if offset_ptr is not None:
                z += _number(offset_ptr, at, axis)
            gradient += factor * sigmoid(z)
        else:
            # The power is computed again and may pass the value by a rounding: a share is at most 1, NaN stays NaN.
            power = _power(u, scale, parameter_ptr, TRANSFORM) - _number(value_ptr, at, axis)
            share = tl.exp(tl.where(power > 0, 0.0, power))
            if TRANSFORM == "linear":
                factor += _number(coefficient_ptr + stride, at, axis) * u
            else:
                _, reach, _ = _circle(u, scale, parameter_ptr)
                factor *= reach
            gradient += factor * share
    return tl.where(keep & within(u, lower_ptr, upper_ptr, first, left, axis), gradient, 0.0)


@triton.jit
def _tile_is_read(bound_ptr, column_bound_ptr, row_tile, column_tile):
    """Whether one of the two products walks over a tile of H."""
    read = True
    if bound_ptr is not None:
        bound, column_bound = bound_ptr + row_tile * 2, column_bound_ptr + column_tile * 2
        read = (column_tile >= tl.load(bound)) & (column_tile < tl.load(bound + 1))
        read = read | ((row_tile >= tl.load(column_bound)) & (row_tile < tl.load(column_bound + 1)))
    return read


@triton.jit(
    do_not_specialize=[
        "rows",
        "columns",
        "first_row_tile",
        "first_column_tile",
        "row_tiles",
        "block_rows",
        "block_column_tiles",
    ]
)
def gradient_kernel(
    x_ptr,  # the first eight as of similarities and selected
    ref_ptr,
    square_ptr,
    ref_square_ptr,
    label_ptr,
    ref_label_ptr,
    id_ptr,
    ref_id_ptr,
    lower_ptr,  # [rows]
    upper_ptr,
    ref_lower_ptr,  # [columns]
    ref_upper_ptr,
    range_ptr,  # [tiles, 2], as the three below, or None
    ref_range_ptr,
    bound_ptr,
    column_bound_ptr,
    coefficient_ptr,  # [4, rows]
    scale_ptr,  # [rows]
    offset_ptr,
    value_ptr,
    ref_coefficient_ptr,  # [4, columns], or None: the columns have no statistics
    ref_scale_ptr,  # [columns]
    ref_offset_ptr,
    ref_value_ptr,
    parameter_ptr,
    unit_ptr,  # a power of two that brings H into the range of float16, or None
    h_ptr,  # [block_rows, block_columns]
    row_sum_ptr,  # [column tiles of the block, block_rows], or None for "dot"
    column_sum_ptr,  # [row tiles of the block, block_columns]
    rows,
    columns,
    first_row_tile,
    first_column_tile,
    row_tiles,  # of the block
    block_rows,
    block_column_tiles,
    TRANSFORM: tl.constexpr,
    SELECT: tl.constexpr,
    SIMILARITY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Owns a tile of H and the sums of its rows and columns."""
    row_in_block = tl.program_id(0) % row_tiles
    column_in_block = tl.program_id(0) // row_tiles
    row_tile = first_row_tile + row_in_block
    column_tile = first_column_tile + column_in_block
    if _tile_is_read(bound_ptr, column_bound_ptr, row_tile, column_tile) == 0:
        return
    first_row = row_tile.to(tl.int64) * BLOCK_ROWS
    first_column = column_tile.to(tl.int64) * BLOCK_COLUMNS
    rows_left = tl.minimum(rows - first_row, BLOCK_ROWS).to(tl.int32)
    columns_left = tl.minimum(columns - first_column, BLOCK_COLUMNS).to(tl.int32)
    row = tl.arange(0, BLOCK_ROWS)
    width: tl.constexpr = BLOCK_COLUMNS // PARTS
    column = tl.arange(0, width)
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    block_columns = block_column_tiles * BLOCK_COLUMNS
    h_ptr += row_in_block.to(tl.int64) * BLOCK_ROWS * block_columns + column_in_block * BLOCK_COLUMNS
    h_ptrs = h_ptr + row[:, None] * block_columns + column[None, :]
    if may_count(range_ptr, ref_range_ptr, row_tile, column_tile, SELECT) == 0:
        for part in tl.static_range(PARTS):
            tl.store(h_ptrs + part * width, tl.zeros([BLOCK_ROWS, width], dtype))
        return
    parts = parts_of(
        similarities(
            x_ptr, ref_ptr, square_ptr, ref_square_ptr, first_row, first_column, rows_left, columns_left, SIMILARITY,
            STRIDE, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_D,
        ),
        PARTS,
    )  # fmt: skip
    if row_sum_ptr is not None:
        row_sum = tl.zeros([BLOCK_ROWS], parts[0].dtype)
    for part in tl.static_range(PARTS):
        u = parts[part]
        first = first_column + part * width
        left = columns_left - part * width
        keep = selected(
            label_ptr, ref_label_ptr, id_ptr, ref_id_ptr, first_row, first, rows_left, left, SELECT, BLOCK_ROWS, width
        )  # fmt: skip
        keep = keep & (row < rows_left)[:, None]
        h = _gradient(
            u, keep, coefficient_ptr, scale_ptr, offset_ptr, value_ptr, lower_ptr, upper_ptr, parameter_ptr, rows,
            first_row, rows_left, 0, TRANSFORM,
        )  # fmt: skip
        if ref_coefficient_ptr is not None:
            h += _gradient(
                u, keep, ref_coefficient_ptr, ref_scale_ptr, ref_offset_ptr, ref_value_ptr, ref_lower_ptr,
                ref_upper_ptr, parameter_ptr, columns, first, left, 1, TRANSFORM,
            )  # fmt: skip
        if SIMILARITY == "squared_euclidean":
            h = h * 2.0
        elif SIMILARITY == "euclidean":
            # Also where no pair counts the distance may be NaN.
            h = tl.where((u == 0) | (h == 0), 0.0, h / tl.where(u == 0, 1.0, 0.0 - u))
        if unit_ptr is not None:
            h = h * tl.load(unit_ptr)
            h = tl.where(h != h, h, tl.minimum(tl.maximum(h, 0.0 - _LARGEST_HALF), _LARGEST_HALF))
        h = h.to(dtype)
        tl.store(h_ptrs + part * width, h)
        if row_sum_ptr is not None:
            rounded = h.to(u.dtype)
            row_sum += tl.sum(rounded, axis=1)
            at = row_in_block.to(tl.int64) * block_columns + column_in_block * BLOCK_COLUMNS + part * width
            tl.store(column_sum_ptr + at + column, tl.sum(rounded, axis=0))
    if row_sum_ptr is not None:
        at = column_in_block.to(tl.int64) * block_rows + row_in_block * BLOCK_ROWS
        tl.store(row_sum_ptr + at + row, row_sum)


def _unit(*coefficients: torch.Tensor | None) -> torch.Tensor:
    """The power of two that brings the largest coefficients near 64: float16 then holds shares of 1e-9, and small
    distances, which coefficients are divided by, have room."""
    sizes = [c.abs().sum(0) for c in coefficients if c is not None]
    largest = torch.stack([torch.where(s.isfinite(), s, 0).amax() for s in sizes]).amax()
    return torch.ldexp(torch.ones_like(largest), (7 - torch.frexp(largest).exponent).clamp(-100, 100))


def pair_statistics_backward(
    x: torch.Tensor,
    ref: torch.Tensor | None,
    label: torch.Tensor,
    ref_label: torch.Tensor,
    id: torch.Tensor,
    ref_id: torch.Tensor,
    lower: torch.Tensor | None,
    upper: torch.Tensor | None,
    select: str,
    similarity: str,
    coefficients: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    value: torch.Tensor,
    columns: bool,
    ref_lower: torch.Tensor | None,
    ref_upper: torch.Tensor | None,
    ref_scale: torch.Tensor | None,
    ref_offset: torch.Tensor | None,
    ref_coefficients: torch.Tensor | None,
    ref_value: torch.Tensor | None,
    transform: str,
    p0: float,
    p1: float,
    row_tile: int,
    column_tile: int,
    need_x: bool,
    need_ref: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `pair_statistics_backward_triton`; what it returns stands in `op`."""
    problem = Problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity)
    check(problem)
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {TRANSFORMS}; got {transform!r}")
    if columns and (ref is None or ref_coefficients is None):
        raise ValueError("statistics of the columns need a ref and coefficients")
    row_side = (lower, upper, coefficients, scale, offset, value)
    column_side: tuple[torch.Tensor | None, ...] = row_side if ref is None else (None,) * 6
    if columns:
        column_side = (ref_lower, ref_upper, ref_coefficients, ref_scale, ref_offset, ref_value)
        _check_side(ref, column_side, transform)
    _check_side(x, row_side, transform)
    need_ref = need_ref and ref is not None
    dx, dref = _fake_backward(x, ref, need_x, need_ref)
    if x.numel() == 0 or (ref is not None and ref.numel() == 0) or not (need_x or need_ref):
        return dx.zero_(), dref.zero_()
    with torch.cuda.device_of(x):
        _run(problem, row_side, column_side, parameters_of(x, transform, p0, p1), transform, dx, dref)
    return dx, dref


def _check_side(x: torch.Tensor, side: tuple[torch.Tensor | None, ...], transform: str) -> None:
    lower, upper, coefficients, scale, offset, value = side
    check_rows(x, lower=lower, upper=upper, scale=scale, offset=offset)
    if coefficients.shape != (4, len(x)) or coefficients.dtype != accumulate_dtype(x.dtype):
        raise ValueError(f"coefficients must be [4, {len(x)}] of the accumulator's dtype; got {coefficients.shape}")
    if transform != "none":
        if scale is None or value is None:
            raise ValueError(f"the transform {transform!r} needs a scale and a value")
        check_rows(x, value=value)


def _run(
    problem: Problem,
    row_side: tuple[torch.Tensor | None, ...],
    column_side: tuple[torch.Tensor | None, ...],
    parameters: torch.Tensor | None,
    transform: str,
    dx: torch.Tensor,
    dref: torch.Tensor,
) -> None:
    t = Tiles(problem, burden=3 if problem.x.dtype.itemsize == 2 else 4)
    row_side, column_side = (
        [None if v is None or (i > 2 and transform == "none") else v.contiguous() for i, v in enumerate(side)]
        for side in (row_side, column_side)
    )
    c = t.config
    height = min(BLOCK // c.rows, t.row_tiles) * c.rows
    width = min(max(1, WORKSPACE // (height * t.x.dtype.itemsize * c.columns)), t.column_tiles) * c.columns
    unit = _unit(row_side[2], column_side[2]) if t.x.dtype == torch.float16 else None
    h = t.x.new_empty(height, width)
    need_x, need_ref = dx.numel() > 0, dref.numel() > 0
    row_blocks, column_blocks = range(0, t.n, height), range(0, t.m, width)
    # One gradient alone is summed in a buffer of one block.
    order = [(i, j) for i, j in itertools.product(row_blocks, column_blocks)]
    if need_ref:
        order = [(i, j) for j, i in itertools.product(column_blocks, row_blocks)]
    of_rows: dict[int, Gradient] = {}
    of_columns: dict[int, Gradient] = {}
    for i, j in order:
        rows, columns = min(height, t.n - i), min(width, t.m - j)
        row_tiles, column_tiles = triton.cdiv(rows, c.rows), triton.cdiv(columns, c.columns)
        sums: tuple[torch.Tensor | None, ...] = (None, None)
        if t.similarity != "dot":  # tiles that are left out have sums of 0
            empty = t.x.new_empty if t.bounds is None else t.x.new_zeros
            sums = (empty(column_tiles, height, dtype=t.dtype), empty(row_tiles, width, dtype=t.dtype))
        gradient_kernel[(row_tiles * column_tiles,)](
            *t.tensors[:8], *row_side[:2], *column_side[:2], *t.ranges, t.bounds, t.column_bounds, *row_side[2:],
            *column_side[2:], parameters, unit, h, *sums, t.n, t.m, i // c.rows, j // c.columns, row_tiles, height,
            width // c.columns, TRANSFORM=transform, **t.constants,
        )  # fmt: skip
        if need_x:
            if i not in of_rows:
                of_rows[i] = Gradient(t, rows, columns, False)
            of_rows[i].add(h, sums[0], i, j, columns)
            if j + width >= t.m:
                of_rows.pop(i).finish(dx[i : i + rows], t.x[i : i + rows], unit)
        if need_ref:
            if j not in of_columns:
                of_columns[j] = Gradient(t, columns, rows, True)
            of_columns[j].add(h, sums[1], j, i, rows)
            if i + height >= t.n:
                of_columns.pop(j).finish(dref[j : j + columns], t.ref[j : j + columns], unit)
