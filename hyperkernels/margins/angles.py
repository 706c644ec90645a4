"""Angles from cosines, with gradients that stay finite at theta = 0 and pi, and statistics of the rows that count."""

from __future__ import annotations

import math

import torch

from .._order import total
from .base import Rows

GRADIENTS = ("exact", "straight_through")
PAST_PI = ("linear", "wrap", "easy")


def sine(cos: torch.Tensor) -> torch.Tensor:
    """sin(theta); 0 with derivative 0 at the poles, and where rounding has pushed a cosine past them."""
    square = (1 - cos) * (1 + cos)
    inside = square > 0
    return torch.where(inside, torch.where(inside, square, 1).sqrt(), 0)


def angle(cos: torch.Tensor) -> torch.Tensor:
    """theta, in [0, pi]; its derivative at the poles is 0."""
    return torch.atan2(sine(cos), cos)


def settle(cos: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The cosines (float64) of inputs of `dtype`, moved to 1 or -1 where the angle to that pole is below 2^-20.

    The gradient is the margin's slope, about 1 / theta, times w - cos(theta) x, a difference of that length which
    float32 knows to some 6e-8. Below an angle of 2^-20 only rounding is left of this difference, and the slope would
    magnify it to the size of a gradient. At the pole the slope is bounded.
    """
    if dtype == torch.float64:
        return cos
    pole = torch.where(1 - cos.detach().abs() < 2.0**-41, cos.detach().sign(), cos.detach())
    return cos + (pole - cos.detach())


def trace(target_cos: torch.Tensor, gradient: str) -> torch.Tensor:
    """The cosine that psi is computed from: detached if the gradient is straight-through."""
    return target_cos.detach() if gradient == "straight_through" else target_cos


def carry(psi: torch.Tensor, target_cos: torch.Tensor, gradient: str) -> torch.Tensor:
    """psi, which was computed from `trace(target_cos)`. If the gradient is straight-through, its derivative to the
    cosine is set to 1."""
    return psi + (target_cos - target_cos.detach()) if gradient == "straight_through" else psi


def add_angle(
    target_cos: torch.Tensor, m: float | torch.Tensor, gradient: str = "exact", past_pi: str = "wrap"
) -> torch.Tensor:
    """cos(theta + m). m is a number or [N], with or without gradient. The options are those of `ArcFace`."""
    cos = trace(target_cos, gradient)
    cos_m: float | torch.Tensor
    sin_m: float | torch.Tensor
    if isinstance(m, torch.Tensor):
        cos_m, sin_m = m.cos(), m.sin()
    else:
        cos_m, sin_m = math.cos(m), math.sin(m)
    psi = cos * cos_m - sine(cos) * sin_m
    if past_pi == "linear":
        beyond = cos <= -cos_m
        if isinstance(m, torch.Tensor):
            beyond = beyond & (m > 0)  # a negative margin never leads past pi
        psi = torch.where(beyond, cos - m * sin_m, psi)
    elif past_pi == "easy":
        psi = torch.where(cos > 0, psi, cos)
    return carry(psi, target_cos, gradient)


def known(values: torch.Tensor, rows: Rows) -> torch.Tensor:
    """bool [N]: the rows whose values enter a running statistic: those that count and are not NaN, since a NaN would
    never leave it."""
    return rows.counted & ~values.isnan()


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of the masked entries, 0 where there is none."""
    return total(torch.where(mask, values, 0)) / mask.sum().clamp_min(1)


def follow(state: torch.Tensor, value: torch.Tensor, momentum: float, there: torch.Tensor) -> None:
    """Set the running average to momentum * value + (1 - momentum) * state, if the scalar ``there`` is True."""
    state.copy_(torch.where(there, momentum * value + (1 - momentum) * state, state))


def snapshot(state: torch.Tensor) -> torch.Tensor:
    """A copy of a scalar of the state, as it is now.

    The backward of torch.compile may compute again what it can, from a state that has moved on (pytorch/pytorch#197039:
    wrong gradients in silence). A flip is among what it always saves.
    """
    return state.reshape(1).flip(0)[0]
