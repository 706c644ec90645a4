from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..kernels.margin_softmax.negatives import COSINE, Negatives
from ..kernels.margin_softmax.problem import ClassRowStatistics

Callback = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Rows(NamedTuple):
    """The rows, as a margin sees them, [N] each."""

    target_cos: torch.Tensor  # cosine between each sample and its own class centre; see `Margin.angular` for its dtype
    x_norm: torch.Tensor  # the sample's norm before normalisation
    target: torch.Tensor  # int64; anything where not counted
    counted: torch.Tensor  # bool: False where the row is ignored


class Margin:
    """How a head changes its cosines before the softmax. Every hook but ``__call__`` has a default. A plain function
    with the signature of ``__call__`` is a margin too.

    A head calls ``negatives`` before its pass over the classes, ``target_logits`` and ``penalty`` after it, and, while
    training, ``update`` before any of them uses the state. A margin with a state or parameters is a ``torch.nn.Module``
    as well, its first base class, and computes psi in ``forward``; it is updated while its ``training`` flag is set.
    """

    looks_ahead: bool = False  # needs the target's cosines before the pass over the classes
    needs_cosine: bool = False  # makes sense on cosines only: x and weight must both be normalised
    angular: bool = False  # computes with the angle: target_cos comes in float64, whatever the inputs
    adapts_scale: bool = False  # `update_scale` is wanted, at the price of one more pass over the classes

    @property
    def own_scale(self) -> torch.Tensor | None:
        """A scalar that replaces the head's scale, or None. Where it is a state, return a copy: autograd may keep the
        tensor."""
        return None

    def check(self, classes: int, normalize_x: bool, normalize_weight: bool) -> None:
        """Raise ValueError where the margin does not fit a head with this number of classes and this normalisation."""
        if self.needs_cosine and not (normalize_x and normalize_weight):
            raise ValueError(f"margin {self} works on cosines: normalize_x and normalize_weight must be True")

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        """The target logit divided by the scale, psi [N]."""
        raise NotImplementedError

    def update(self, rows: Rows) -> None:
        """Update the state from the batch; without gradient."""

    def update_scale(self, rows: Rows, statistics: ClassRowStatistics) -> None:
        """Update ``own_scale`` from statistics that were computed with it; without gradient. Called in training, if
        ``adapts_scale``."""

    def negatives(self, rows: Rows) -> Negatives:
        """The transform of the other classes' cosines. Called only if ``looks_ahead``, with rows that have no
        gradient."""
        return COSINE

    def target_logits(self, rows: Rows, statistics: ClassRowStatistics) -> torch.Tensor:
        """psi [N], from the rows and their statistics."""
        return self(rows.target_cos, rows.x_norm)

    def shared(self, normal: Callable[[torch.Tensor], torch.Tensor]) -> Margin:
        """The margin for a batch that several ranks hold: where it draws random numbers, with those of `normal`, which
        fills a tensor like the one given from N(0, 1), the same on all ranks."""
        return self

    def penalty(self, rows: Rows) -> torch.Tensor | None:
        """A further term of the loss of each row, [N], or None."""
        return None


class Function(Margin):
    """A user's own ``f(target_cos, x_norm) -> psi``."""

    def __init__(self, f: Callback) -> None:
        self.f = f

    def __call__(self, target_cos: torch.Tensor, x_norm: torch.Tensor) -> torch.Tensor:
        return self.f(target_cos, x_norm)


def as_margin(margin: Margin | Callback) -> Margin:
    return margin if isinstance(margin, Margin) else Function(margin)
