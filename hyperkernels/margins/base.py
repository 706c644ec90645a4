from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..kernels.margin_softmax.negatives import COSINE, Negatives
from ..kernels.margin_softmax.problem import ClassRowStatistics

Callback = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Rows(NamedTuple):
    """What a margin may look at, [N] each."""

    target_cos: torch.Tensor  # cosine between each sample and its own class centre; see `Margin.angular` for its dtype
    x_norm: torch.Tensor  # the sample's norm before normalisation
    target: torch.Tensor  # int64; anything where not counted
    counted: torch.Tensor  # bool: False where the row is ignored


class Margin:
    """What a head makes of its cosines. Every hook but ``__call__`` has a default; a plain function of the signature of
    ``__call__`` serves as a margin too.

    A head calls ``negatives`` before its pass over the classes, ``target_logits`` and ``penalty`` after it, and, while
    training, ``update`` before any of them uses the state. A margin that keeps state or parameters is a
    ``torch.nn.Module`` as well, named first among its bases, and computes psi in ``forward``; its ``training`` flag
    says whether it is updated.
    """

    looks_ahead: bool = False  # needs the target's cosines before the pass over the classes
    needs_cosine: bool = False  # makes sense on cosines only: x and weight must both be normalised
    angular: bool = False  # computes with the angle: target_cos comes in float64, whatever the inputs
    adapts_scale: bool = False  # `update_scale` is wanted, at the price of one more pass over the classes

    @property
    def own_scale(self) -> torch.Tensor | None:
        """A scalar that takes the place of the head's scale; a copy of any state, since autograd may keep it."""
        return None

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        """Raise ValueError where the margin does not fit a head of so many classes that normalises so."""
        if self.needs_cosine and not (normalize_x and normalize_weight):
            raise ValueError(f"margin {self} works on cosines: normalize_x and normalize_weight must be True")

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        """The target logit divided by the scale, psi [N]."""
        raise NotImplementedError

    def update(self, rows: Rows) -> None:
        """Let the state follow the batch; without gradient."""

    def update_scale(self, rows: Rows, statistics: ClassRowStatistics) -> None:
        """Let ``own_scale`` follow the statistics taken under it; without gradient, while training, if
        ``adapts_scale``."""

    def negatives(self, rows: Rows) -> Negatives:
        """What the other classes' cosines become; called, with rows that have no gradient, only if ``looks_ahead``."""
        return COSINE

    def target_logits(self, rows: Rows, statistics: ClassRowStatistics) -> torch.Tensor:
        """psi, from all that is known of the rows."""
        return self(rows.target_cos, rows.x_norm)

    def penalty(self, rows: Rows) -> torch.Tensor | None:
        """A term of the margin's own, [N], added to the loss of each row."""
        return None


class Function(Margin):
    """A user's own ``f(target_cos, x_norm) -> psi``."""

    def __init__(self, f: Callback) -> None:
        self.f = f

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return self.f(target_cos, x_norm)


def as_margin(margin: Margin | Callback) -> Margin:
    return margin if isinstance(margin, Margin) else Function(margin)
