# mypy: ignore-errors
"""The statistics of pairs in Triton: a program walks over a split of the columns with the statistics of its rows in
registers, and a second kernel merges the splits in their order. Sums across tiles are float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...._dtypes import accumulate_dtype
from ...triton.launch import launch
from ...triton.math import sigmoid, softplus
from ..problem import (
    PairProblem,
    PairRowStatistics,
    PairStatisticsCall,
    PairStatisticsResult,
    Transform,
    check_tile,
    statistics_results,
    transposed,
)
from .kernels import Tiles, check, check_rows
from .tiles import columns_of, may_count, part_of, share_of_program, tile_of

# Arrays [splits, N] of the partial statistics, behind one float64 and one int64 pointer. SHIFT is the largest power of
# a log-sum-exp, and for "softplus" the derivative to the offset.
SUM, SQUARES, LOW, HIGH, SHIFT, TOTAL, SLOPE = (tl.constexpr(i) for i in range(7))
COUNT, LOW_INDEX, HIGH_INDEX = (tl.constexpr(i) for i in range(3))
NUMBERS, INTEGERS = 7, 3
TRANSFORMS = ("none", "linear", "circle", "softplus")
_NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _extreme_of_tile(u, keep, LARGEST: tl.constexpr):
    """(value, lowest column of the tile that has it) of every row; NaN wins, _NO_COLUMN where no pair counts."""
    if LARGEST:
        masked = tl.where(keep, u, float("-inf"))
        best = tl.reduce(masked, 1, _larger)
    else:
        masked = tl.where(keep, u, float("inf"))
        best = tl.reduce(masked, 1, _smaller)
    # Only a row whose extreme is NaN has any.
    hit = keep & ((u == best[:, None]) | (u != u))
    column = tl.arange(0, u.shape[1])[None, :]
    return best, tl.min(tl.where(hit, column, _NO_COLUMN), axis=1)


@triton.jit
def _merge_extreme(best, index, other, other_index, LARGEST: tl.constexpr):
    """Of columns before and behind; indices of -1 stand for no column."""
    better = other > best if LARGEST else other < best
    better = better | ((other != other) & (best == best)) | (index < 0)
    better = better & (other_index >= 0)
    return tl.where(better, other, best), tl.where(better, other_index, index)


@triton.jit
def _finite(top):
    """What is subtracted from the powers: an infinite top, of which nothing can be, is left out."""
    return tl.where(tl.abs(top) < float("inf"), top, 0.0)


@triton.jit
def _rescale(top, new_top):
    """What a sum of exp(power - top) is multiplied by; 0 stays 0 whatever the tops."""
    difference = _finite(top) - _finite(new_top)
    return tl.exp(tl.where(difference > 0, 0.0, difference))


@triton.jit
def _merge_sums(top, value, slope, other_top, other_value, other_slope):
    """Of two lots of powers: their largest, and the sums of exp(power - largest) and of what that is weighted by."""
    new_top = _larger(top, other_top)
    mine = _rescale(top, new_top).to(tl.float64)
    theirs = _rescale(other_top, new_top).to(tl.float64)
    return new_top, value * mine + other_value * theirs, slope * mine + other_slope * theirs


@triton.jit
def _circle(u, scale, parameter_ptr):
    """(sign(scale), relu(v + p0), v + p1) with v = sign(scale) u."""
    sign = tl.where(scale < 0, -1.0, tl.where(scale == 0, 0.0, 1.0)).to(u.dtype)
    v = sign * u
    reach = v + tl.load(parameter_ptr)
    return sign, tl.where(reach < 0, 0.0, reach), v + tl.load(parameter_ptr + 1)


@triton.jit
def _power(u, scale, parameter_ptr, TRANSFORM: tl.constexpr):
    """The logarithm of what a pair adds to the sum of its row; scale as u, [rows, 1] or [1, columns]."""
    if TRANSFORM == "linear":
        power = scale * u
    else:
        _, reach, beyond = _circle(u, scale, parameter_ptr)
        power = tl.abs(scale) * reach * beyond
    return power


@triton.jit(do_not_specialize=["n", "m", "row_tiles", "column_tiles", "splits"])
def forward_kernel(
    pairs,  # TiledPairs
    n,
    m,
    row_tiles,
    column_tiles,
    splits,
    scale_ptr,  # [rows], or None
    offset_ptr,  # [rows], or None
    parameter_ptr,  # p0 and p1 of "circle", or None
    number_ptr,  # float64 [NUMBERS, splits, rows]
    integer_ptr,  # int64 [INTEGERS, splits, rows]
    MOMENTS: tl.constexpr,
    EXTREMES: tl.constexpr,
    TRANSFORM: tl.constexpr,
):
    """Owns the partial statistics of a tile of rows over one split of the columns."""
    row_tile, split, rows, first_tile, end_tile = share_of_program(
        tl.program_id(0), pairs, n, row_tiles, column_tiles, splits
    )
    first_row, rows_left = rows
    row = tl.arange(0, pairs.BLOCK_ROWS)
    here = row < rows_left
    dtype: tl.constexpr = tl.float64 if pairs.x.dtype.element_ty == tl.float64 else tl.float32
    count = tl.zeros([pairs.BLOCK_ROWS], tl.int64)
    if MOMENTS:
        total = tl.zeros([pairs.BLOCK_ROWS], tl.float64)
        squares = tl.zeros([pairs.BLOCK_ROWS], tl.float64)
    if EXTREMES:
        low = tl.full([pairs.BLOCK_ROWS], float("inf"), dtype)
        high = tl.full([pairs.BLOCK_ROWS], float("-inf"), dtype)
        argmin = tl.full([pairs.BLOCK_ROWS], -1, tl.int64)
        argmax = tl.full([pairs.BLOCK_ROWS], -1, tl.int64)
    if TRANSFORM != "none":
        scale = tl.load(scale_ptr + first_row + row, mask=here, other=1.0)[:, None]
        if TRANSFORM == "softplus":
            shift = tl.zeros([pairs.BLOCK_ROWS], tl.float64)
        else:
            shift = tl.full([pairs.BLOCK_ROWS], float("-inf"), dtype)
        value = tl.zeros([pairs.BLOCK_ROWS], tl.float64)
        slope = tl.zeros([pairs.BLOCK_ROWS], tl.float64)
    for tile in range(first_tile, end_tile):
        if may_count(pairs, row_tile, tile):
            columns = columns_of(pairs, tile, m)
            parts = tile_of(pairs, rows, columns)
            for part in tl.static_range(pairs.PARTS):
                u, keep, first = part_of(pairs, parts, part, rows, columns)
                count += tl.sum(keep.to(tl.int32), axis=1)
                if MOMENTS:
                    kept = tl.where(keep, u, 0.0)
                    total += tl.sum(kept, axis=1).to(tl.float64)
                    squares += tl.sum(kept * kept, axis=1).to(tl.float64)
                if EXTREMES:
                    best, column = _extreme_of_tile(u, keep, False)
                    index = tl.where(column == _NO_COLUMN, -1, first + column)
                    low, argmin = _merge_extreme(low, argmin, best, index, False)
                    best, column = _extreme_of_tile(u, keep, True)
                    index = tl.where(column == _NO_COLUMN, -1, first + column)
                    high, argmax = _merge_extreme(high, argmax, best, index, True)
                if TRANSFORM == "softplus":
                    z = scale * u
                    if offset_ptr is not None:
                        z += tl.load(offset_ptr + first_row + row, mask=here, other=0.0)[:, None]
                    value += tl.sum(tl.where(keep, softplus(z), 0.0), axis=1).to(tl.float64)
                    sigma = sigmoid(z)
                    shift += tl.sum(tl.where(keep, sigma, 0.0), axis=1).to(tl.float64)
                    slope += tl.sum(tl.where(keep, sigma * u, 0.0), axis=1).to(tl.float64)
                elif TRANSFORM != "none":
                    power = tl.where(keep, _power(u, scale, parameter_ptr, TRANSFORM), float("-inf"))
                    top = tl.reduce(power, 1, _larger)
                    share = tl.exp(power - _finite(top)[:, None])
                    weighted = tl.where(keep, share * (u if TRANSFORM == "linear" else power), 0.0)
                    shift, value, slope = _merge_sums(
                        shift, value, slope, top, tl.sum(share, axis=1).to(tl.float64),
                        tl.sum(weighted, axis=1).to(tl.float64),
                    )  # fmt: skip
    at = split.to(tl.int64) * n + first_row + row
    stride = splits.to(tl.int64) * n
    tl.store(integer_ptr + COUNT * stride + at, count, mask=here)
    if MOMENTS:
        tl.store(number_ptr + SUM * stride + at, total, mask=here)
        tl.store(number_ptr + SQUARES * stride + at, squares, mask=here)
    if EXTREMES:
        tl.store(number_ptr + LOW * stride + at, low.to(tl.float64), mask=here)
        tl.store(number_ptr + HIGH * stride + at, high.to(tl.float64), mask=here)
        tl.store(integer_ptr + LOW_INDEX * stride + at, argmin, mask=here)
        tl.store(integer_ptr + HIGH_INDEX * stride + at, argmax, mask=here)
    if TRANSFORM != "none":
        tl.store(number_ptr + SHIFT * stride + at, shift.to(tl.float64), mask=here)
        tl.store(number_ptr + TOTAL * stride + at, value, mask=here)
        tl.store(number_ptr + SLOPE * stride + at, slope, mask=here)


@triton.jit(do_not_specialize=["rows", "splits"])
def merge_kernel(
    number_ptr,  # float64 [NUMBERS, splits, rows]
    integer_ptr,  # int64 [INTEGERS, splits, rows]
    scale_ptr,  # [rows], or None
    count_ptr,  # [rows], as all below, or None
    sum_ptr,
    squares_ptr,
    low_ptr,
    low_index_ptr,
    high_ptr,
    high_index_ptr,
    value_ptr,
    d_scale_ptr,
    d_offset_ptr,
    rows,
    splits,
    MOMENTS: tl.constexpr,
    EXTREMES: tl.constexpr,
    TRANSFORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Owns the statistics of BLOCK rows: those of the splits in rising order."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < rows
    stride = splits.to(tl.int64) * rows
    count = tl.zeros([BLOCK], tl.int64)
    low = tl.full([BLOCK], float("inf"), tl.float64)
    high = tl.full([BLOCK], float("-inf"), tl.float64)
    argmin = tl.full([BLOCK], -1, tl.int64)
    argmax = tl.full([BLOCK], -1, tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    shift = tl.full([BLOCK], 0.0 if TRANSFORM == "softplus" else float("-inf"), tl.float64)
    value = tl.zeros([BLOCK], tl.float64)
    slope = tl.zeros([BLOCK], tl.float64)
    origin = tl.full([], 0, tl.int64)
    for split in range(splits):
        integers = integer_ptr + (origin + split) * rows + row
        numbers = number_ptr + (origin + split) * rows + row
        count += tl.load(integers + COUNT * stride, mask=here, other=0)
        if MOMENTS:
            total += tl.load(numbers + SUM * stride, mask=here, other=0.0)
            squares += tl.load(numbers + SQUARES * stride, mask=here, other=0.0)
        if EXTREMES:
            other = tl.load(numbers + LOW * stride, mask=here, other=0.0)
            index = tl.load(integers + LOW_INDEX * stride, mask=here, other=-1)
            low, argmin = _merge_extreme(low, argmin, other, index, False)
            other = tl.load(numbers + HIGH * stride, mask=here, other=0.0)
            index = tl.load(integers + HIGH_INDEX * stride, mask=here, other=-1)
            high, argmax = _merge_extreme(high, argmax, other, index, True)
        if TRANSFORM != "none":
            shift_of = tl.load(numbers + SHIFT * stride, mask=here, other=0.0)
            value_of = tl.load(numbers + TOTAL * stride, mask=here, other=0.0)
            slope_of = tl.load(numbers + SLOPE * stride, mask=here, other=0.0)
            if TRANSFORM == "softplus":
                shift, value, slope = shift + shift_of, value + value_of, slope + slope_of
            else:
                shift, value, slope = _merge_sums(shift, value, slope, shift_of, value_of, slope_of)
    tl.store(count_ptr + row, count, mask=here)
    if MOMENTS:
        tl.store(sum_ptr + row, total, mask=here)
        tl.store(squares_ptr + row, squares, mask=here)
    if EXTREMES:
        tl.store(low_ptr + row, low, mask=here)
        tl.store(low_index_ptr + row, argmin, mask=here)
        tl.store(high_ptr + row, high, mask=here)
        tl.store(high_index_ptr + row, argmax, mask=here)
    if TRANSFORM == "softplus":
        tl.store(value_ptr + row, value, mask=here)
        tl.store(d_scale_ptr + row, slope, mask=here)
        tl.store(d_offset_ptr + row, shift, mask=here)
    elif TRANSFORM != "none":
        some = count > 0
        tl.store(value_ptr + row, tl.where(some, _finite(shift) + tl.log(value), float("-inf")), mask=here)
        d_scale = slope / tl.where(some, value, 1.0)
        if TRANSFORM == "circle":
            d_scale = d_scale / tl.load(scale_ptr + row, mask=here, other=1.0).to(tl.float64)
        tl.store(d_scale_ptr + row, tl.where(some, d_scale, 0.0), mask=here)


def pair_statistics(call: PairStatisticsCall) -> PairStatisticsResult:
    """The op `pair_statistics_triton`. The tiles are those of the table here."""
    check_tile(call.tile)
    transform = call.transform.name
    if call.columns and call.problem.ref is None:
        raise ValueError("statistics of the columns need a ref")
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {TRANSFORMS}; got {transform!r}")
    out = statistics_results(call)
    sides = [(call.problem, call.scale, call.offset, out.rows)]
    if call.columns:
        of_columns = call.of_columns
        sides.append((transposed(call.problem, of_columns), of_columns.scale, of_columns.offset, out.columns))
    for *side, _ in sides:
        _check_side(*side, transform)
    for side in sides:
        _of_rows(*side, call)
    return out


def _check_side(problem: PairProblem, scale: torch.Tensor | None, offset: torch.Tensor | None, transform: str) -> None:
    check(problem)
    check_rows(problem.x, scale=scale, offset=offset)
    if transform != "none" and scale is None:
        raise ValueError(f"the transform {transform!r} needs a scale")


def parameters_of(x: torch.Tensor, transform: Transform) -> torch.Tensor | None:
    """[2] on the device, in full precision whatever the dtype."""
    if transform.name != "circle":
        return None
    parameters = x.new_empty(2, dtype=accumulate_dtype(x.dtype))
    parameters[0].fill_(transform.p0)
    parameters[1].fill_(transform.p1)
    return parameters


def _of_rows(
    problem: PairProblem,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    out: PairRowStatistics,
    call: PairStatisticsCall,
) -> None:
    """Write the statistics of the rows of the problem, which are those of the call or of its columns."""
    moments, extremes, transform = call.moments, call.extremes, call.transform.name
    burden = moments + 2 * extremes + {"none": 0, "linear": 3}.get(transform, 4)
    burden += (problem.similarity != "dot") + (problem.lower is not None or problem.upper is not None)
    burden += (problem.id.numel() > 0) + (problem.label.numel() > 0 and problem.label.dtype == torch.int64)
    t = Tiles(problem, burden)
    if t.n == 0:
        return
    splits = t.splits()
    numbers = t.x.new_empty(NUMBERS, splits, t.n, dtype=torch.float64)
    integers = t.x.new_empty(INTEGERS, splits, t.n, dtype=torch.int64)
    scale, offset = (None if v is None or transform == "none" else v.contiguous() for v in (scale, offset))
    flags = {"MOMENTS": moments, "EXTREMES": extremes, "TRANSFORM": transform}
    launch(
        forward_kernel, t.row_tiles * splits,
        *t.walk(splits), scale, offset if transform == "softplus" else None, parameters_of(t.x, call.transform),
        numbers, integers, **flags, **t.options,
    )  # fmt: skip
    results = [v if v.numel() else None for v in out]
    launch(
        merge_kernel, triton.cdiv(t.n, 128),
        numbers, integers, scale, *results, t.n, splits, **flags, BLOCK=128, num_warps=4,
    )  # fmt: skip
