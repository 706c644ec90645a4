from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from .. import _check
from ..kernels.margin_softmax.problem import ClassRowStatistics
from .angles import GRADIENTS, add_angle, angle, carry, follow, known, mean_over, snapshot, trace
from .base import Margin, Rows


@dataclass(frozen=True)
class ElasticFace(Margin):
    """A margin that is drawn anew for every sample at every step: psi = cos(theta + m_i), or cos(theta) - m_i,
    with m_i ~ N(m, std).

    ElasticFace, Boutros et al., 2022 (arXiv 2109.09416). The authors train Arc with (m, std) = (0.5, 0.05), Cos with
    (0.35, 0.05), Arc+ with (0.5, 0.0175) and Cos+ with (0.35, 0.02). Nothing is learned or kept: margins are drawn
    whenever the loss is computed, in evaluation too.

    Args:
        m, std: mean and standard deviation of the margins, in radians for ``"arc"`` (cos(theta + m_i) also past pi), in
            units of cosine for ``"cos"``.
        kind: ``"arc"`` or ``"cos"``.
        plus: how margins are assigned to samples. False: as drawn. ``"rank"``: ElasticFace+ as the paper describes it,
            the smaller a sample's cosine to its centre, the larger its margin. ``"permutation"``: as in the authors'
            code, sample i gets the r_i-th smallest margin, where r = argsort of the cosines, descending. Only rows that
            count are ranked.
        gradient: ``"exact"`` or ``"straight_through"`` (see the module).
        generator: a torch.Generator on the device of x; None: torch's default one. torch.compile allows only None.

    A margin called by itself, outside a head, ranks all of its rows.
    """

    m: float = 0.5
    std: float = 0.05
    kind: str = "arc"
    plus: bool | str = False
    gradient: str = "exact"
    generator: torch.Generator | None = None

    needs_cosine = True

    @property
    def angular(self) -> bool:  # type: ignore[override]
        return self.kind == "arc"

    def __post_init__(self) -> None:
        _check.number("m", self.m)
        _check.number("std", self.std, minimum=0.0)
        _check.choice("kind", self.kind, ("arc", "cos"))
        if self.plus is not False:
            _check.choice("plus", self.plus, ("rank", "permutation"))
        _check.choice("gradient", self.gradient, GRADIENTS)

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """Fresh margins, one a row."""
        return torch.empty_like(like).normal_(self.m, self.std, generator=self.generator)

    def shared(self, normal: Callable[[torch.Tensor], torch.Tensor]) -> Margin:
        if self.generator is not None:
            return self
        options = {name: getattr(self, name) for name in _OPTIONS}
        return _SharedElasticFace(**options, normal=normal)

    def assign(self, margins: torch.Tensor, target_cos: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """The margins in the order of ``plus``; rows that do not count keep theirs."""
        if self.plus is False:
            return margins
        infinity = torch.full_like(margins, torch.inf)
        smallest_first = torch.where(counted, margins, infinity).sort().values
        largest_cos_first = torch.where(counted, -target_cos.detach(), torch.inf).argsort(stable=True)
        if self.plus == "rank":
            assigned = torch.empty_like(margins).scatter(0, largest_cos_first, smallest_first)
        else:
            position = (counted.cumsum(0) - 1).clamp_min(0)  # among the rows that count
            assigned = smallest_first[position[largest_cos_first][position]]
        return torch.where(counted, assigned, margins)

    def _psi(self, target_cos: torch.Tensor, x_norm: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        margins = self.assign(self.draw(x_norm.detach()), target_cos, counted)
        if self.kind == "cos":
            return target_cos - margins
        return add_angle(target_cos, margins, self.gradient)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return self._psi(target_cos, x_norm, torch.ones_like(target_cos, dtype=torch.bool))

    def target_logits(self, rows: Rows, statistics: ClassRowStatistics) -> torch.Tensor:
        return self._psi(rows.target_cos, rows.x_norm, rows.counted)


class AdaFace(torch.nn.Module, Margin):
    """The larger the norm of a sample, the more its margin is additive and the less angular:
    psi = cos(theta - m q) - (m + m q), q = h (|x| - mean) / (std + 0.001) clamped to [-1, 1].

    AdaFace, Kim et al., 2022 (arXiv 2204.00964). Norms are clamped to [0.001, 100] and carry no gradient; their mean
    and standard deviation are running averages, updated in training before they are used.

    Args:
        m: base margin, in [0, pi/2].
        h: factor of the normalised norm, above 0.
        t_alpha: weight of the batch in the running averages, in [0, 1]; 0.01 is what the authors train with, although
            the default of their class is 1.
        gradient: ``"exact"``, as in the authors' repository, or ``"straight_through"``, as in their CVLface.
        clip: theta - m q is clamped to [clip, pi - clip]; 0.001 in the authors' repository, None (no clamp) in CVLface.
            Where it is clamped the exact gradient to the cosine is 0.

    Attributes:
        batch_mean, batch_std: the running averages, scalar buffers that start at 20 and 100.

    The averages are over the rows that count and whose norm is not NaN. A batch of one such row updates the mean alone,
    since one sample has no deviation. The authors also clamp every cosine to [-0.999, 0.999] because they compute it in
    half precision; that is not needed here.
    """

    needs_cosine = True
    angular = True

    def __init__(
        self,
        m: float = 0.4,
        h: float = 0.333,
        t_alpha: float = 0.01,
        *,
        gradient: str = "exact",
        clip: float | None = 1e-3,
    ) -> None:
        super().__init__()
        self.m = _check.number("m", m, minimum=0.0, maximum=math.pi / 2)
        self.h = _check.number("h", h, above=0.0)
        self.t_alpha = _check.number("t_alpha", t_alpha, minimum=0.0, maximum=1.0)
        self.gradient = _check.choice("gradient", gradient, GRADIENTS)
        self.clip = None if clip is None else _check.number("clip", clip, minimum=0.0, maximum=math.pi / 2)
        self.batch_mean: torch.Tensor
        self.batch_std: torch.Tensor
        self.register_buffer("batch_mean", torch.tensor(20.0))
        self.register_buffer("batch_std", torch.tensor(100.0))

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        norms, there = rows.x_norm.clamp(1e-3, 100), known(rows.x_norm, rows)
        mean, count = mean_over(norms, there), there.sum()
        variance = torch.where(there, (norms - mean) ** 2, 0).sum() / (count - 1).clamp_min(1)
        follow(self.batch_mean, mean, self.t_alpha, count > 0)
        follow(self.batch_std, variance.sqrt(), self.t_alpha, count > 1)

    def forward(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        norms = x_norm.detach().clamp(1e-3, 100)
        mean, std = snapshot(self.batch_mean), snapshot(self.batch_std)
        q = ((norms - mean) / (std + 1e-3) * self.h).clamp(-1, 1)
        cos = trace(target_cos, self.gradient)
        psi = add_angle(cos, -self.m * q)
        if self.clip is not None:
            theta = angle(cos.detach()) - self.m * q
            psi = torch.where(theta < self.clip, math.cos(self.clip), psi)
            psi = torch.where(theta > math.pi - self.clip, -math.cos(self.clip), psi)
        return carry(psi - (self.m + self.m * q), target_cos, self.gradient)

    def extra_repr(self) -> str:
        return f"m={self.m}, h={self.h}, t_alpha={self.t_alpha}, gradient={self.gradient!r}, clip={self.clip}"


_OPTIONS = tuple(field.name for field in fields(ElasticFace))


@dataclass(frozen=True)
class _SharedElasticFace(ElasticFace):
    """ElasticFace with the same margins on all ranks."""

    normal: Any = None

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        return self.m + self.std * self.normal(like)


@dataclass(frozen=True)
class MagFace(Margin):
    """The larger the norm of a sample, the larger its margin: psi = cos(theta + m(a)), a = |x| clamped to [l_a, u_a],
    m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a), and a term lambda_g (a / u_a^2 + 1 / a) that rewards large norms.

    MagFace, Meng et al., 2021 (arXiv 2103.06627). The norm gets a gradient through the margin and through the term,
    except where it is clamped.

    Args:
        l_a, u_a: range of the norms, 0 < l_a < u_a.
        l_m, u_m: margins in radians at its ends, in [0, pi/2].
        lambda_g: weight of the term, at least 0; the paper's theory asks for at least ``smallest_lambda_g``.
        easy_margin: no margin from theta = pi/2 on, as the authors train; False continues past theta + m = pi with
            cos(theta) - m sin(m).
        gradient: to the cosine, ``"exact"`` or ``"straight_through"`` (see the module); to the norm it is exact.
    """

    l_a: float = 10.0
    u_a: float = 110.0
    l_m: float = 0.45
    u_m: float = 0.8
    lambda_g: float = 35.0
    easy_margin: bool = True
    gradient: str = "exact"

    needs_cosine = True
    angular = True

    def __post_init__(self) -> None:
        _check.number("l_a", self.l_a, above=0.0)
        _check.number("u_a", self.u_a, above=self.l_a)
        _check.number("l_m", self.l_m, minimum=0.0, maximum=math.pi / 2)
        _check.number("u_m", self.u_m, minimum=0.0, maximum=math.pi / 2)
        _check.number("lambda_g", self.lambda_g, minimum=0.0)
        _check.choice("gradient", self.gradient, GRADIENTS)

    @property
    def slope(self) -> float:
        """The derivative of the margin to the norm, in radians."""
        return (self.u_m - self.l_m) / (self.u_a - self.l_a)

    def smallest_lambda_g(self, scale: float = 64.0) -> float:
        """The smallest lambda_g for which the paper proves that each sample's loss has one minimum over the norm in
        [l_a, u_a]."""
        return scale * self.slope * self.u_a**2 * self.l_a**2 / (self.u_a**2 - self.l_a**2)

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        margin = self.l_m + self.slope * (x_norm.clamp(self.l_a, self.u_a) - self.l_a)
        return add_angle(target_cos, margin, self.gradient, "easy" if self.easy_margin else "linear")

    def penalty(self, rows: Rows) -> torch.Tensor | None:
        if not self.lambda_g:
            return None
        a = rows.x_norm.clamp(self.l_a, self.u_a)
        return self.lambda_g * (a / self.u_a**2 + 1 / a)


class AdaCos(torch.nn.Module, Margin):
    """No margin, but a scale that replaces the head's: it starts at sqrt(2) log(C - 1) and follows
    log(B) / cos(min(pi/4, median of theta)), B the mean over rows of the sum over the other classes of exp(s cos).

    AdaCos, Zhang et al., 2019 (arXiv 1905.00292). In training the scale is updated before it is used, from statistics
    computed with the previous scale; that takes one more pass over the classes.

    Args:
        num_classes: C, at least 3.
        dynamic: False keeps the scale where it starts (the paper's fixed AdaCos).

    Attributes:
        scale: scalar buffer.

    The median and the mean are over the rows that count and are not NaN; of an even number of angles the median is the
    lower middle one. A new scale that is not positive and finite is discarded.
    """

    needs_cosine = True

    def __init__(self, num_classes: int, dynamic: bool = True) -> None:
        super().__init__()
        self.num_classes = _check.integer("num_classes", num_classes, minimum=3)
        self.adapts_scale = bool(dynamic)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.tensor(math.sqrt(2) * math.log(num_classes - 1)))

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        super().check(classes, normalize_x, normalize_weight)
        if classes != self.num_classes:
            raise ValueError(f"margin AdaCos was made for {self.num_classes} classes; the head has {classes}")

    @property
    def own_scale(self) -> torch.Tensor:
        return snapshot(self.scale)

    @torch.no_grad()
    def update_scale(self, rows: Rows, statistics: ClassRowStatistics) -> None:
        if rows.target.shape[0] == 0:
            return
        there = known(rows.target_cos + statistics.neg_lse, rows)
        count = there.sum()
        theta = torch.where(there, angle(rows.target_cos), torch.inf).sort().values
        middle = theta.gather(0, ((count - 1) // 2).clamp_min(0)[None])[0]
        log_b = torch.where(there, statistics.neg_lse, -torch.inf).logsumexp(0) - count.log()
        scale = log_b / middle.clamp(max=math.pi / 4).cos()
        follow(self.scale, scale, 1.0, (count > 0) & (scale > 0) & scale.isfinite())

    def forward(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return target_cos

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, dynamic={self.adapts_scale}"
