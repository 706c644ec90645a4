from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .. import _check
from .._order import pick
from ..kernels.margin_softmax.problem import ClassRowStatistics
from .angles import GRADIENTS, PAST_PI, add_angle, angle, carry, trace
from .base import Margin, Rows


@dataclass(frozen=True)
class NormFace(Margin):
    """No margin: psi = cos(theta). NormFace, Wang et al., 2017 (arXiv 1704.06369); the paper's scale is about 30."""

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return target_cos


@dataclass(frozen=True)
class CosFace(Margin):
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
class ArcFace(Margin):
    """Additive angular margin: psi = cos(theta + m). ArcFace, Deng et al., 2019 (arXiv 1801.07698).

    Args:
        m: margin in radians, in [0, pi/2].
        gradient: ``"exact"`` or ``"straight_through"`` (see the module).
        past_pi: what happens where theta + m > pi. There cos(theta + m) grows again with theta, so a sample far from
            its centre would be rewarded for moving further. ``"linear"`` (default) continues with cos(theta) - m
            sin(m), which keeps falling; ``"wrap"`` keeps the bare cosine, as current insightface does; ``"easy"`` has
            no margin at all from theta = pi/2 on (the easy margin of the first face heads).

    At theta = 0 the exact derivative is infinite while the gradient it multiplies vanishes; it is taken as cos(m)
    there, so that a sample on its centre has a finite gradient.
    """

    m: float = 0.5
    gradient: str = "exact"
    past_pi: str = "linear"

    needs_cosine = True
    angular = True

    def __post_init__(self) -> None:
        _check.number("m", self.m, minimum=0.0, maximum=math.pi / 2)
        _check.choice("gradient", self.gradient, GRADIENTS)
        _check.choice("past_pi", self.past_pi, PAST_PI)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return add_angle(target_cos, self.m, self.gradient, self.past_pi)


@dataclass(frozen=True)
class CombinedMargin(Margin):
    """All three margins in one formula: psi = cos(m1 theta + m2) - m3, for every theta, past pi too.

    ArcFace, Deng et al., 2019 (arXiv 1801.07698), section 2; the authors' combination, in MXNet, is (1, 0.3, 0.2).
    insightface's PyTorch class with the same three arguments computes either ArcFace or CosFace, never all three.

    Args:
        m1: factor of the angle, above 0.
        m2: angle added, in radians, in [0, pi].
        m3: subtracted from the cosine, any finite number.
        gradient: ``"exact"`` or ``"straight_through"`` (see the module).

    At theta = 0 and pi, where the exact derivative may be infinite, it is taken as 0.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2
    gradient: str = "exact"

    needs_cosine = True
    angular = True

    def __post_init__(self) -> None:
        _check.number("m1", self.m1, above=0.0)
        _check.number("m2", self.m2, minimum=0.0, maximum=math.pi)
        _check.number("m3", self.m3)
        _check.choice("gradient", self.gradient, GRADIENTS)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        theta = angle(trace(target_cos, self.gradient))
        return carry((self.m1 * theta + self.m2).cos() - self.m3, target_cos, self.gradient)


class ClassMargin(torch.nn.Module, Margin):
    """A margin for each class, given or learned: psi = cos(theta) - m_y, or cos(theta + m_y).

    Given margins answer class imbalance: the rarer the class, the larger its margin (LDAM, Cao et al., 2019, arXiv
    1906.07413). Learned ones are AdaM-Softmax of AdaptiveFace (Liu et al., CVPR 2019), with a scale of 30 and
    ``ClassMargin(torch.nn.Parameter(torch.empty(C).uniform_(0.3, 0.4)), reward=70.0)``.

    Args:
        margins: [C], one for each class: a tensor, which becomes a buffer, or a ``torch.nn.Parameter``, which is
            learned: in training the parameter is clamped to [0, 1], in place, before it is used.
        kind: ``"cos"``, in units of cosine, or ``"arc"``, in radians.
        reward: lambda >= 0 of the term lambda * (1 - mean(margins)), which keeps learned margins from shrinking. It is
            added to the loss of every row, so that the mean over rows has it once.
        gradient, past_pi: as in ``ArcFace``, for ``"arc"``.

    Raises:
        TypeError, ValueError: a wrong argument, named; in a head, another number of classes.
    """

    needs_cosine = True

    def __init__(
        self,
        margins: torch.Tensor,
        kind: str = "cos",
        *,
        reward: float = 0.0,
        gradient: str = "exact",
        past_pi: str = "linear",
    ) -> None:
        super().__init__()
        _check.tensor("margins", margins, _check.FLOAT_DTYPES, dim=1)
        self.kind = _check.choice("kind", kind, ("cos", "arc"))
        self.angular = kind == "arc"
        self.reward = _check.number("reward", reward, minimum=0.0)
        self.gradient = _check.choice("gradient", gradient, GRADIENTS)
        self.past_pi = _check.choice("past_pi", past_pi, PAST_PI)
        self.learned = isinstance(margins, torch.nn.Parameter)
        self.margins: torch.Tensor
        if isinstance(margins, torch.nn.Parameter):
            self.register_parameter("margins", margins)
        else:
            self.register_buffer("margins", margins)

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        super().check(classes, normalize_x, normalize_weight)
        if self.margins.shape[0] != classes:
            raise ValueError(
                f"margins must have one entry per class ({classes}); got shape {tuple(self.margins.shape)}"
            )

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        if self.learned:
            self.margins.clamp_(0, 1)

    def forward(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        raise TypeError("ClassMargin needs the rows' classes: use it in a head, or call target_logits")

    def target_logits(self, rows: Rows, statistics: ClassRowStatistics) -> torch.Tensor:
        margins = pick(self.margins, rows.target).to(rows.target_cos)
        if self.learned:  # outside training nobody puts the parameter back into its range
            margins = margins + (margins.clamp(0, 1) - margins).detach()
        if self.kind == "cos":
            return rows.target_cos - margins
        return add_angle(rows.target_cos, margins, self.gradient, self.past_pi)

    def penalty(self, rows: Rows) -> torch.Tensor | None:
        if not self.reward:
            return None
        return (self.reward * (1 - self.margins.to(rows.target_cos).mean())).expand(rows.target_cos.shape)

    def extra_repr(self) -> str:
        return f"classes={len(self.margins)}, kind={self.kind!r}, learned={self.learned}, reward={self.reward}"
