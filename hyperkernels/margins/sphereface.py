from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .. import _check
from ..kernels.margin_softmax.negatives import Negatives, negatives
from .angles import GRADIENTS, angle, carry, snapshot, trace
from .base import Margin, Rows


def _monotone(cos: torch.Tensor, m: float) -> torch.Tensor:
    """(-1)^k cos(m theta) - 2k with k = floor(m theta / pi): cos(m theta), continued so that it falls
    on all of [0, pi]."""
    theta = m * angle(cos)
    k = (theta.detach() / math.pi).floor()
    return (1 - 2 * (k % 2)) * theta.cos() - 2 * k


def _check_raw(margin: Margin, normalize_x: bool, normalize_weight: bool) -> None:
    if normalize_x or not normalize_weight:
        raise ValueError(f"margin {margin} works on |x| cos(theta): normalize_x must be False, normalize_weight True")


def _nonzero(x_norm: torch.Tensor) -> torch.Tensor:
    return torch.where(x_norm > 0, x_norm, 1)


@dataclass(frozen=True)
class SphereFace(Margin):
    """Multiplicative angular margin: psi = (-1)^k cos(m theta) - 2k, k = floor(m theta / pi).

    SphereFace, Liu et al., 2017 (arXiv 1704.08063); with x normalised and the gradient straight through it is version 0
    of SphereFace Revived (Liu et al., 2022, arXiv 2109.05565), whose authors' code trains with a scale of 30 and m from
    1.5 to 1.7. ``ASoftmax`` is the form of 2017, annealed and with the norms of x.

    Args:
        m: factor of the angle, at least 1, whole or not.
        gradient: ``"exact"`` or ``"straight_through"`` (see the module).
        raw_norm: the logits keep the norm of x, z = |x| psi(theta): for a head with ``normalize_x=False`` and
            ``scale=1.0``.

    The exact derivative is taken as 0 at theta = 0 and pi.
    """

    m: float = 1.5
    gradient: str = "exact"
    raw_norm: bool = False

    needs_cosine = True
    angular = True

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=1.0)
        _check.choice("gradient", self.gradient, GRADIENTS)

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        if self.raw_norm:
            _check_raw(self, normalize_x, normalize_weight)
        else:
            super().check(classes, normalize_x, normalize_weight)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        cos = target_cos / _nonzero(x_norm) if self.raw_norm else target_cos
        psi = carry(_monotone(trace(cos, self.gradient), self.m), cos, self.gradient)
        return psi * x_norm if self.raw_norm else psi


@dataclass(frozen=True)
class SphereFaceR1(Margin):
    """psi = cos(min(m theta, pi)), version 1 of SphereFace Revived (Liu et al., 2022, arXiv 2109.05565).

    Args:
        m: factor of the angle, at least 1; the authors' 1.5 goes with a scale of 30.
        gradient: ``"exact"``, 0 where m theta > pi, or ``"straight_through"``, the paper's own (see the module).

    The exact derivative is taken as 0 at theta = 0.
    """

    m: float = 1.5
    gradient: str = "exact"

    needs_cosine = True
    angular = True

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=1.0)
        _check.choice("gradient", self.gradient, GRADIENTS)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        theta = angle(trace(target_cos, self.gradient))
        return carry((self.m * theta).clamp(max=math.pi).cos(), target_cos, self.gradient)


@dataclass(frozen=True)
class SphereFaceR2(Margin):
    """The target keeps cos(theta), the others get cos(theta_j / m): version 2 of SphereFace Revived (Liu et al., 2022,
    arXiv 2109.05565).

    Args:
        m: what the angles of the other classes are divided by, at least 1; the authors' 1.4 goes with a scale of 60.
        gradient: of cos(theta_j / m) to cos(theta_j): ``"exact"``, or ``"straight_through"``, the paper's own.
    """

    m: float = 1.4
    gradient: str = "exact"

    needs_cosine = True
    looks_ahead = True

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=1.0)
        _check.choice("gradient", self.gradient, GRADIENTS)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return target_cos

    def negatives(self, rows: Rows) -> Negatives:
        straight = float(self.gradient == "straight_through")
        return negatives("angle", rows.target_cos, divisor=self.m, straight=straight)


class ASoftmax(torch.nn.Module, Margin):
    """Annealed A-Softmax: psi = (lambda cos(theta) + phi(theta)) / (1 + lambda), with the phi of ``SphereFace``.

    SphereFace, Liu et al., 2017 (arXiv 1704.08063). lambda = max(lambda_min, base (1 + gamma i)^-power) at iteration i,
    which the first training step counts as 1, as the authors' Caffe layer does.

    Args:
        m: factor of the angle, at least 1; the paper's is 4.
        base, gamma, power, lambda_min: the schedule, as the authors train it by default.
        gradient: ``"exact"`` or ``"straight_through"`` (see the module). The Caffe layer divides the two
            coefficients of its gradient by the root of the sum of their squares, which is neither.
        raw_norm: as in ``SphereFace``. True is the paper's form and the default: the head then needs
            ``normalize_x=False`` and ``scale=1.0``.

    Attributes:
        iteration: int64 scalar buffer, the number of training steps so far.
    """

    angular = True

    def __init__(
        self,
        m: float = 4.0,
        *,
        base: float = 1000.0,
        gamma: float = 0.12,
        power: float = 1.0,
        lambda_min: float = 5.0,
        gradient: str = "exact",
        raw_norm: bool = True,
    ) -> None:
        super().__init__()
        self.base = _check.number("base", base, minimum=0.0)
        self.gamma = _check.number("gamma", gamma, minimum=0.0)
        self.power = _check.number("power", power, minimum=0.0)
        self.lambda_min = _check.number("lambda_min", lambda_min, minimum=0.0)
        self.phi = SphereFace(m, gradient, raw_norm)
        self.iteration: torch.Tensor
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        self.phi.check(classes, normalize_x, normalize_weight)

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        self.iteration.add_(1)

    def annealing(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The present lambda, a scalar."""
        falling = self.base * (1 + self.gamma * snapshot(self.iteration).to(dtype)) ** -self.power
        return falling.clamp_min(self.lambda_min)

    def forward(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        weight = self.annealing(x_norm.dtype)
        return (weight * target_cos + self.phi(target_cos, x_norm)) / (1 + weight)

    def extra_repr(self) -> str:
        return f"{self.phi}, base={self.base}, gamma={self.gamma}, power={self.power}, lambda_min={self.lambda_min}"
