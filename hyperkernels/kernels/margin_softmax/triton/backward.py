# mypy: ignore-errors
"""The backward Triton kernels of the class softmax, over one chunk of classes at a time.

With g the gradient of the cosines, m the rows' multipliers and H_ij = m_i g_ij / |w_j|: dx_i is H W / m_i, and dw_j is
H^T of the copy of x, each less what lies along its own row. H [padded rows, sub-centre, class of the chunk] is stored
in the dtype of the operands. A tile that is left out is neither written to H nor read from it: the two products walk
over the list of those that count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...triton.math import load, mask_if, no_sums
from ...triton.rows import part_of_product, program_rows
from .forward import LOG2_E, _cosines, _hidden_classes, _inverse_norms_of_tile, _negatives
from .rows import IGNORED, _class_offsets, _inverse


@triton.jit(do_not_specialize=["row_tiles", "chunk", "classes", "first_tile", "all_tiles"])
def gradient_kernel(
    c,  # TiledClasses; of a tile of H
    target_center_ptr,  # [rows], as the five below
    top_ptr,
    log_sum_ptr,
    d_neg_lse_ptr,
    d_target_cos_ptr,
    d_neg_sum_ptr,
    unit_ptr,  # a power of two that brings H into the range of float16, or None
    skip_ptr,  # [groups of SKIP_ROWS rows, all tiles] or None
    h_ptr,  # [padded rows, SUB_CENTERS, chunk]
    radial_ptr,  # [row tiles, SUB_CENTERS, chunk] or None
    d_class_scale_ptr,  # [row tiles, chunk] or None
    d_bias_ptr,  # [row tiles, chunk] or None
    row_tiles,
    chunk,
    classes,
    first_tile,
    all_tiles,
    SKIP_ROWS: tl.constexpr,
    TILE: tl.constexpr,  # classes of one entry of the skip plan
):
    """Owns a tile of H: computes its cosines again and writes their gradient, and per class the sums over its rows of
    gradient times cosine, and of the gradients of class_scale and bias."""
    program = tl.program_id(0)
    first = (program // row_tiles).to(tl.int64) * c.BLOCK_CLASSES  # of the chunk
    row_tile = program % row_tiles
    first_row = row_tile.to(tl.int64) * c.BLOCK_ROWS
    if skip_ptr is not None:
        if tl.load(skip_ptr + first_row // SKIP_ROWS * all_tiles + first_tile + first // TILE) != 0:
            return
    first_class = first_tile.to(tl.int64) * TILE + first
    left = tl.minimum(classes - first_class, c.BLOCK_CLASSES).to(tl.int32)
    row = first_row + tl.arange(0, c.BLOCK_ROWS)
    multiplier = tl.load(c.multiplier + row)
    cos, center = _cosines(c, multiplier, first_row, first_class, left)
    classes_of_tile = tl.arange(0, c.BLOCK_CLASSES)
    column = classes_of_tile[None, :]
    own = tl.load(c.own + row)
    is_own, hidden = _hidden_classes(c, own, first_class, left)
    active = own != IGNORED
    scale, class_scale, bias, value, slope, bias_slope = _negatives(c, cos, row, active, first_class, left)
    d_neg_sum = tl.load(d_neg_sum_ptr + row, mask=active, other=0.0)[:, None]
    d_target_cos = tl.load(d_target_cos_ptr + row, mask=active, other=0.0)[:, None]
    d_value = d_neg_sum
    if not c.SUMMED:
        level = value * class_scale
        if c.bias is not None:
            level += bias * _inverse(scale)
        top = tl.load(top_ptr + row, mask=active, other=0.0)[:, None]
        log_sum = tl.load(log_sum_ptr + row, mask=active, other=0.0)[:, None]
        d_neg_lse = tl.load(d_neg_lse_ptr + row, mask=active, other=0.0)[:, None]
        # The level is computed again and may pass top by a rounding: a share is at most 1, and NaN stays NaN.
        power = (level - top) * (scale * LOG2_E) - log_sum * LOG2_E
        d_level = d_neg_lse * tl.exp2(tl.where(power > 0, 0.0, power))
        d_value = scale * d_level + d_neg_sum
    at = row_tile.to(tl.int64) * chunk + first + classes_of_tile
    if d_bias_ptr is not None:
        d_bias = d_neg_sum * class_scale * bias_slope if c.SUMMED else d_level
        tl.store(d_bias_ptr + at, tl.sum(tl.where(hidden, 0.0, d_bias), axis=0))
    if d_class_scale_ptr is not None:
        tl.store(d_class_scale_ptr + at, tl.sum(tl.where(hidden, 0.0, d_value * value), axis=0))
    gradient = d_value * slope * class_scale
    # Past the last class there is nothing; a padded row has no own class, and its other gradients are 0.
    if not c.EVEN:
        gradient = tl.where(hidden, 0.0, gradient)
    gradient = tl.where(is_own, d_target_cos, gradient)
    if c.SUB_CENTERS > 1:
        target_center = tl.load(target_center_ptr + row, mask=active, other=0).to(tl.int8)[:, None]
        center = tl.where(is_own, target_center, center)
    # What lies along a centre is taken from H as it is rounded, in units of H: none of it is left in dw.
    row_unit = multiplier
    if unit_ptr is not None:
        row_unit *= tl.load(unit_ptr)
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    for plane in tl.static_range(c.SUB_CENTERS):
        inverse = _inverse_norms_of_tile(c, first_class, left, plane)
        h = gradient * inverse[None, :] * row_unit[:, None]
        if c.SUB_CENTERS > 1:
            h = tl.where(center == plane, h, 0.0)
        if dtype == tl.float16:
            h = tl.where(h == h, tl.minimum(tl.maximum(h, -65504.0), 65504.0), h)
        h = h.to(dtype)
        in_plane = plane * chunk + first
        if radial_ptr is not None:
            at = row_tile.to(tl.int64) * c.SUB_CENTERS * chunk + in_plane + classes_of_tile
            row_inverse = tl.where(multiplier > 0, _inverse(multiplier), 0.0)[:, None]
            tl.store(radial_ptr + at, tl.sum(h.to(cos.dtype) * (cos * row_inverse), axis=0))
        h_ptrs = h_ptr + (first_row * c.SUB_CENTERS * chunk + in_plane)
        tl.store(h_ptrs + tl.arange(0, c.BLOCK_ROWS)[:, None] * (c.SUB_CENTERS * chunk) + column, h)


@triton.jit(do_not_specialize=["groups", "chunk", "classes", "first_class"])
def weight_kernel(
    x_ptr,  # the copy: [padded rows, STRIDE]
    h_ptr,  # [padded rows, SUB_CENTERS, chunk]
    w_ptr,  # [classes * SUB_CENTERS, D], or more rows with an index
    index_ptr,  # int64 [classes]: which of the weight's they are, or None for all
    w_norm_ptr,  # [classes * SUB_CENTERS]
    radial_ptr,  # [SUB_CENTERS, chunk] or None
    unit_ptr,  # or None
    list_ptr,  # int32 [tiles, groups]: first the groups that count, or None
    count_ptr,  # int32 [tiles]: how many do
    dw_ptr,  # [classes * SUB_CENTERS, D]
    groups,  # of GROUP padded rows
    chunk,
    classes,
    first_class,
    SUB_CENTERS: tl.constexpr,
    EPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,  # classes in a tile of the lists
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Owns dw of BLOCK_CLASSES classes, one sub-centre and BLOCK_D columns, and writes it once."""
    program = tl.program_id(0)
    first_d = program % (STRIDE // BLOCK_D) * BLOCK_D
    program = program // (STRIDE // BLOCK_D)
    center = program % SUB_CENTERS
    first = (program // SUB_CENTERS).to(tl.int64) * BLOCK_CLASSES  # of the chunk
    left = tl.minimum(classes - first_class - first, BLOCK_CLASSES).to(tl.int32)
    if left <= 0:  # the chunk ends in whole tiles, the classes may not
        return
    row = tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_CLASSES)
    depth = first_d + tl.arange(0, BLOCK_D)
    h_ptr += center * chunk + first
    h_offsets = row[:, None] * (SUB_CENTERS * chunk) + column[None, :]
    x_ptrs = x_ptr + row[:, None] * STRIDE + depth[None, :]
    steps: tl.constexpr = GROUP // BLOCK_ROWS
    count = groups
    if list_ptr is not None:
        list_ptr += first // TILE * groups
        count = tl.load(count_ptr + first // TILE)
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    origin = tl.full([], 0, tl.int64)
    dw = tl.zeros([BLOCK_CLASSES, BLOCK_D], dtype)
    for step in range(count * steps):
        first_row = origin + step * BLOCK_ROWS
        if list_ptr is not None:
            first_row = origin + tl.load(list_ptr + step // steps) * GROUP + step % steps * BLOCK_ROWS
        h = tl.load(h_ptr + first_row * (SUB_CENTERS * chunk) + h_offsets)
        x = tl.load(x_ptrs + first_row * STRIDE)
        dw = tl.dot(tl.trans(h), x, dw, input_precision=PRECISION, out_dtype=dtype)
    mask = (column < left)[:, None] & (depth < D)[None, :]
    base = ((first_class + first) * SUB_CENTERS + center) * D
    offsets = column[:, None] * (SUB_CENTERS * D) + depth[None, :]
    if radial_ptr is not None:
        norm_at = (first_class + first) * SUB_CENTERS + center + column * SUB_CENTERS
        norm = tl.load(w_norm_ptr + norm_at, mask=column < left, other=1.0)
        radial = tl.load(radial_ptr + center * chunk + first + column)
        inverse = _inverse(tl.maximum(norm, EPS))
        if index_ptr is None:
            w = load(w_ptr + base + offsets, mask)
        else:
            own = tl.load(index_ptr + first_class + first + column, mask=column < left, other=0)
            w = load(w_ptr + (own * SUB_CENTERS + center)[:, None] * D + depth[None, :], mask)
        # The direction first: of a long centre the sums are too small to be divided by its length once more.
        dw = tl.where((norm < EPS)[:, None], 0.0, dw - (w * inverse[:, None]) * radial[:, None])
    if unit_ptr is not None:
        dw *= 1.0 / tl.load(unit_ptr)
    tl.store(dw_ptr + base + offsets, dw, mask=mask)


@triton.jit(do_not_specialize=["row_tiles", "splits", "tiles", "chunk", "classes", "first_class", "start"])
def input_kernel(
    h_ptr,  # [padded rows, SUB_CENTERS, chunk]
    w_ptr,  # [classes * SUB_CENTERS, D], or more rows with an index
    index_ptr,  # int64 [classes]: which of the weight's they are, or None for all
    list_ptr,  # int32 [groups, tiles]: first the tiles that count, or None
    count_ptr,  # int32 [groups]: how many do
    sum_ptr,  # [splits, padded rows, STRIDE]
    row_tiles,
    splits,
    tiles,  # of the chunk
    chunk,
    classes,
    first_class,
    start,  # whether this is the first chunk
    SUB_CENTERS: tl.constexpr,
    GROUP: tl.constexpr,  # rows that share a list
    TILE: tl.constexpr,  # classes in a tile
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Owns BLOCK_ROWS rows and BLOCK_D columns of one split's share of H W, and adds it to what the chunks before
    left there."""
    row_tile, split, depth = part_of_product(row_tiles, STRIDE, BLOCK_D)
    first_row = row_tile.to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_CLASSES)
    count = tiles
    if list_ptr is not None:
        list_ptr += first_row // GROUP * tiles
        count = tl.load(count_ptr + first_row // GROUP)
    steps: tl.constexpr = TILE // BLOCK_CLASSES
    h_ptr += first_row * SUB_CENTERS * chunk
    h_offsets = row[:, None] * (SUB_CENTERS * chunk) + column[None, :]
    if index_ptr is None:
        w_ptr += first_class.to(tl.int64) * (SUB_CENTERS * D)
    else:
        index_ptr += first_class
    last = (classes - first_class - 1).to(tl.int64)
    sum_ptrs = sum_ptr + (split * row_tiles + row_tile).to(tl.int64) * BLOCK_ROWS * STRIDE
    sum_ptrs += row[:, None] * STRIDE + depth[None, :]
    dtype: tl.constexpr = sum_ptr.dtype.element_ty
    total = tl.load(sum_ptrs, mask=mask_if(start == 0, tl.full(sum_ptrs.shape, 1, tl.int1)), other=0.0)
    from_step = (count.to(tl.int64) * split // splits).to(tl.int32) * (SUB_CENTERS * steps)
    to_step = (count.to(tl.int64) * (split + 1) // splits).to(tl.int32) * (SUB_CENTERS * steps)
    origin = tl.full([], 0, tl.int64)
    for step in range(from_step, to_step):
        tile = step // (SUB_CENTERS * steps)
        if list_ptr is not None:
            tile = tl.load(list_ptr + tile)
        center = step // steps % SUB_CENTERS
        first = tile * TILE + step % steps * BLOCK_CLASSES
        h = tl.load(h_ptr + center * chunk + first + h_offsets)
        # Classes past the last one repeat it, whatever tile the last one is in: their H is 0.
        base = tl.minimum(origin + first, last)
        classes_of_step = tl.minimum(column, (last - base).to(tl.int32))
        if index_ptr is None:
            centers = classes_of_step * (SUB_CENTERS * D)
            w_ptrs = w_ptr + (base * SUB_CENTERS + center) * D + centers[:, None] + depth[None, :]
        else:
            centers = _class_offsets(index_ptr + base, classes_of_step, SUB_CENTERS * D)
            w_ptrs = w_ptr + center * D + centers[:, None] + depth[None, :]
        w = tl.load(w_ptrs) if D == STRIDE else tl.load(w_ptrs, mask=depth[None, :] < D, other=0.0)
        total = tl.dot(h, w, total, input_precision=PRECISION, out_dtype=dtype)
    tl.store(sum_ptrs, total)


@triton.jit(do_not_specialize=["rows"])
def finish_kernel(
    sum_ptr,  # H W: [padded rows, STRIDE]
    x_ptr,  # the copy: [padded rows, STRIDE]
    multiplier_ptr,  # [padded rows]
    own_ptr,  # [padded rows]
    x_norm_ptr,  # [rows]
    d_x_norm_ptr,  # [rows]
    unit_ptr,  # or None
    dx_ptr,  # [rows, D]
    rows,
    EPS: tl.constexpr,
    NORMALIZE_X: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns dx of BLOCK_ROWS rows: from H W, the direction of x and the gradient of its length."""
    row, there = program_rows(tl.program_id(0), rows, BLOCK_ROWS)
    active = there & (tl.load(own_ptr + row, mask=there, other=IGNORED) != IGNORED)
    columns = tl.arange(0, BLOCK_D)[None, :]
    base = row[:, None] * STRIDE
    square = no_sums(sum_ptr, BLOCK_ROWS)
    dot = no_sums(sum_ptr, BLOCK_ROWS)
    for start in range(0, D, BLOCK_D):
        mask = active[:, None] & (columns < D - start)
        x = load(x_ptr + base + start + columns, mask)
        square += tl.sum(x * x, axis=1)
        dot += tl.sum(x * tl.load(sum_ptr + base + start + columns, mask=mask, other=0.0), axis=1)
    factor = _inverse(tl.load(multiplier_ptr + row, mask=active, other=1.0))
    if unit_ptr is not None:
        factor *= 1.0 / tl.load(unit_ptr)
    norm = tl.load(x_norm_ptr + row, mask=active, other=0.0)
    long = active & (norm >= EPS)
    inverse_square = _inverse(tl.where(long, square, 1.0))
    along = tl.load(d_x_norm_ptr + row, mask=long, other=0.0) * tl.sqrt(inverse_square)
    wanted = active
    if NORMALIZE_X:
        factor *= _inverse(tl.where(long, norm, 1.0))
        along -= dot * inverse_square * factor
        wanted = long
    for start in range(0, D, BLOCK_D):
        mask = there[:, None] & (columns < D - start)
        total = tl.load(sum_ptr + base + start + columns, mask=mask, other=0.0)
        change = tl.where(wanted[:, None], total * factor[:, None], 0.0)
        x = load(x_ptr + base + start + columns, mask)
        change += tl.where(long[:, None], x * along[:, None], 0.0)
        tl.store(dx_ptr + row[:, None] * D + start + columns, change, mask=mask)
