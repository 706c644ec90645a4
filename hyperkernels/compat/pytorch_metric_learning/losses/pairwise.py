"""Losses of pairs: every row, or every positive pair, against the others of the row."""

from __future__ import annotations

import math
from typing import Any

from ....losses.lifted import generalized_lifted_of, lifted_of
from ....losses.margins import contrastive_of, tuplet_margin_of
from ....losses.softmax import nt_xent_of, supcon_of
from ....losses.weighted import circle_of, multi_similarity_of
from ..batches import Batch
from ..distances import CosineSimilarity, Space, require_space
from ..reducers import AvgNonZeroReducer, plain
from .base import PairLoss, _part


class CosineLoss(PairLoss):
    """Of cosines only."""

    default_distance = CosineSimilarity

    def check_space(self, space: Space) -> None:
        require_space(space, type(self).__name__, ("cosine",), True, "CosineSimilarity()")


class ContrastiveLoss(PairLoss):
    """``hk.losses.contrastive``."""

    default_reducer = AvgNonZeroReducer
    distinct = False

    def __init__(self, pos_margin: float = 0, neg_margin: float = 1, **options: Any) -> None:
        super().__init__(**options)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        near, far = space.sign * self.pos_margin, space.sign * self.neg_margin
        kind = plain(self.reducer)
        if kind == "sum":
            return contrastive_of(pairs, near, far, "sum")
        if kind in ("mean", "nonzero"):
            return contrastive_of(pairs, near, far, "mean", "all" if kind == "mean" else "nonzero")
        parts = {}
        for side in ("positive", "negative"):
            listed = pairs.listed(side)
            u = pairs.values(listed.rows, listed.columns)
            losses = (near - u if side == "positive" else u - far).relu()
            parts[f"{side[:3]}_loss"] = _part(losses, (listed.rows, listed.columns), f"{side[:3]}_pair")
        return self.handed_on(parts, batch)


class MultiSimilarityLoss(PairLoss):
    """``hk.losses.multi_similarity`` without its mining, which ``MultiSimilarityMiner`` does."""

    default_distance = CosineSimilarity

    def __init__(self, alpha: float = 2, beta: float = 50, base: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.alpha, self.beta, self.base = alpha, beta, base

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        rows = multi_similarity_of(pairs, self.alpha, self.beta, space.sign * self.base, None, "none")
        return self.of_rows(rows, batch)


class SupConLoss(PairLoss):
    """``hk.losses.supcon``."""

    default_distance = CosineSimilarity
    default_reducer = AvgNonZeroReducer

    def __init__(self, temperature: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        return self.of_rows(supcon_of(pairs, scale=1 / self.temperature, reduction="none"), batch)


class NTXentLoss(PairLoss):
    """``hk.losses.nt_xent``."""

    default_distance = CosineSimilarity
    distinct = False

    def __init__(self, temperature: float = 0.07, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        losses = nt_xent_of(pairs, scale=1 / self.temperature, reduction="none")
        return self.of_positives(losses, pairs, batch)


class CircleLoss(CosineLoss):
    """``hk.losses.circle``, a loss for every anchor."""

    default_reducer = AvgNonZeroReducer

    def __init__(self, m: float = 0.4, gamma: float = 80, **options: Any) -> None:
        super().__init__(**options)
        self.m, self.gamma = m, gamma

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        return self.of_rows(circle_of(pairs, self.m, self.gamma, "none"), batch)


class LiftedStructureLoss(PairLoss):
    """``hk.losses.lifted``."""

    distinct = False

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **options: Any) -> None:
        super().__init__(**options)
        self.neg_margin, self.pos_margin = neg_margin, pos_margin
        self.only_plain("mean", "sum")

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        near, far = space.sign * self.pos_margin, space.sign * self.neg_margin
        return lifted_of(pairs, near, far, self.only_plain("mean", "sum"))


class GeneralizedLiftedStructureLoss(PairLoss):
    """``hk.losses.generalized_lifted``."""

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **options: Any) -> None:
        super().__init__(**options)
        self.neg_margin, self.pos_margin = neg_margin, pos_margin

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        near, far = space.sign * self.pos_margin, space.sign * self.neg_margin
        return self.of_rows(generalized_lifted_of(pairs, near, far, "none"), batch)


class TupletMarginLoss(CosineLoss):
    """``hk.losses.tuplet_margin``; the margin is in degrees."""

    distinct = False

    def __init__(self, margin: float = 5.73, scale: float = 64, **options: Any) -> None:
        super().__init__(**options)
        self.margin, self.scale = math.radians(margin), scale
        self.only_plain("mean", "sum")

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        return tuplet_margin_of(pairs, math.degrees(self.margin), self.scale, self.only_plain("mean", "sum"))


class ThresholdConsistentMarginLoss(CosineLoss):
    """lambda_plus times the mean of margin_plus - s over the positives below it, and lambda_minus times that of
    s - margin_minus over the negatives above it (arXiv 2307.04047). Reducers see one number."""

    distinct = False

    def __init__(
        self,
        lambda_plus: float = 1.0,
        lambda_minus: float = 1.0,
        margin_plus: float = 0.9,
        margin_minus: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lambda_plus, self.lambda_minus = lambda_plus, lambda_minus
        self.margin_plus, self.margin_minus = margin_plus, margin_minus

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        positive = pairs.statistics("positive", moments=True, upper=self.margin_plus)
        negative = pairs.statistics("negative", moments=True, lower=self.margin_minus)
        near, far = (v.count.sum().to(v.sum.dtype) for v in (positive, negative))
        pull = (self.margin_plus * near - positive.sum.sum()) / near.clamp_min(1)
        push = (negative.sum.sum() - self.margin_minus * far) / far.clamp_min(1)
        loss = self.lambda_plus * pull + self.lambda_minus * push
        if plain(self.reducer) is not None:
            return loss
        return self.handed_on({"loss": _part(loss, None, "already_reduced")}, batch)
