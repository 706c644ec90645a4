# mypy: ignore-errors
"""Lengths in Triton, and the samples made ready: one pass over the centres, one over x.

Each row of the copy of x is brought below length 1 by an exact power of two, so that no product exceeds the length of
its centre; `multiplier` turns it into the x that the cosines are taken of.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...triton.math import exponent_of, grow, held, load, no_sums, power_of_two, root
from .. import problem

# Values of `own` below 0.
IGNORED, ABSENT, OUTSIDE = (tl.constexpr(code) for code in (problem.IGNORED, problem.ABSENT, problem.OUTSIDE))


@triton.jit
def _inverse(x):
    return 1.0 / x if x.dtype == tl.float64 else tl.math.div_rn(1.0, x)


@triton.jit
def _lengths(pointers, columns, mask, D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(|row| / 2^exponent, exponent) of rows that start at pointers [BLOCK_ROWS, 1]; 0 where the mask is not set."""
    total = no_sums(pointers, BLOCK_ROWS)
    exponent = exponent_of(total)
    for start in range(0, D, BLOCK_D):
        value = load(pointers + start + columns, mask & (columns < D - start))
        exponent, factor = grow(exponent, tl.max(tl.abs(value), axis=1))
        value = value * power_of_two(-exponent, value.dtype)[:, None]
        total = total * factor * factor + tl.sum(value * value, axis=1)
    return root(total), exponent


@triton.jit(do_not_specialize=["rows"])
def center_kernel(
    w_ptr,  # [rows, D], or more rows with an index
    index_ptr,  # int64 [rows / SUB_CENTERS] or None
    norm_ptr,  # [rows]
    rows,
    SUB_CENTERS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns the lengths of BLOCK_ROWS centres. Reads w once."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    there = row < tl.minimum(rows - first, BLOCK_ROWS).to(tl.int32)
    columns = tl.arange(0, BLOCK_D)[None, :]
    if index_ptr is None:
        w_row = w_ptr + first * D + row[:, None] * D
    else:
        at = first + row
        own = tl.load(index_ptr + at // SUB_CENTERS, mask=there, other=0)
        w_row = w_ptr + (own * SUB_CENTERS + at % SUB_CENTERS)[:, None] * D
    norm, exponent = _lengths(w_row, columns, there[:, None], D, BLOCK_ROWS, BLOCK_D)
    tl.store(norm_ptr + first + row, norm * power_of_two(exponent, norm.dtype), mask=there)


@triton.jit
def _class_offsets(index_ptr, classes, SIZE: tl.constexpr):
    """Where the SIZE numbers of each class begin: side by side, in int32, or where the index says."""
    offsets = classes * SIZE
    if index_ptr is not None:
        offsets = tl.load(index_ptr + classes) * SIZE
    return offsets


@triton.jit
def _inverse_norms(w_norm_ptr, first_class, classes, mask, center, SUB_CENTERS, EPS, NORMALIZE_WEIGHT: tl.constexpr):
    """1 / max(|w|, eps) of one sub-centre of each class, or 1."""
    norm = tl.load(w_norm_ptr + first_class * SUB_CENTERS + classes * SUB_CENTERS + center, mask=mask, other=1.0)
    return _inverse(tl.maximum(norm, EPS)) if NORMALIZE_WEIGHT else tl.full(norm.shape, 1.0, norm.dtype)


@triton.jit(do_not_specialize=["rows", "classes", "ignore_index", "absent_index"])
def row_kernel(
    x_ptr,  # [rows, D]
    w_ptr,  # [classes * SUB_CENTERS, D], or more rows with an index
    index_ptr,  # int64 [classes]: which of the weight's they are, or None for all
    w_norm_ptr,  # [classes * SUB_CENTERS]
    target_ptr,  # [rows]
    d_neg_lse_ptr,  # [rows], or None, as the three below
    d_target_cos_ptr,  # [rows]
    d_neg_sum_ptr,  # [rows]
    d_x_norm_ptr,  # [rows]
    copy_ptr,  # [padded rows, STRIDE]
    multiplier_ptr,  # [padded rows]
    own_ptr,  # [padded rows]
    x_norm_ptr,  # [rows], or None, as the two below
    target_cos_ptr,  # float64 [rows]
    target_center_ptr,  # [rows]
    rows,
    classes,
    ignore_index,
    absent_index,
    SUB_CENTERS: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE_X: tl.constexpr,
    NORMALIZE_WEIGHT: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_ROWS samples: their copy, multiplier and class, and in the forward their length and target cosine.
    Reads x three times (twice from the caches) and the target's own centres. The target cosine is in double throughout:
    float cannot tell the cosine of a small angle from 1, and the slope of an angular margin grows as the angle shrinks.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    target = tl.load(target_ptr + row, mask=row < rows, other=0)
    active = (row < rows) & (target != ignore_index)
    if d_neg_lse_ptr is not None:
        # Nothing reaches a row into which nothing flows, nor anyone through it, whatever it holds.
        flows = tl.load(d_neg_lse_ptr + row, mask=active, other=0.0) != 0
        flows = flows | (tl.load(d_target_cos_ptr + row, mask=active, other=0.0) != 0)
        flows = flows | (tl.load(d_neg_sum_ptr + row, mask=active, other=0.0) != 0)
        active = flows | (tl.load(d_x_norm_ptr + row, mask=active, other=0.0) != 0)
    here = active & (target != absent_index)
    inside = here & (target >= 0) & (target < classes)
    own = tl.where(inside, target, tl.where(here, OUTSIDE, tl.where(active, ABSENT, IGNORED)))
    tl.store(own_ptr + row, own)

    columns = tl.arange(0, BLOCK_D)[None, :]
    x_row = x_ptr + row[:, None] * D
    norm, exponent = _lengths(x_row, columns, active[:, None], D, BLOCK_ROWS, BLOCK_D)
    unit = held(exponent + exponent_of(norm) + 1, norm.dtype)
    shrink = power_of_two(-unit, norm.dtype)
    length = norm * power_of_two(exponent, norm.dtype)
    if NORMALIZE_X:
        scaled = norm * power_of_two(held(exponent - unit, norm.dtype), norm.dtype)
        multiplier = _inverse(tl.maximum(scaled, EPS * shrink))
    else:
        multiplier = power_of_two(unit, norm.dtype)
    tl.store(multiplier_ptr + row, multiplier)
    for start in range(0, STRIDE, BLOCK_D):
        x = load(x_row + start + columns, active[:, None] & (columns < D - start))
        tl.store(copy_ptr + row[:, None] * STRIDE + start + columns, x * shrink[:, None], mask=columns < STRIDE - start)

    if x_norm_ptr is not None:
        tl.store(x_norm_ptr + row, length, mask=row < rows)
        best = tl.full([BLOCK_ROWS], float("-inf"), tl.float64)
        best_center = tl.zeros([BLOCK_ROWS], tl.int64)
        own_class = own
        if index_ptr is not None:
            own_class = tl.load(index_ptr + own, mask=inside, other=0)
        for center in tl.static_range(SUB_CENTERS):
            dot = tl.zeros([BLOCK_ROWS], tl.float64)
            x_square, w_square = dot, dot
            w_row = w_ptr + (own_class * SUB_CENTERS + center)[:, None] * D
            for start in range(0, D, BLOCK_D):
                mask = inside[:, None] & (columns < D - start)
                mine = (load(x_row + start + columns, mask) * shrink[:, None]).to(tl.float64)
                centre = load(w_row + start + columns, mask).to(tl.float64)
                dot += tl.sum(mine * centre, 1)
                x_square += tl.sum(mine * mine, 1)
                w_square += tl.sum(centre * centre, 1)
            if norm.dtype == tl.float64:  # whose squares may overflow; the lengths at hand are as good
                inverse = _inverse_norms(w_norm_ptr, own, own * 0, inside, center, SUB_CENTERS, EPS, NORMALIZE_WEIGHT)
                cos = dot * multiplier * inverse
            else:
                floor = shrink.to(tl.float64) * EPS
                cos = dot / tl.maximum(tl.sqrt(x_square), floor) if NORMALIZE_X else dot / shrink
                cos = cos / tl.maximum(tl.sqrt(w_square), EPS) if NORMALIZE_WEIGHT else cos
            better = (cos > best) | (cos != cos)
            best = tl.where(better, cos, best)
            best_center = tl.where(better, center, best_center)
        nothing = tl.where(own == OUTSIDE, float("nan"), 0.0)
        tl.store(target_cos_ptr + row, tl.where(inside, best, nothing), mask=row < rows)
        tl.store(target_center_ptr + row, tl.where(inside, best_center, 0), mask=row < rows)
