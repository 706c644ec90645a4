# mypy: ignore-errors
"""Angle, slerp and logarithm of the rows of x and y, and their derivatives.

With d = y^ - x^ and s = y^ + x^ and e the shorter of the two, e = y^ + sign x^, the unit tangent at x^ that leads to y^
is u = (e + bend x^) / sin(theta). Everything is then a combination of x^, e and the gradient with coefficients of the
row: the elements are read once and written once, and neither u nor a unit row is stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...triton.math import load, no_sums, quotient, root
from ...triton.rows import at, columns, program_rows, whole_rows
from .. import problem
from .rows import PI, directions, reciprocal, sine_and_cosine, twice_arc_tangent, unit_tile, wide_directions

OPPOSITE = tl.constexpr(problem.OPPOSITE * torch.finfo(torch.float32).eps)
OPPOSITE_64 = tl.constexpr(problem.OPPOSITE * torch.finfo(torch.float64).eps)
ANGLE, SLERP, LOG = (tl.constexpr(i) for i in range(3))
KINDS = {"angle": ANGLE.value, "slerp": SLERP.value, "log": LOG.value}


@triton.jit
def _sides(chord_square, co_chord_square, y_inverse):
    """(sign, bend, opposite): of d and s that which is the shorter is e. To a row without a direction leads no way."""
    near = chord_square <= co_chord_square
    limit: tl.constexpr = OPPOSITE_64 if chord_square.dtype == tl.float64 else OPPOSITE
    bend = tl.where(near, 0.5 * chord_square, -0.5 * co_chord_square)
    bend = tl.where(y_inverse == 0, 1.0, bend)
    return tl.where(near, -1.0, 1.0).to(bend.dtype), bend, root(co_chord_square) <= limit


@triton.jit
def _angle(chord_square, co_chord_square, opposite):
    """(theta, sin(theta), cos(theta)); of a row without a direction a right angle."""
    chord, co_chord = root(chord_square), root(co_chord_square)
    total = chord_square + co_chord_square
    total = tl.where(total == 0, 1.0, total)
    angle = tl.where(opposite, PI, twice_arc_tangent(chord, co_chord))
    return angle, quotient(2.0 * chord * co_chord, total), quotient(co_chord_square - chord_square, total)


@triton.jit
def _between(chord_square, co_chord_square, y_inverse):
    """`_angle` and `_sides`, from the squares of the lengths of d and s."""
    sign, bend, opposite = _sides(chord_square, co_chord_square, y_inverse)
    angle, sine, cosine = _angle(chord_square, co_chord_square, opposite)
    return angle, sine, cosine, sign, bend, opposite


@triton.jit
def _chord_squares(x, y):
    """The squares of the lengths of d and s."""
    return tl.sum((y - x) * (y - x), axis=1), tl.sum((y + x) * (y + x), axis=1)


@triton.jit
def _way(angle, sine, bend, t, KIND: tl.constexpr):
    """(along, across, c, s): the point is along x^ + across e; between opposite points c x^ + s times the crossing."""
    if KIND == LOG:
        c, s = tl.zeros_like(angle), angle
        across = tl.where(sine == 0, 1.0, quotient(angle, tl.where(sine == 0, 1.0, sine)))
    else:
        s, c = sine_and_cosine(t * angle)
        across = tl.where(sine == 0, t, quotient(s, tl.where(sine == 0, 1.0, sine)))
    return c + bend * across, across, c, s


@triton.jit
def _crossing_length(coordinate, D: tl.constexpr):
    """1 / |axis - coordinate x^|; on a line there is no way across."""
    return tl.zeros_like(coordinate) if D == 1 else quotient(1.0, root(1.0 - coordinate * coordinate))


@triton.jit
def _smallest(x, column, end):
    """(column of the smallest |x|, the lowest of equals, x there) before the end."""
    size = tl.where(column < end, tl.abs(x), 2.0)
    _, axis = tl.min(size, axis=1, return_indices=True, return_indices_tie_break_left=True)
    return axis, tl.sum(tl.where(column == axis[:, None], x, 0.0), axis=1)


@triton.jit
def _crossing(x, column, D: tl.constexpr):
    """(axis of the smallest coordinate of x^, x^ there, 1 / |axis - x^ there x^|)."""
    axis, coordinate = _smallest(x, column, D)
    return axis, coordinate, _crossing_length(coordinate, D)


@triton.jit
def _wide_crossing(x_row, there, blocks):
    _, inverse, _ = x_row
    coordinate = tl.full([1], 2.0, inverse.dtype)
    axis = tl.zeros([1], tl.int32)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        own, value = _smallest(unit_tile(x_row, column, mask), column - start, blocks.D - start)
        closer = tl.abs(value) < tl.abs(coordinate)
        axis, coordinate = tl.where(closer, own + start, axis), tl.where(closer, value, coordinate)
    return axis, coordinate, _crossing_length(coordinate, blocks.D)


@triton.jit
def _tangent_coefficients(angle, sine, cosine, sign, bend, opposite, t, grad_x, grad_e, y_inverse, KIND: tl.constexpr):
    """(of the gradient, e and x^ in dy^; the same in dx^; dt). grad_x and grad_e: gradient . x^ and . e; for ANGLE the
    gradient of theta itself is in grad_x."""
    inverse_sine = tl.where(sine == 0, 0.0, quotient(1.0, tl.where(sine == 0, 1.0, sine)))
    zero = tl.zeros_like(angle)
    if KIND == ANGLE:
        y_grad, x_grad, dt, grad_u = zero, zero, zero, zero
        turn_y, turn_x = grad_x, -grad_x
        grad_x = zero
    else:
        along, across, c, s = _way(angle, sine, bend, t, KIND)
        y_grad, x_grad = across, along + sign * across
        grad_u = (grad_e + bend * grad_x) * inverse_sine
        if KIND == LOG:
            turn_y, turn_x, dt = grad_u, -(grad_u + angle * grad_x), zero
        else:
            turn = c * grad_u - s * grad_x
            turn_y, turn_x, dt = t * turn, (1.0 - t) * turn, angle * turn
    # A y without a direction leaves no u; the gradient of opposite points is 0 by definition.
    inverse_sine = tl.where(y_inverse == 0, 0.0, inverse_sine)
    y_e = (turn_y * cosine - y_grad * grad_u) * inverse_sine
    x_e = (turn_x - x_grad * grad_u) * inverse_sine
    y_x = bend * y_e - turn_y * sine - y_grad * grad_x
    x_x = bend * x_e - x_grad * grad_x
    return (
        tl.where(opposite, 0.0, y_grad),
        tl.where(opposite, 0.0, y_e),
        tl.where(opposite, 0.0, y_x),
        tl.where(opposite, 0.0, x_grad),
        tl.where(opposite, 0.0, x_e),
        tl.where(opposite, 0.0, x_x),
        dt,
    )


@triton.jit
def _share(t_ptr, row, there, angle, KIND: tl.constexpr):
    return tl.load(t_ptr + row, mask=there, other=0.0) if KIND == SLERP else tl.zeros_like(angle)


@triton.jit
def _opposite_share(t, grad_x, grad_axis, coordinate, inverse):
    """dt between opposite points; grad_axis: the gradient on the axis of the crossing."""
    s, c = sine_and_cosine(t * PI)
    return (c * inverse * (grad_axis - coordinate * grad_x) - s * grad_x) * PI


@triton.jit(do_not_specialize=["rows"])
def points_kernel(pair, t_ptr, out_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns BLOCK_ROWS whole rows. Reads x and y once, writes the result once. t is [rows] or None, out [rows] for ANGLE
    and else [rows, D]."""
    row, there, column, mask = whole_rows(tl.program_id(0), rows, blocks)
    x, _, _, y, y_inverse, _ = directions(pair, row, column, mask)
    chord_square, co_chord_square = _chord_squares(x, y)
    angle, sine, _, sign, bend, opposite = _between(chord_square, co_chord_square, y_inverse)
    if KIND == ANGLE:
        tl.store(out_ptr + row, angle, mask=there)
    else:
        along, across, c, s = _way(angle, sine, bend, _share(t_ptr, row, there, angle, KIND), KIND)
        out = along[:, None] * x + across[:, None] * (y + sign[:, None] * x)
        out_start = at(out_ptr, row, blocks.D)
        tl.store(out_start + column, out, mask=mask & (opposite == 0)[:, None])
        if tl.max((opposite & there).to(tl.int32), axis=0) > 0:
            axis, coordinate, inverse = _crossing(x, column, blocks.D)
            s = s * inverse
            out = (c - s * coordinate)[:, None] * x + tl.where(column == axis[:, None], s[:, None], 0.0)
            tl.store(out_start + column, out, mask=mask & opposite[:, None])


@triton.jit(do_not_specialize=["rows"])
def points_wide_kernel(pair, t_ptr, out_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns one row, in blocks of BLOCK_D, read three times: for the lengths, for the chords, for the result."""
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    x_row, y_row = wide_directions(pair, row, there, blocks)
    chord_square = no_sums(pair.x, blocks.BLOCK_ROWS)
    co_chord_square = chord_square
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        chords, co_chords = _chord_squares(unit_tile(x_row, column, mask), unit_tile(y_row, column, mask))
        chord_square += chords
        co_chord_square += co_chords
    angle, sine, _, sign, bend, opposite = _between(chord_square, co_chord_square, y_row[1])
    if KIND == ANGLE:
        tl.store(out_ptr + row, angle, mask=there)
    else:
        along, across, c, s = _way(angle, sine, bend, _share(t_ptr, row, there, angle, KIND), KIND)
        axis = tl.full([1], -1, tl.int32)
        if tl.max(opposite.to(tl.int32), axis=0) > 0:
            axis, coordinate, inverse = _wide_crossing(x_row, there, blocks)
            s = s * inverse
            along, across = c - s * coordinate, tl.zeros_like(across)
        for start in range(0, blocks.D, blocks.BLOCK_D):
            column, mask = columns(start, there, blocks)
            x, y = unit_tile(x_row, column, mask), unit_tile(y_row, column, mask)
            out = along[:, None] * x + across[:, None] * (y + sign[:, None] * x)
            out += tl.where(column == axis[:, None], s[:, None], 0.0)
            tl.store(at(out_ptr, row, blocks.D) + column, out, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def points_backward_kernel(pair, t_ptr, grad_ptr, dx_ptr, dy_ptr, dt_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns BLOCK_ROWS whole rows. Reads grad, x and y once, writes the gradients asked for once; the others are None.
    grad is [rows] for ANGLE and else [rows, D]."""
    row, there, column, mask = whole_rows(tl.program_id(0), rows, blocks)
    x, x_inverse, x_exponent, y, y_inverse, y_exponent = directions(pair, row, column, mask)
    chord_square, co_chord_square = _chord_squares(x, y)
    angle, sine, cosine, sign, bend, opposite = _between(chord_square, co_chord_square, y_inverse)
    t = _share(t_ptr, row, there, angle, KIND)
    e = y + sign[:, None] * x
    if KIND == ANGLE:
        grad_x = tl.load(grad_ptr + row, mask=there, other=0.0)
        grad_e = grad_x
    else:
        grad = load(at(grad_ptr, row, blocks.D) + column, mask)
        grad_x, grad_e = tl.sum(grad * x, axis=1), tl.sum(grad * e, axis=1)
    y_grad, y_e, y_x, x_grad, x_e, x_x, dt = _tangent_coefficients(
        angle, sine, cosine, sign, bend, opposite, t, grad_x, grad_e, y_inverse, KIND
    )
    if dy_ptr is not None:
        dy = y_e[:, None] * e + y_x[:, None] * x
        if KIND != ANGLE:
            dy += y_grad[:, None] * grad
        tl.store(at(dy_ptr, row, blocks.D) + column, dy * reciprocal(y_inverse, y_exponent)[:, None], mask=mask)
    if dx_ptr is not None:
        dx = x_e[:, None] * e + x_x[:, None] * x
        if KIND != ANGLE:
            dx += x_grad[:, None] * grad
        tl.store(at(dx_ptr, row, blocks.D) + column, dx * reciprocal(x_inverse, x_exponent)[:, None], mask=mask)
    if dt_ptr is not None:
        tl.store(dt_ptr + row, dt, mask=there & (opposite == 0))
        if tl.max((opposite & there).to(tl.int32), axis=0) > 0:
            axis, coordinate, inverse = _crossing(x, column, blocks.D)
            grad_axis = tl.sum(tl.where(column == axis[:, None], grad, 0.0), axis=1)
            dt = _opposite_share(t, grad_x, grad_axis, coordinate, inverse)
            tl.store(dt_ptr + row, dt, mask=there & opposite)


@triton.jit(do_not_specialize=["rows"])
def points_backward_wide_kernel(pair, t_ptr, grad_ptr, dx_ptr, dy_ptr, dt_ptr, rows, KIND: tl.constexpr, blocks):
    """Owns one row, in blocks of BLOCK_D, read three times: for the lengths, for the sums, for the result."""
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    x_row, y_row = wide_directions(pair, row, there, blocks)
    grad_start = at(grad_ptr, row, blocks.D)
    chord_square = no_sums(pair.x, blocks.BLOCK_ROWS)
    co_chord_square, grad_x, grad_d, grad_s = chord_square, chord_square, chord_square, chord_square
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        x, y = unit_tile(x_row, column, mask), unit_tile(y_row, column, mask)
        chords, co_chords = _chord_squares(x, y)
        chord_square += chords
        co_chord_square += co_chords
        if KIND != ANGLE:
            grad = load(grad_start + column, mask)
            grad_x += tl.sum(grad * x, axis=1)
            grad_d += tl.sum(grad * (y - x), axis=1)
            grad_s += tl.sum(grad * (y + x), axis=1)
    angle, sine, cosine, sign, bend, opposite = _between(chord_square, co_chord_square, y_row[1])
    t = _share(t_ptr, row, there, angle, KIND)
    grad_e = tl.where(sign < 0, grad_d, grad_s)
    if KIND == ANGLE:
        grad_x = tl.load(grad_ptr + row, mask=there, other=0.0)
    y_grad, y_e, y_x, x_grad, x_e, x_x, dt = _tangent_coefficients(
        angle, sine, cosine, sign, bend, opposite, t, grad_x, grad_e, y_row[1], KIND
    )
    y_reciprocal, x_reciprocal = reciprocal(y_row[1], y_row[2]), reciprocal(x_row[1], x_row[2])
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column, mask = columns(start, there, blocks)
        x = unit_tile(x_row, column, mask)
        e = unit_tile(y_row, column, mask) + sign[:, None] * x
        dy, dx = y_e[:, None] * e + y_x[:, None] * x, x_e[:, None] * e + x_x[:, None] * x
        if KIND != ANGLE:
            grad = load(grad_start + column, mask)
            dy += y_grad[:, None] * grad
            dx += x_grad[:, None] * grad
        if dy_ptr is not None:
            tl.store(at(dy_ptr, row, blocks.D) + column, dy * y_reciprocal[:, None], mask=mask)
        if dx_ptr is not None:
            tl.store(at(dx_ptr, row, blocks.D) + column, dx * x_reciprocal[:, None], mask=mask)
    if dt_ptr is not None:
        if tl.max(opposite.to(tl.int32), axis=0) > 0:
            axis, coordinate, inverse = _wide_crossing(x_row, there, blocks)
            grad_axis = load(grad_ptr + row * blocks.D + axis, there)
            dt = _opposite_share(t, grad_x, grad_axis, coordinate, inverse)
        tl.store(dt_ptr + row, dt, mask=there)
