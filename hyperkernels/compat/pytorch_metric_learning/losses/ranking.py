"""Losses of a row's neighbours by label."""

from __future__ import annotations

from typing import Any

import torch

from ....losses.ranking import fast_ap_of
from ....losses.softmax import n_pairs_of, nca_of
from ....losses.weighted import ranked_list_of
from ....pairs.pairs import Pairs
from ..batches import Batch, on_device, sample_weights
from ..distances import DotProductSimilarity, LpDistance, Space, require_space
from .base import BaseLoss


def squared_distance() -> LpDistance:
    return LpDistance(power=2)


def weighted(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return losses if weights is None else losses * weights.to(losses.dtype)


class NCALoss(BaseLoss):
    """``hk.losses.nca``; a row weighs as often as it is in ``indices_tuple``."""

    default_distance = squared_distance
    needs_labels = True

    def __init__(self, softmax_scale: float = 1, **options: Any) -> None:
        super().__init__(**options)
        self.softmax_scale = softmax_scale

    def compute(self, batch: Batch, indices: Any) -> Any:
        pairs = batch.pairs(self.space)
        losses = weighted(nca_of(pairs, scale=self.softmax_scale, reduction="none"), sample_weights(indices, batch))
        return self.of_rows(losses, batch, pairs.statistics("positive").count > 0)


class NPairsLoss(BaseLoss):
    """``hk.losses.n_pairs`` of the first positive pair of every label."""

    default_distance = DotProductSimilarity
    needs_labels = True
    takes_ref = False

    def compute(self, batch: Batch, indices: Any) -> Any:
        pairs = batch.pairs(self.space)
        assert batch.labels is not None
        if indices is None:
            listed = pairs.listed("positive")
            a, p = listed.rows, listed.columns
        else:
            a, p = on_device(indices, batch.x.device)[:2]
        labels, order = batch.labels[a].sort(stable=True)
        first = order[torch.nn.functional.pad(labels.diff() != 0, (1, 0), value=True)[: len(order)]]
        losses = n_pairs_of(pairs, a[first], p[first], scale=1.0, reduction="none")
        rows = losses.new_zeros(pairs.n).index_put((a[first],), losses)
        counted = torch.zeros_like(rows, dtype=torch.bool).index_fill(0, a[first], True)
        return self.of_rows(rows, batch, counted)


class RankedListLoss(BaseLoss):
    """``hk.losses.ranked_list``."""

    needs_labels = True
    takes_indices = takes_ref = False

    def __init__(
        self,
        margin: float,
        Tn: float,
        imbalance: float = 0.5,
        alpha: float | None = None,
        Tp: float = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= imbalance <= 1:
            raise ValueError(f"imbalance must be in [0, 1]; got {imbalance}")
        self.margin, self.Tn, self.imbalance, self.Tp = margin, Tn, imbalance, Tp
        self.alpha = 1 + margin / 2 if alpha is None else alpha

    def check_space(self, space: Space) -> None:
        require_space(space, type(self).__name__, ("euclidean", "squared_euclidean"), False, "LpDistance()")

    def compute(self, batch: Batch, indices: Any) -> Any:
        losses = ranked_list_of(
            batch.pairs(self.space), self.margin - self.alpha, -self.alpha, self.Tp, self.Tn, self.imbalance,
            reduction="none",
        )  # fmt: skip
        return self.of_rows(losses, batch)


class FastAPLoss(BaseLoss):
    """``hk.losses.fast_ap``; a row weighs as often as it is in ``indices_tuple``."""

    default_distance = squared_distance
    needs_labels = True
    takes_ref = False

    def __init__(self, num_bins: int = 10, **options: Any) -> None:
        super().__init__(**options)
        self.num_bins = int(num_bins)

    def check_space(self, space: Space) -> None:
        require_space(space, type(self).__name__, ("squared_euclidean",), True, "LpDistance(power=2)")

    def compute(self, batch: Batch, indices: Any) -> Any:
        pairs: Pairs = batch.pairs(self.space)
        losses = weighted(fast_ap_of(pairs, self.num_bins, "none"), sample_weights(indices, batch))
        return self.of_rows(losses, batch, pairs.statistics("positive").count > 0)
