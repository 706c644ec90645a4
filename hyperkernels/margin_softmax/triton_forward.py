# mypy: ignore-errors
"""The forward Triton kernels of the class softmax, and what the backward shares with them.

A tile is BLOCK_ROWS samples by BLOCK_CLASSES classes. Its products x . w are recomputed wherever they are needed, from
the centres as they are stored and from a copy of x that is zero past its edges; the lengths come in afterwards, on the
float32 accumulators. Each row of the copy is brought below length 1 by an exact power of two, so that no product
exceeds the length of its centre; `multiplier` turns it into the x that the cosines are taken of. Offsets within a tile
are int32, its base is int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import load, root, sigmoid, softplus
from ..unit_norm.triton_kernels import _exponent, _grow, _power_of_two, _zero

LOG2_E = tl.constexpr(1.4426950408889634)
# Values of `own` below 0: a row whose target is not among the classes, one that takes no part, one out of range.
ABSENT, IGNORED, OUTSIDE = tl.constexpr(-1), tl.constexpr(-2), tl.constexpr(-3)
# The level of what is left out: finite, so that its share exp2(LOW) * LOW of a sum is 0 and not NaN.
LOW = tl.constexpr(-1e30)
# Arrays [tiles, N] of the partial sums, behind one pointer. Where the transform is the identity, TOP is HARDEST.
NEG_SUM, HARDEST, INDEX, EXP_SUM, SLOPE, TOP, HARD_COS, HARD_COUNT = (tl.constexpr(i) for i in range(8))


@triton.jit
def _inverse(x):
    return 1.0 / x if x.dtype == tl.float64 else tl.math.div_rn(1.0, x)


@triton.jit
def _lengths(pointers, columns, mask, D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(|row| / 2^exponent, exponent) of rows that start at pointers [BLOCK_ROWS, 1]; 0 where the mask is not set."""
    total = _zero(pointers, BLOCK_ROWS)
    exponent = _exponent(total)
    for start in range(0, D, BLOCK_D):
        value = load(pointers + start + columns, mask & (columns < D - start))
        exponent, factor = _grow(exponent, tl.max(tl.abs(value), axis=1))
        value = value * _power_of_two(-exponent, value.dtype)[:, None]
        total = total * factor * factor + tl.sum(value * value, axis=1)
    return root(total), exponent


@triton.jit(do_not_specialize=["rows"])
def center_kernel(
    w_ptr,  # [rows, D]
    norm_ptr,  # [rows]
    rows,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns the lengths of BLOCK_ROWS centres. Reads w once."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    there = row < tl.minimum(rows - first, BLOCK_ROWS).to(tl.int32)
    columns = tl.arange(0, BLOCK_D)[None, :]
    norm, exponent = _lengths(w_ptr + first * D + row[:, None] * D, columns, there[:, None], D, BLOCK_ROWS, BLOCK_D)
    tl.store(norm_ptr + first + row, norm * _power_of_two(exponent, norm.dtype), mask=there)


@triton.jit
def _inverse_norms(w_norm_ptr, first_class, classes, mask, center, SUB_CENTERS, EPS, NORMALIZE_WEIGHT: tl.constexpr):
    """1 / max(|w|, eps) of one sub-centre of each class, or 1."""
    norm = tl.load(w_norm_ptr + first_class * SUB_CENTERS + classes * SUB_CENTERS + center, mask=mask, other=1.0)
    return _inverse(tl.maximum(norm, EPS)) if NORMALIZE_WEIGHT else tl.full(norm.shape, 1.0, norm.dtype)


@triton.jit(do_not_specialize=["rows", "classes", "ignore_index", "absent_index"])
def row_kernel(
    x_ptr,  # [rows, D]
    w_ptr,  # [classes * SUB_CENTERS, D]
    w_norm_ptr,  # [classes * SUB_CENTERS]
    target_ptr,  # [rows]
    copy_ptr,  # [padded rows, STRIDE]
    multiplier_ptr,  # [padded rows]
    own_ptr,  # [padded rows]
    x_norm_ptr,  # [rows], or None, as the two below
    target_cos_ptr,  # [rows]
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
    Reads x three times (twice from the caches) and the target's own centres."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    target = tl.load(target_ptr + row, mask=row < rows, other=0)
    active = (row < rows) & (target != ignore_index)
    here = active & (target != absent_index)
    inside = here & (target >= 0) & (target < classes)
    own = tl.where(inside, target, tl.where(here, OUTSIDE, tl.where(active, ABSENT, IGNORED)))
    tl.store(own_ptr + row, own)

    columns = tl.arange(0, BLOCK_D)[None, :]
    x_row = x_ptr + row[:, None] * D
    norm, exponent = _lengths(x_row, columns, active[:, None], D, BLOCK_ROWS, BLOCK_D)
    shorter = tl.minimum(tl.maximum(exponent + _exponent(norm) + 1, -126), 126)
    unit = exponent if norm.dtype == tl.float64 else shorter
    shrink = _power_of_two(-unit, norm.dtype)
    length = norm * _power_of_two(exponent, norm.dtype)
    if NORMALIZE_X:
        scaled = norm * _power_of_two(tl.minimum(tl.maximum(exponent - unit, -126), 126), norm.dtype)
        multiplier = _inverse(tl.maximum(scaled, EPS * shrink))
    else:
        multiplier = _power_of_two(unit, norm.dtype)
    tl.store(multiplier_ptr + row, multiplier)
    for start in range(0, STRIDE, BLOCK_D):
        x = load(x_row + start + columns, active[:, None] & (columns < D - start))
        tl.store(copy_ptr + row[:, None] * STRIDE + start + columns, x * shrink[:, None], mask=columns < STRIDE - start)

    if x_norm_ptr is not None:
        tl.store(x_norm_ptr + row, length, mask=row < rows)
        best = tl.full([BLOCK_ROWS], float("-inf"), norm.dtype)
        best_center = tl.zeros([BLOCK_ROWS], tl.int64)
        for center in tl.static_range(SUB_CENTERS):
            dot = tl.zeros([BLOCK_ROWS], norm.dtype)
            w_row = w_ptr + (own * SUB_CENTERS + center)[:, None] * D
            for start in range(0, D, BLOCK_D):
                mask = inside[:, None] & (columns < D - start)
                dot += tl.sum(
                    load(x_row + start + columns, mask) * shrink[:, None] * load(w_row + start + columns, mask), 1
                )
            inverse = _inverse_norms(w_norm_ptr, own, own * 0, inside, center, SUB_CENTERS, EPS, NORMALIZE_WEIGHT)
            cos = dot * multiplier * inverse
            better = (cos > best) | (cos != cos)
            best = tl.where(better, cos, best)
            best_center = tl.where(better, center, best_center)
        nothing = tl.where(own == OUTSIDE, float("nan"), 0.0)
        tl.store(target_cos_ptr + row, tl.where(inside, best, nothing), mask=row < rows)
        tl.store(target_center_ptr + row, tl.where(inside, best_center, 0), mask=row < rows)


@triton.jit
def _products(
    x_ptr,  # the tile's first row
    w_ptr,  # the tile's first centre
    left,  # classes of the tile that exist
    SUB_CENTERS: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x . w of the tile for one sub-centre. Classes past the last one repeat it."""
    depth = tl.arange(0, BLOCK_D)
    classes = tl.minimum(tl.arange(0, BLOCK_CLASSES), left - 1)
    x_ptrs = x_ptr + tl.arange(0, BLOCK_ROWS)[:, None] * STRIDE + depth[None, :]
    w_ptrs = w_ptr + classes[None, :] * (SUB_CENTERS * D) + depth[:, None]
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    products = tl.zeros([BLOCK_ROWS, BLOCK_CLASSES], dtype)
    for start in range(0, D, BLOCK_D):
        x = tl.load(x_ptrs + start)
        if D % BLOCK_D == 0:
            w = tl.load(w_ptrs + start)
        else:
            w = tl.load(w_ptrs + start, mask=depth[:, None] < D - start, other=0.0)
        products = tl.dot(x, w, products, input_precision=PRECISION, out_dtype=dtype)
    return products


@triton.jit
def _cosines(
    x_ptr,  # [padded rows, STRIDE]
    w_ptr,  # [classes * SUB_CENTERS, D]
    multiplier,  # [BLOCK_ROWS]
    w_norm_ptr,  # [classes * SUB_CENTERS]
    first_row,
    first_class,
    left,
    SUB_CENTERS: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE_WEIGHT: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(cosines of the tile, the sub-centre each is of)."""
    x_ptr += first_row * STRIDE
    w_ptr += first_class * (SUB_CENTERS * D)
    classes = tl.arange(0, BLOCK_CLASSES)
    for center in tl.static_range(SUB_CENTERS):
        cos = _products(
            x_ptr, w_ptr + center * D, left, SUB_CENTERS, D, STRIDE, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D, PRECISION
        )
        inverse = _inverse_norms(
            w_norm_ptr, first_class, classes, classes < left, center, SUB_CENTERS, EPS, NORMALIZE_WEIGHT
        )
        cos = cos * multiplier[:, None] * inverse[None, :]
        if center == 0:
            best = cos
            best_center = tl.zeros([BLOCK_ROWS, BLOCK_CLASSES], tl.int8)
        else:
            better = (cos > best) | (cos != cos)
            best = tl.where(better, cos, best)
            best_center = tl.where(better, tl.full(best_center.shape, center, tl.int8), best_center)
    return best, best_center


@triton.jit
def _cos_sin(angle):
    """By Taylor series around the nearest multiple of pi / 2; the angle is at most a few turns."""
    double: tl.constexpr = angle.dtype == tl.float64
    terms: tl.constexpr = 9 if double else 5
    turn = tl.floor(angle * 0.6366197723675814 + 0.5)
    # What rounding pi / 2 to the dtype leaves out is taken away apart.
    rest = angle - turn * 1.5707963267948966 - turn * (6.123233995736766e-17 if double else -4.371139000186241e-08)
    square = rest * rest
    cos = tl.full(angle.shape, 1.0, angle.dtype)
    sin = cos
    for i in tl.static_range(terms):
        cos = 1.0 - square * cos * (0.5 / ((terms - i) * (2 * (terms - i) - 1)))
        sin = 1.0 - square * sin * (0.5 / ((terms - i) * (2 * (terms - i) + 1)))
    sin *= rest
    quarter = turn.to(tl.int32) & 3
    odd = (quarter & 1) == 1
    cos_sign = tl.where((quarter == 1) | (quarter == 2), -1.0, 1.0).to(angle.dtype)
    sin_sign = tl.where(quarter >= 2, -1.0, 1.0).to(angle.dtype)
    return tl.where(odd, sin, cos) * cos_sign, tl.where(odd, cos, sin) * sin_sign


@triton.jit
def _acos(cos):
    """acos of a number in [-1, 1]: Abramowitz and Stegun 4.4.46, within 2e-8; a Newton step on it in float64."""
    near = tl.abs(cos)
    angle = -0.0012624911 * near + 0.0066700901
    angle = angle * near - 0.0170881256
    angle = angle * near + 0.0308918810
    angle = angle * near - 0.0501743046
    angle = angle * near + 0.0889789874
    angle = angle * near - 0.2145988016
    angle = angle * near + 1.5707963050
    angle = angle * tl.sqrt(1.0 - near)
    if cos.dtype == tl.float64:
        cosine, sine = _cos_sin(angle)
        angle += tl.where(sine > 1e-7, (cosine - near) / tl.where(sine > 1e-7, sine, 1.0), 0.0)
    return tl.where(cos < 0, 3.141592653589793 - angle, angle)


@triton.jit
def _parameter(transform_ptr, row, there, index: tl.constexpr, COUNT: tl.constexpr):
    return tl.load(transform_ptr + row * COUNT + index, mask=there, other=1.0)[:, None]


@triton.jit
def _transform(KIND: tl.constexpr, cos, transform_ptr, row, there, scale, bias):
    """(value, slope to the cosine, slope to the bias) of `negatives.KINDS`; scale [rows, 1], bias [1, classes]."""
    one = tl.full([1, 1], 1.0, cos.dtype)
    value = cos
    slope = one
    bias_slope = one
    if KIND == "quadratic":
        hard = cos > _parameter(transform_ptr, row, there, 0, 7)
        q2 = _parameter(transform_ptr, row, there, 1, 7)
        q1 = _parameter(transform_ptr, row, there, 2, 7)
        q0 = _parameter(transform_ptr, row, there, 3, 7)
        d1 = _parameter(transform_ptr, row, there, 4, 7)
        d0 = _parameter(transform_ptr, row, there, 5, 7)
        easy = _parameter(transform_ptr, row, there, 6, 7)
        value = tl.where(hard, (q2 * cos + q1) * cos + q0, easy * cos)
        slope = tl.where(hard, d1 * cos + d0, easy)
    elif KIND == "gaussian":
        away = cos - _parameter(transform_ptr, row, there, 0, 3)
        sigma = _parameter(transform_ptr, row, there, 2, 3)
        slope = _parameter(transform_ptr, row, there, 1, 3) * tl.exp(-away * away / sigma)
        value = slope * cos + slope - 1.0
    elif KIND == "angle":
        divisor = _parameter(transform_ptr, row, there, 0, 2)
        straight = _parameter(transform_ptr, row, there, 1, 2)
        held = tl.minimum(tl.maximum(cos, -1.0), 1.0)
        angle = _acos(held)
        value, sine = _cos_sin(angle / divisor)
        sin = tl.sqrt((1.0 - held) * (1.0 + held))
        # The limits: 1 / divisor^2 at angle 0; at pi the slope is infinite and its weight is not: it is taken as 0.
        slope = tl.where(sin <= 1e-6, 0.0, sine / (divisor * tl.where(sin <= 1e-6, 1.0, sin)))
        slope = tl.where(angle < 1e-4, 1.0 / (divisor * divisor), slope)
        slope = tl.where(straight != 0, 1.0, slope)
    elif KIND == "sface":
        steepness = _parameter(transform_ptr, row, there, 0, 2)
        center = _parameter(transform_ptr, row, there, 1, 2)
        slope = scale * sigmoid(steepness * (center - _acos(tl.minimum(tl.maximum(cos, -1.0), 1.0))))
        value = slope * cos
        bias_slope = tl.zeros([1, 1], cos.dtype)
    elif KIND == "sphereface2":
        margin = _parameter(transform_ptr, row, there, 0, 3)
        power = _parameter(transform_ptr, row, there, 1, 3)
        straight = _parameter(transform_ptr, row, there, 2, 3)
        less = power.to(tl.int32) - 1
        half = tl.minimum(tl.maximum(cos, -1.0), 1.0) * 0.5 + 0.5
        square = half * half
        below = tl.where((less & 1) != 0, half, 1.0) * tl.where((less & 2) != 0, square, 1.0)
        below *= tl.where((less & 4) != 0, square * square, 1.0)
        z = scale * (2.0 * (half * below) - 1.0 + margin) + bias
        value = softplus(z)
        bias_slope = sigmoid(z)
        slope = scale * tl.where(straight != 0, 1.0, power * below) * bias_slope
    elif KIND == "uniface":
        z = scale * cos + bias
        held = tl.minimum(tl.maximum(z, -scale), scale)
        value = softplus(held)
        bias_slope = tl.where(held == z, sigmoid(z), 0.0)
        slope = scale * bias_slope
    return value, slope, bias_slope


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


@triton.jit(do_not_specialize=["rows", "row_tiles", "tiles", "classes", "first_tile"])
def forward_kernel(
    x_ptr,  # the copy: [padded rows, STRIDE]
    w_ptr,  # [classes * SUB_CENTERS, D]
    multiplier_ptr,  # [padded rows]
    w_norm_ptr,  # [classes * SUB_CENTERS]
    own_ptr,  # [padded rows]
    scale_ptr,  # [rows]
    class_scale_ptr,  # [classes] or None
    bias_ptr,  # [classes] or None
    transform_ptr,  # [rows, parameters] or None
    partial_ptr,  # the arrays [tiles, rows]
    rows,
    row_tiles,
    tiles,
    classes,
    first_tile,
    KIND: tl.constexpr,
    SUMMED: tl.constexpr,
    SUB_CENTERS: tl.constexpr,
    EPS: tl.constexpr,
    NORMALIZE_WEIGHT: tl.constexpr,
    EVEN: tl.constexpr,  # no tile is cut short
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Owns one tile: its row statistics over the classes that are not the row's own, one number per row each. The row
    tiles of a tile of classes run side by side, so that a centre is read from memory once."""
    program = tl.program_id(0)
    tile = (program // row_tiles).to(tl.int64)
    first_row = (program % row_tiles).to(tl.int64) * BLOCK_ROWS
    first_class = (first_tile + tile) * BLOCK_CLASSES
    left = tl.minimum(classes - first_class, BLOCK_CLASSES).to(tl.int32)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    there = row < rows
    multiplier = tl.load(multiplier_ptr + row)
    cos, _ = _cosines(
        x_ptr, w_ptr, multiplier, w_norm_ptr, first_row, first_class, left, SUB_CENTERS, EPS, NORMALIZE_WEIGHT, D,
        STRIDE, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D, PRECISION,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_CLASSES)[None, :]
    hidden = column == _own_column(tl.load(own_ptr + row), first_class, BLOCK_CLASSES)[:, None]
    if not EVEN:
        hidden = hidden | (column >= left)
    scale = tl.load(scale_ptr + row, mask=there, other=1.0)[:, None]
    class_scale = _per_class(class_scale_ptr, first_class, left, 1.0, cos.dtype, BLOCK_CLASSES)
    bias = _per_class(bias_ptr, first_class, left, 0.0, cos.dtype, BLOCK_CLASSES)
    value, _, _ = _transform(KIND, cos, transform_ptr, row, there, scale, bias)
    plain = cos
    offset = bias
    if class_scale_ptr is not None:
        value *= class_scale
        plain *= class_scale
    if bias_ptr is not None:
        offset = bias * _inverse(scale)
        plain += offset

    partial_ptr += tile * rows + row
    plane = tiles.to(tl.int64) * rows
    tl.store(partial_ptr + NEG_SUM * plane, tl.sum(tl.where(hidden, 0.0, value), axis=1), mask=there)
    plain = tl.where(hidden, LOW, plain)
    hardest = tl.max(plain, axis=1)
    index = tl.min(tl.where(plain == hardest[:, None], column, BLOCK_CLASSES), axis=1)
    tl.store(partial_ptr + HARDEST * plane, tl.where(hardest == LOW, float("-inf"), hardest), mask=there)
    tl.store(partial_ptr + INDEX * plane, index.to(cos.dtype), mask=there)
    if not SUMMED:
        level = plain
        top = hardest
        if KIND != "cosine":
            level = value
            if bias_ptr is not None:
                level += offset
            level = tl.where(hidden, LOW, level)
            top = tl.max(level, axis=1)
            tl.store(partial_ptr + TOP * plane, tl.where(top == LOW, float("-inf"), top), mask=there)
        if bias_ptr is None:
            value = level
        weight = tl.exp2((level - top[:, None]) * (scale * LOG2_E))
        exp_sum = tl.sum(weight, axis=1)
        slope = tl.sum(weight * value, axis=1)
        # A maximum passes NaN over; a row that holds one must not look empty.
        empty = (top == LOW) & (exp_sum == exp_sum)
        tl.store(partial_ptr + EXP_SUM * plane, tl.where(empty, 0.0, exp_sum), mask=there)
        tl.store(partial_ptr + SLOPE * plane, tl.where(empty, 0.0, slope), mask=there)
    if KIND == "quadratic":
        hard = (cos > _parameter(transform_ptr, row, there, 0, 7)) & (hidden == 0)
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
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < rows
    old = there & (start == 0)
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
        neg_sum += tl.sum(tl.load(at + NEG_SUM * plane, mask=mask, other=0.0), axis=0)
        value = tl.load(at + HARDEST * plane, mask=mask, other=float("-inf"))
        largest = tl.max(value, axis=0)
        index = (first_tile + tile).to(tl.int64) * BLOCK_CLASSES + tl.load(at + INDEX * plane, mask=mask, other=0.0).to(
            tl.int64
        )
        lowest = tl.min(tl.where(value == largest[None, :], index, 0x7FFFFFFFFFFFFFFF), axis=0)
        hardest_class = tl.where(largest > hardest, lowest, hardest_class)
        hardest = tl.maximum(hardest, largest)
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
