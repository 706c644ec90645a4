# mypy: ignore-errors
"""What the cosines of the classes that are not a row's own become: `negatives.KINDS` in Triton, with their slopes."""

from __future__ import annotations

import triton
import triton.language as tl

from ...triton.math import sigmoid, softplus


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
        less = tl.minimum(tl.maximum(power, 1.0), 8.0).to(tl.int32) - 1  # whatever it is: no conversion overflows
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
