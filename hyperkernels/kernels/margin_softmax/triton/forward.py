# mypy: ignore-errors
"""The forward Triton kernels of the class softmax, and what the backward shares with them.

A tile is BLOCK_ROWS samples by BLOCK_CLASSES classes. Its products x . w are recomputed wherever they are needed, from
the centres as they are stored and from the copy of x that `rows` makes; the lengths come in afterwards, on the
float32 accumulators. Offsets within a tile are int32, its base is int64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...triton.math import mask_if
from ...triton.rows import program_rows
from .rows import IGNORED, OUTSIDE, _class_offsets, _inverse, _inverse_norms
from .transforms import _parameter, _transform

LOG2_E = tl.constexpr(1.4426950408889634)
# The level of what is left out: finite, so that its share exp2(LOW) * LOW of a sum is 0 and not NaN.
LOW = tl.constexpr(-1e30)
# Arrays [tiles, N] of the partial sums, behind one pointer. Where the transform is the identity, TOP is HARDEST.
NEG_SUM, HARDEST, INDEX, EXP_SUM, SLOPE, TOP, HARD_COS, HARD_COUNT = (tl.constexpr(i) for i in range(8))


class TiledClasses(NamedTuple):
    """The first argument of the kernels that compute cosines: pointers, some of them None, and constants."""

    x: torch.Tensor  # the copy: [padded rows, STRIDE]
    w: torch.Tensor  # [classes * SUB_CENTERS, D], or more rows with an index
    index: torch.Tensor | None  # int64 [classes]: which of the weight's they are, or None for all
    multiplier: torch.Tensor  # [padded rows]
    w_norm: torch.Tensor  # [classes * SUB_CENTERS]
    own: torch.Tensor  # [padded rows]
    scale: torch.Tensor  # [rows]
    class_scale: torch.Tensor | None  # [classes]
    bias: torch.Tensor | None  # [classes]
    transform: torch.Tensor | None  # [rows, parameters]
    KIND: tl.constexpr
    SUMMED: tl.constexpr
    SUB_CENTERS: tl.constexpr
    EPS: tl.constexpr
    NORMALIZE_WEIGHT: tl.constexpr
    EVEN: tl.constexpr  # no tile is cut short
    D: tl.constexpr
    STRIDE: tl.constexpr
    PRECISION: tl.constexpr
    BLOCK_ROWS: tl.constexpr
    BLOCK_CLASSES: tl.constexpr
    BLOCK_D: tl.constexpr


@triton.jit
def _products(
    c,  # TiledClasses
    x_ptr,  # the tile's first row
    w_ptr,  # the tile's first centre; the weight's with an index
    index_ptr,  # the index of the tile's first class, or None
    left,  # classes of the tile that exist
):
    """x . w of the tile for one sub-centre. Classes past the last one repeat it."""
    depth = tl.arange(0, c.BLOCK_D)
    classes = tl.minimum(tl.arange(0, c.BLOCK_CLASSES), left - 1)
    x_ptrs = x_ptr + tl.arange(0, c.BLOCK_ROWS)[:, None] * c.STRIDE + depth[None, :]
    w_ptrs = w_ptr + _class_offsets(index_ptr, classes, c.SUB_CENTERS * c.D)[None, :] + depth[:, None]
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    products = tl.zeros([c.BLOCK_ROWS, c.BLOCK_CLASSES], dtype)
    for start in range(0, c.D, c.BLOCK_D):
        x = tl.load(x_ptrs + start)
        if c.D % c.BLOCK_D == 0:
            w = tl.load(w_ptrs + start)
        else:
            w = tl.load(w_ptrs + start, mask=depth[:, None] < c.D - start, other=0.0)
        products = tl.dot(x, w, products, input_precision=c.PRECISION, out_dtype=dtype)
    return products


@triton.jit
def _inverse_norms_of_tile(c, first_class, left, center):
    """1 / max(|w|, eps) of one sub-centre of the classes of a tile, or 1."""
    classes = tl.arange(0, c.BLOCK_CLASSES)
    return _inverse_norms(
        c.w_norm, first_class, classes, classes < left, center, c.SUB_CENTERS, c.EPS, c.NORMALIZE_WEIGHT
    )


@triton.jit
def _cosines(c, multiplier, first_row, first_class, left):
    """(cosines of the tile, the sub-centre each is of), from the rows' multipliers [BLOCK_ROWS]."""
    x_ptr = c.x + first_row * c.STRIDE
    w_ptr = c.w
    index_ptr = c.index
    if index_ptr is None:
        w_ptr += first_class * (c.SUB_CENTERS * c.D)
    else:
        index_ptr += first_class
    for center in tl.static_range(c.SUB_CENTERS):
        cos = _products(c, x_ptr, w_ptr + center * c.D, index_ptr, left)
        inverse = _inverse_norms_of_tile(c, first_class, left, center)
        cos = cos * multiplier[:, None] * inverse[None, :]
        if center == 0:
            best = cos
            best_center = tl.zeros([c.BLOCK_ROWS, c.BLOCK_CLASSES], tl.int8)
        else:
            better = (cos > best) | (cos != cos)
            best = tl.where(better, cos, best)
            best_center = tl.where(better, tl.full(best_center.shape, center, tl.int8), best_center)
    return best, best_center


@triton.jit
def _per_class(pointer, first_class, left, nothing: tl.constexpr, dtype: tl.constexpr, BLOCK_CLASSES: tl.constexpr):
    """The numbers of the tile's classes [1, BLOCK_CLASSES], or the one that stands for None [1, 1]."""
    if pointer is not None:
        column = tl.arange(0, BLOCK_CLASSES)
        value = tl.load(pointer + first_class + column, mask=column < left, other=nothing)[None, :]
    else:
        value = tl.full([1, 1], nothing, dtype)
    return value


@triton.jit
def _own_column(own, first_class, BLOCK_CLASSES: tl.constexpr):
    """The column of the tile that holds each row's target, -1 where none does."""
    column = own - first_class
    return tl.where((own >= 0) & (column >= 0) & (column < BLOCK_CLASSES), column, -1).to(tl.int32)


@triton.jit
def _hidden_classes(c, own, first_class, left):
    """(which classes of the tile are their row's own, and which are that or do not exist), [BLOCK_ROWS, BLOCK_CLASSES]
    where some class may not exist."""
    column = tl.arange(0, c.BLOCK_CLASSES)[None, :]
    is_own = column == _own_column(own, first_class, c.BLOCK_CLASSES)[:, None]
    hidden = is_own
    if not c.EVEN:
        hidden = hidden | (column >= left)
    return is_own, hidden


@triton.jit
def _negatives(c, cos, row, there, first_class, left):
    """(scale, class_scale and bias of the tile, and what `_transform` makes of its cosines)."""
    scale = tl.load(c.scale + row, mask=there, other=1.0)[:, None]
    class_scale = _per_class(c.class_scale, first_class, left, 1.0, cos.dtype, c.BLOCK_CLASSES)
    bias = _per_class(c.bias, first_class, left, 0.0, cos.dtype, c.BLOCK_CLASSES)
    value, slope, bias_slope = _transform(c.KIND, cos, c.transform, row, there, scale, bias)
    return scale, class_scale, bias, value, slope, bias_slope


@triton.jit(do_not_specialize=["rows", "row_tiles", "tiles", "classes", "first_tile"])
def forward_kernel(
    c,  # TiledClasses
    partial_ptr,  # the arrays [tiles, rows]
    rows,
    row_tiles,
    tiles,
    classes,
    first_tile,
):
    """Owns one tile: its row statistics over the classes that are not the row's own, one number per row each. The row
    tiles of a tile of classes run side by side, so that a centre is read from memory once."""
    program = tl.program_id(0)
    tile = (program // row_tiles).to(tl.int64)
    first_row = (program % row_tiles).to(tl.int64) * c.BLOCK_ROWS
    first_class = (first_tile + tile) * c.BLOCK_CLASSES
    left = tl.minimum(classes - first_class, c.BLOCK_CLASSES).to(tl.int32)
    row = first_row + tl.arange(0, c.BLOCK_ROWS)
    there = row < rows
    multiplier = tl.load(c.multiplier + row)
    cos, _ = _cosines(c, multiplier, first_row, first_class, left)
    column = tl.arange(0, c.BLOCK_CLASSES)[None, :]
    _, hidden = _hidden_classes(c, tl.load(c.own + row), first_class, left)
    scale, class_scale, bias, value, _, _ = _negatives(c, cos, row, there, first_class, left)
    plain = cos
    offset = bias
    if c.class_scale is not None:
        value *= class_scale
        plain *= class_scale
    if c.bias is not None:
        offset = bias * _inverse(scale)
        plain += offset

    partial_ptr += tile * rows + row
    plane = tiles.to(tl.int64) * rows
    tl.store(partial_ptr + NEG_SUM * plane, tl.sum(tl.where(hidden, 0.0, value), axis=1), mask=there)
    plain = tl.where(hidden, LOW, plain)
    hardest = tl.max(plain, axis=1)
    index = tl.min(tl.where(plain == hardest[:, None], column, c.BLOCK_CLASSES), axis=1)
    tl.store(partial_ptr + HARDEST * plane, tl.where(hardest == LOW, float("-inf"), hardest), mask=there)
    tl.store(partial_ptr + INDEX * plane, index.to(cos.dtype), mask=there)
    if not c.SUMMED:
        level = plain
        top = hardest
        if c.KIND != "cosine":
            level = value
            if c.bias is not None:
                level += offset
            level = tl.where(hidden, LOW, level)
            top = tl.max(level, axis=1)
            tl.store(partial_ptr + TOP * plane, tl.where(top == LOW, float("-inf"), top), mask=there)
        if c.bias is None:
            value = level
        weight = tl.exp2((level - top[:, None]) * (scale * LOG2_E))
        exp_sum = tl.sum(weight, axis=1)
        slope = tl.sum(weight * value, axis=1)
        # A maximum passes NaN over; a row that holds one must not look empty.
        empty = (top == LOW) & (exp_sum == exp_sum)
        tl.store(partial_ptr + EXP_SUM * plane, tl.where(empty, 0.0, exp_sum), mask=there)
        tl.store(partial_ptr + SLOPE * plane, tl.where(empty, 0.0, slope), mask=there)
    if c.KIND == "quadratic":
        hard = (cos > _parameter(c.transform, row, there, 0, 7)) & (hidden == 0)
        tl.store(partial_ptr + HARD_COS * plane, tl.sum(tl.where(hard, cos, 0.0), axis=1), mask=there)
        tl.store(partial_ptr + HARD_COUNT * plane, tl.sum(hard.to(cos.dtype), axis=1), mask=there)


@triton.jit(do_not_specialize=["rows", "tiles", "first_tile", "all_tiles", "start", "finish"])
def merge_kernel(
    partial_ptr,  # the arrays [tiles, rows]
    own_ptr,  # [padded rows]
    scale_ptr,  # [rows], as all below
    neg_lse_ptr,
    hardest_cos_ptr,
    hardest_class_ptr,
    neg_sum_ptr,
    hard_cos_ptr,
    hard_count_ptr,
    top_ptr,
    log_sum_ptr,  # the sum itself until the last call
    slope_ptr,
    block_lse_ptr,  # [rows, all tiles] or None
    rows,
    tiles,
    first_tile,
    all_tiles,
    start,  # whether this is the first call, and the last
    finish,
    KIND: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Owns BLOCK_ROWS rows: folds their partial sums, tile after tile, into what the calls before left."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    old = mask_if(start == 0, there)
    scale = tl.load(scale_ptr + row, mask=there, other=1.0)
    rate = scale * LOG2_E
    own = tl.load(own_ptr + row, mask=there, other=IGNORED)
    ignored = own == IGNORED
    hardest = tl.load(hardest_cos_ptr + row, mask=old, other=float("-inf"))
    hardest_class = tl.load(hardest_class_ptr + row, mask=old, other=-1)
    neg_sum = tl.load(neg_sum_ptr + row, mask=old, other=0.0)
    hard_cos = tl.load(hard_cos_ptr + row, mask=old, other=0.0)
    hard_count = tl.load(hard_count_ptr + row, mask=old, other=0.0)
    top = tl.load(top_ptr + row, mask=old, other=float("-inf"))
    exp_sum = tl.load(log_sum_ptr + row, mask=old, other=0.0)
    slope = tl.load(slope_ptr + row, mask=old, other=0.0)
    plane = tiles.to(tl.int64) * rows
    for first in range(0, tiles, BLOCK_TILES):
        tile = first + tl.arange(0, BLOCK_TILES)[:, None]
        mask = (tile < tiles) & there[None, :]
        at = partial_ptr + tile.to(tl.int64) * rows + row[None, :]
        value = tl.load(at + HARDEST * plane, mask=mask, other=float("-inf"))
        largest = tl.max(value, axis=0)
        index = (first_tile + tile).to(tl.int64) * BLOCK_CLASSES + tl.load(at + INDEX * plane, mask=mask, other=0.0).to(
            tl.int64
        )
        lowest = tl.min(tl.where(value == largest[None, :], index, 0x7FFFFFFFFFFFFFFF), axis=0)
        hardest_class = tl.where(largest > hardest, lowest, hardest_class)
        hardest = tl.maximum(hardest, largest)
        neg_sum += tl.sum(tl.load(at + NEG_SUM * plane, mask=mask, other=0.0), axis=0)
        if KIND == "quadratic":
            hard_cos += tl.sum(tl.load(at + HARD_COS * plane, mask=mask, other=0.0), axis=0)
            hard_count += tl.sum(tl.load(at + HARD_COUNT * plane, mask=mask, other=0.0), axis=0)
        if not SUMMED:
            if KIND != "cosine":
                value = tl.load(at + TOP * plane, mask=mask, other=float("-inf"))
            sums = tl.load(at + EXP_SUM * plane, mask=mask, other=0.0)
            if block_lse_ptr is not None:
                block_lse = tl.where(sums == 0, float("-inf"), scale[None, :] * value + tl.log(sums))
                block_lse = tl.where(ignored[None, :], float("-inf"), block_lse)
                tl.store(block_lse_ptr + row[None, :] * all_tiles + first_tile + tile, block_lse, mask=mask)
            grown = tl.maximum(top, tl.max(value, axis=0))
            shift = tl.where(grown == float("-inf"), 0.0, grown)
            factor = tl.exp2((value - shift[None, :]) * rate[None, :])
            kept = tl.exp2((top - shift) * rate)
            slopes = tl.load(at + SLOPE * plane, mask=mask, other=0.0)
            exp_sum = exp_sum * kept + tl.sum(sums * factor, axis=0)
            slope = slope * kept + tl.sum(slopes * factor, axis=0)
            top = grown
    neg_lse = tl.zeros([BLOCK_ROWS], scale.dtype)
    if finish != 0:
        if not SUMMED:
            alone = ignored | (top == float("-inf")) & (exp_sum == 0)
            slope = tl.where(alone, 0.0, slope / tl.where(alone, 1.0, exp_sum))
            exp_sum = tl.where(alone, 0.0, tl.log(tl.where(alone, 1.0, exp_sum)))
            top = tl.where(alone, 0.0, top)
            neg_lse = tl.where(alone, float("-inf"), scale * top + exp_sum)
        else:
            top = tl.zeros([BLOCK_ROWS], scale.dtype)
        neg_lse = tl.where(own == OUTSIDE, float("nan"), neg_lse)
        hardest = tl.where(ignored, float("-inf"), hardest)
        hardest_class = tl.where(hardest > float("-inf"), hardest_class, -1)
        neg_sum = tl.where(ignored, 0.0, neg_sum)
        hard_cos = tl.where(ignored, 0.0, hard_cos)
        hard_count = tl.where(ignored, 0.0, hard_count)
    tl.store(neg_lse_ptr + row, neg_lse, mask=there)
    tl.store(hardest_cos_ptr + row, hardest, mask=there)
    tl.store(hardest_class_ptr + row, hardest_class, mask=there)
    tl.store(neg_sum_ptr + row, neg_sum, mask=there)
    tl.store(hard_cos_ptr + row, hard_cos, mask=there)
    tl.store(hard_count_ptr + row, hard_count, mask=there)
    tl.store(top_ptr + row, top, mask=there)
    tl.store(log_sum_ptr + row, exp_sum, mask=there)
    tl.store(slope_ptr + row, slope, mask=there)
