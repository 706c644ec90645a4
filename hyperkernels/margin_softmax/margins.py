"""Margins: what becomes of the target's cosine before the softmax.

A margin is a callable ``(target_cos [N], x_norm [N]) -> psi [N]``: from the cosine between each sample and its own
class centre, and the sample's norm before normalisation, it gives the target logit divided by the scale. Any function
of that signature serves; autograd differentiates it.

The margins that work on the angle take ``gradient``. ``"exact"`` is the derivative of the formula,
d cos(theta + m) / d cos(theta) = sin(theta + m) / sin(theta). ``"straight_through"`` takes it as 1 and leaves the value
alone, as current insightface does (characteristic gradient detachment in SphereFace Revived, Liu et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .. import _check

Margin: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_GRADIENTS = ("exact", "straight_through")


@dataclass(frozen=True)
class NormFace:
    """No margin: psi = cos(theta). NormFace, Wang et al., 2017 (arXiv 1704.06369); the paper's scale is about 30."""

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return target_cos


@dataclass(frozen=True)
class CosFace:
    """Additive cosine margin: psi = cos(theta) - m. CosFace, Wang et al., 2018 (arXiv 1801.09414).

    Args:
        m: margin in units of cosine, any finite number; insightface uses 0.4.
    """

    m: float = 0.4

    def __post_init__(self) -> None:
        _check.number("m", self.m)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return target_cos - self.m


@dataclass(frozen=True)
class ArcFace:
    """Additive angular margin: psi = cos(theta + m). ArcFace, Deng et al., 2019 (arXiv 1801.07698).

    Args:
        m: margin in radians, in [0, pi/2].
        gradient: ``"exact"`` or ``"straight_through"`` (see the module).
        past_pi: what happens where theta + m > pi. There cos(theta + m) grows again with theta, so a sample far from
            its centre would be rewarded for moving further. ``"linear"`` (default) continues with cos(theta) - m
            sin(m), which keeps falling; ``"wrap"`` keeps the bare cosine, as current insightface does.

    At theta = 0 the exact derivative is infinite while the gradient it multiplies vanishes; it is taken as cos(m)
    there, so that a sample on its centre has a finite gradient.
    """

    m: float = 0.5
    gradient: str = "exact"
    past_pi: str = "linear"

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=0.0, maximum=math.pi / 2)
        _check.choice("gradient", self.gradient, _GRADIENTS)
        _check.choice("past_pi", self.past_pi, ("linear", "wrap"))

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        cos = target_cos.detach() if self.gradient == "straight_through" else target_cos
        square = (1 - cos) * (1 + cos)
        inside = square > 0
        sin = torch.where(inside, torch.where(inside, square, 1).sqrt(), 0)
        psi = cos * math.cos(self.m) - sin * math.sin(self.m)
        if self.past_pi == "linear":
            psi = torch.where(cos > -math.cos(self.m), psi, cos - self.m * math.sin(self.m))
        if self.gradient == "straight_through":
            return target_cos + (psi - cos)
        return psi
