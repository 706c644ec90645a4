"""insightface's margins: functions of a matrix of logits, which ``PartialFC_V2`` computes without the matrix."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from ... import _check, margins
from ...margins import Margin

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def class_labels(name: str, labels: Any, rows: int) -> torch.Tensor:
    """Labels of shape [rows] or [rows, 1] as int64 [rows]."""
    _check.tensor(name, labels, INTEGERS)
    if labels.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"{name} must have shape [{rows}] or [{rows}, 1]; got {tuple(labels.shape)}")
    return labels.reshape(rows).long()


class MarginLoss(torch.nn.Module):
    """What the margins have in common.

    Shape: ``forward(logits [B, C], labels [B] or [B, 1]) -> [B, C]``: cosines in, scaled logits out. A row labelled -1
    has no class among the C. The cosines are left as they are; those that rounding puts past +-1 count as +-1.
    """

    s: float

    def parts(self) -> tuple[str, float, float]:
        """``"arc"`` or ``"cos"``, the margin, and the cosine above which a negative is left out (0: none is)."""
        raise NotImplementedError

    def fused(self) -> Margin:
        """The same for a head that sees the cosines one by one; without the scale."""
        kind, m, threshold = self.parts()
        margin: Margin = margins.CosFace(m) if kind == "cos" else margins.ArcFace(m, "straight_through", "wrap")
        # No cosine is above 1, but a rounded one may be.
        return margins.InterClassFilter(threshold, margin) if 0 < threshold < 1 else margin

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        _check.tensor("logits", logits, _check.FLOAT_DTYPES, dim=2)
        labels = class_labels("labels", labels, len(logits))
        classes = logits.shape[1]
        if labels.device.type == "cpu" and bool(((labels < -1) | (labels >= classes)).any()):
            raise IndexError(f"labels must lie in [0, {classes}) or be -1")
        kind, m, threshold = self.parts()
        own = labels[:, None] == torch.arange(classes, device=labels.device)
        if threshold > 0:
            logits = torch.where((logits > threshold) & ~own, 0, logits)
        if kind == "cos":
            return torch.where(own, logits - m, logits) * self.s
        psi = logits.clone()
        with torch.no_grad():  # the gradient goes straight through
            theta = psi.clamp(-1, 1).acos()
            psi.copy_(torch.where(own, theta + m, theta).cos())
        return psi * self.s


class CombinedMarginLoss(MarginLoss):
    """A switch, as in insightface, not a combination: with m1 = 1 and m3 = 0 it is ``ArcFace(s, m2)``, with m3 > 0
    ``CosFace(s, m3)``, whatever m1 and m2 are; a warning says so where they are lost. cos(m1 theta + m2) - m3 itself is
    ``hk.margins.CombinedMargin``.

    Args:
        s: inverse temperature, above 0.
        m1, m2, m3: of the angle, to the angle, from the cosine.
        interclass_filtering_threshold: above 0, a negative whose cosine is greater counts as 0, without gradient.

    Raises:
        TypeError, ValueError: a wrong argument, named; a combination that insightface does not have.
    """

    def __init__(self, s: float, m1: float, m2: float, m3: float, interclass_filtering_threshold: float = 0) -> None:
        super().__init__()
        self.s = _check.number("s", s, above=0.0)
        self.m1 = _check.number("m1", m1)
        self.m2 = _check.number("m2", m2)
        self.m3 = _check.number("m3", m3)
        self.interclass_filtering_threshold = _check.number(
            "interclass_filtering_threshold", interclass_filtering_threshold
        )
        self.parts()
        if m3 > 0 and (m1, m2) != (1, 0):
            warnings.warn(
                f"m3={m3} makes it CosFace(s, {m3}), as in insightface: m1={m1}, m2={m2} are lost", stacklevel=2
            )

    def parts(self) -> tuple[str, float, float]:
        if self.m1 == 1 and self.m3 == 0:
            _check.number("m2", self.m2, minimum=0.0, maximum=math.pi / 2)
            return "arc", self.m2, self.interclass_filtering_threshold
        if self.m3 > 0:
            return "cos", self.m3, self.interclass_filtering_threshold
        raise ValueError(
            f"(m1, m2, m3) must be (1, m2, 0), which is ArcFace, or have m3 > 0, which is CosFace; got "
            f"({self.m1}, {self.m2}, {self.m3}). cos(m1 theta + m2) - m3 is hk.margins.CombinedMargin"
        )

    def extra_repr(self) -> str:
        return (
            f"s={self.s}, m1={self.m1}, m2={self.m2}, m3={self.m3}, "
            f"interclass_filtering_threshold={self.interclass_filtering_threshold}"
        )


class ArcFace(MarginLoss):
    """cos(theta + margin) for the target, past theta + margin = pi too; its derivative to cos(theta) is taken as 1.

    Args:
        s: inverse temperature, above 0.
        margin: in radians, in [0, pi/2].
    """

    def __init__(self, s: float = 64.0, margin: float = 0.5) -> None:
        super().__init__()
        self.s = _check.number("s", s, above=0.0)
        self.margin = _check.number("margin", margin, minimum=0.0, maximum=math.pi / 2)

    def parts(self) -> tuple[str, float, float]:
        return "arc", self.margin, 0.0

    def extra_repr(self) -> str:
        return f"s={self.s}, margin={self.margin}"


class CosFace(MarginLoss):
    """cos(theta) - m for the target.

    Args:
        s: inverse temperature, above 0.
        m: margin in units of cosine.
    """

    def __init__(self, s: float = 64.0, m: float = 0.40) -> None:
        super().__init__()
        self.s = _check.number("s", s, above=0.0)
        self.m = _check.number("m", m)

    def parts(self) -> tuple[str, float, float]:
        return "cos", self.m, 0.0

    def extra_repr(self) -> str:
        return f"s={self.s}, m={self.m}"
