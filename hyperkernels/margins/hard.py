from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import _check
from ..kernels.margin_softmax.negatives import Negatives, negatives
from ..kernels.margin_softmax.problem import ClassRowStatistics
from .additive import ArcFace
from .angles import GRADIENTS, PAST_PI, add_angle, follow, known, mean_over, snapshot
from .base import Callback, Margin, Rows, as_margin


class CurricularFace(torch.nn.Module, Margin):
    """ArcFace whose hard negatives, those with c_j > cos(theta_y + m), become c_j (T + c_j): their weight grows with T,
    the running average of the target's cosine.

    CurricularFace, Huang et al., 2020 (arXiv 2004.00288).

    Args:
        m: margin in radians, in [0, pi/2].
        momentum: weight of the batch in the running average T, in [0, 1]; 0.01 in the authors' code, 0.1 in TFace's.
        gradient: of the target's margin, ``"exact"`` or ``"straight_through"`` (see the module).
        past_pi: as in ``ArcFace``; the authors' is ``"linear"``.

    Attributes:
        t: T, a scalar buffer that starts at 0. In training it is updated before it is used, from the mean over the rows
            that count and are not NaN.
    """

    needs_cosine = True
    angular = True
    looks_ahead = True

    def __init__(
        self, m: float = 0.5, momentum: float = 0.01, *, gradient: str = "exact", past_pi: str = "linear"
    ) -> None:
        super().__init__()
        self.m = _check.number("m", m, minimum=0.0, maximum=math.pi / 2)
        self.momentum = _check.number("momentum", momentum, minimum=0.0, maximum=1.0)
        self.gradient = _check.choice("gradient", gradient, GRADIENTS)
        self.past_pi = _check.choice("past_pi", past_pi, PAST_PI)
        self.t: torch.Tensor
        self.register_buffer("t", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        there = known(rows.target_cos, rows)
        follow(self.t, mean_over(rows.target_cos, there), self.momentum, there.any())

    def negatives(self, rows: Rows) -> Negatives:
        threshold, t = add_angle(rows.target_cos, self.m), snapshot(self.t)
        return negatives(
            "quadratic", rows.target_cos, threshold=threshold, q2=1.0, q1=t, q0=0.0, d1=2.0, d0=t, easy=1.0
        )

    def forward(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return add_angle(target_cos, self.m, self.gradient, self.past_pi)

    def extra_repr(self) -> str:
        return f"m={self.m}, momentum={self.momentum}, gradient={self.gradient!r}, past_pi={self.past_pi!r}"


@dataclass(frozen=True)
class MVSoftmax(Margin):
    """Hard negatives, those above the target's margined cosine, become w c_j + w - 1.

    Support Vector Guided / Mis-classified Vector Guided Softmax, Wang et al., 2020 (arXiv 1912.00833). The authors'
    scale is 32.

    Args:
        m: margin, in units of cosine (``"am"``) or radians (``"arc"``), in [0, pi/2].
        weight: w, at least 1.
        kind: ``"am"``: psi = c - m where c > m, else c; a negative is hard above c - m. ``"arc"``: psi = cos(theta + m)
            where c > 0, else c; a negative is hard above cos(theta + m).
        gradient: for ``"arc"``, ``"exact"`` or ``"straight_through"`` (see the module).
    """

    m: float = 0.35
    weight: float = 1.12
    kind: str = "am"
    gradient: str = "exact"

    needs_cosine = True
    looks_ahead = True

    @property
    def angular(self) -> bool:  # type: ignore[override]
        return self.kind == "arc"

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=0.0, maximum=math.pi / 2)
        _check.number("weight", self.weight, minimum=1.0)
        _check.choice("kind", self.kind, ("am", "arc"))
        _check.choice("gradient", self.gradient, GRADIENTS)

    def negatives(self, rows: Rows) -> Negatives:
        cos, w = rows.target_cos, self.weight
        threshold = cos - self.m if self.kind == "am" else add_angle(cos, self.m)
        return negatives("quadratic", cos, threshold=threshold, q2=0.0, q1=w, q0=w - 1, d1=0.0, d0=w, easy=1.0)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        if self.kind == "am":
            return torch.where(target_cos > self.m, target_cos - self.m, target_cos)
        return add_angle(target_cos, self.m, self.gradient, "easy")


@dataclass(frozen=True)
class NPCFace(Margin):
    """The harder a sample's hard negatives, the larger its margin: psi = cos(theta + m0 + m1 h) where cos(theta) > 0,
    else cos(theta), with h the mean cosine of the negatives above cos(theta + m), which become t c_j + a.

    NPCFace, Zeng et al., 2020 (arXiv 2007.10172), with the constants of FaceX-Zoo. h carries no gradient. It is 0 where
    there is no hard negative, and where the margin is called directly, outside a head.

    Args:
        m: a negative is hard above cos(theta + m); in radians, in [0, pi/2].
        m0, m1: constant part and slope of the margin, in radians, in [0, pi/2].
        t, a: factor and offset of the hard negatives.
        gradient: ``"exact"`` or ``"straight_through"`` (see the module).
    """

    m: float = 0.5
    m0: float = 0.4
    m1: float = 0.2
    t: float = 1.1
    a: float = 0.2
    gradient: str = "exact"

    needs_cosine = True
    angular = True
    looks_ahead = True

    def __post_init__(self) -> None:
        for name in ("m", "m0", "m1"):
            _check.number(name, getattr(self, name), minimum=0.0, maximum=math.pi / 2)
        _check.number("t", self.t)
        _check.number("a", self.a)
        _check.choice("gradient", self.gradient, GRADIENTS)

    def negatives(self, rows: Rows) -> Negatives:
        threshold = add_angle(rows.target_cos, self.m)
        return negatives(
            "quadratic", rows.target_cos, threshold=threshold, q2=0.0, q1=self.t, q0=self.a, d1=0.0, d0=self.t, easy=1.0
        )

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return add_angle(target_cos, self.m0, self.gradient, "easy")

    def target_logits(self, rows: Rows, statistics: ClassRowStatistics) -> torch.Tensor:
        mean = statistics.hard_cos_sum.detach() / statistics.hard_count.detach().clamp_min(1)
        return add_angle(rows.target_cos, self.m0 + self.m1 * mean, self.gradient, "easy")


@dataclass(frozen=True)
class CircleMargin(Margin):
    """Weights that grow with the distance from the optimum: psi = [1 + m - c] (c - 1 + m), and the negatives become
    [c_j + m] (c_j - m), where [.] is max(., 0) and constant for the gradient.

    Circle loss in its classification form, Sun et al., 2020 (arXiv 2002.10857). The scale, its gamma, is 256.

    Args:
        m: relaxation margin in units of cosine, in [0, 1].
    """

    m: float = 0.25

    needs_cosine = True
    looks_ahead = True

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=0.0, maximum=1.0)

    def negatives(self, rows: Rows) -> Negatives:
        m = self.m
        return negatives("quadratic", rows.target_cos, threshold=-m, q2=1.0, q1=0.0, q0=-m * m, d1=1.0, d0=m, easy=0.0)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return (1 + self.m - target_cos.detach()).clamp_min(0) * (target_cos - (1 - self.m))


@dataclass(frozen=True)
class ArcNegFace(Margin):
    """ArcFace whose negatives have weights that fall with their distance from psi: c_j becomes r c_j + r - 1 with
    r = alpha exp(-(c_j - psi)^2 / sigma), constant for the gradient.

    ArcNegFace, Liu et al., 2019 (arXiv 1909.00632).

    Args:
        m: margin in radians, in [0, pi/2].
        alpha, sigma: above 0.
        gradient: of psi, ``"exact"`` or ``"straight_through"`` (see the module).
        past_pi: as in ``ArcFace``; the authors' is ``"linear"``.
    """

    m: float = 0.5
    alpha: float = 1.2
    sigma: float = 2.0
    gradient: str = "exact"
    past_pi: str = "linear"

    needs_cosine = True
    angular = True
    looks_ahead = True

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=0.0, maximum=math.pi / 2)
        _check.number("alpha", self.alpha, above=0.0)
        _check.number("sigma", self.sigma, above=0.0)
        _check.choice("gradient", self.gradient, GRADIENTS)
        _check.choice("past_pi", self.past_pi, PAST_PI)

    def negatives(self, rows: Rows) -> Negatives:
        center = self(rows.target_cos, rows.x_norm)
        return negatives("gaussian", rows.target_cos, center=center, alpha=self.alpha, sigma=self.sigma)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return add_angle(target_cos, self.m, self.gradient, self.past_pi)


class InterClassFilter(torch.nn.Module, Margin):
    """A negative very near to a sample, c_j > threshold, may be the sample's own class under a wrong label: its cosine
    becomes 0, without gradient. It still counts exp(0) in the sum, as in insightface.

    Partial FC, An et al., 2022 (arXiv 2203.15565), whose noisy sets are trained with 0.4.

    Args:
        threshold: cosine, in [-1, 1].
        margin: the margin of the target; any that does not transform the negatives, or a function.

    Raises:
        ValueError: ``margin`` transforms the negatives.
    """

    looks_ahead = True

    def __init__(self, threshold: float = 0.4, margin: Margin | Callback = ArcFace(0.5)) -> None:
        super().__init__()
        self.threshold = _check.number("threshold", threshold, minimum=-1.0, maximum=1.0)
        if not callable(margin):
            raise TypeError(f"margin must be callable as margin(target_cos, x_norm); got {type(margin).__name__}")
        inner = as_margin(margin)
        if type(inner).negatives is not Margin.negatives:
            raise ValueError(f"margin must leave the negatives as they are; got {margin}")
        self.margin = inner
        self.needs_cosine = inner.needs_cosine
        self.angular = inner.angular
        self.adapts_scale = inner.adapts_scale

    @property
    def own_scale(self) -> torch.Tensor | None:
        return self.margin.own_scale

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        self.margin.check(classes, normalize_x, normalize_weight)

    def update(self, rows: Rows) -> None:
        if getattr(self.margin, "training", True):
            self.margin.update(rows)

    def update_scale(self, rows: Rows, statistics: ClassRowStatistics) -> None:
        if getattr(self.margin, "training", True):
            self.margin.update_scale(rows, statistics)

    def negatives(self, rows: Rows) -> Negatives:
        return negatives(
            "quadratic", rows.target_cos, threshold=self.threshold, q2=0.0, q1=0.0, q0=0.0, d1=0.0, d0=0.0, easy=1.0
        )

    def forward(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return self.margin(target_cos, x_norm)

    def target_logits(self, rows: Rows, statistics: ClassRowStatistics) -> torch.Tensor:
        return self.margin.target_logits(rows, statistics)

    def shared(self, normal: Callable[[torch.Tensor], torch.Tensor]) -> Margin:
        filtered = copy.copy(self)
        filtered.margin = self.margin.shared(normal)
        return filtered

    def penalty(self, rows: Rows) -> torch.Tensor | None:
        return self.margin.penalty(rows)

    def extra_repr(self) -> str:
        shown = "" if isinstance(self.margin, torch.nn.Module) else f", margin={self.margin}"
        return f"threshold={self.threshold}{shown}"
