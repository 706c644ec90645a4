"""Miners that return positive pairs and negative pairs, each with its anchors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _check
from .._dtypes import filled
from ..pairs.pairs import Pairs
from ..pairs.positives import below
from .common import PairLists, above, is_distance, labelled_pairs

Limit = torch.Tensor | None
STRATEGIES = ("easy", "hard", "semihard", "all")
SEMI_HARD = (("semihard", "easy"), ("semihard", "hard"), ("easy", "semihard"), ("hard", "semihard"))


@_check.of_data
@torch.no_grad()
def batch_easy_hard(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    pos_strategy: str = "easy",
    neg_strategy: str = "semihard",
    allowed_pos_range: tuple[float, float] | None = None,
    allowed_neg_range: tuple[float, float] | None = None,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> PairLists:
    """One positive and one negative for each anchor, easy or hard, or all of them (arXiv 1904.04370).

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, ignore_label, multi_hot: as in ``batch_hard``.
        pos_strategy: "hard", the least similar positive; "easy", the most similar; "semihard", the least similar of
            those more similar than the anchor's negative; "all", every positive pair.
        neg_strategy: "hard", the most similar negative; "easy", the least similar; "semihard", the most similar of
            those less similar than the anchor's positive; "all", every negative pair. "semihard" on one side needs
            "easy" or "hard" on the other.
        allowed_pos_range, allowed_neg_range: (low, high); only pairs whose similarity (or distance, for the two
            distances) is in this closed interval are considered. "all" ignores it.

    Returns:
        (a1, p, a2, n), int64. If neither strategy is "all", a1 and a2 are the anchors that have both a positive and a
        negative. Otherwise an anchor needs a pair on that side only.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("pos_strategy", pos_strategy, STRATEGIES)
    _check.choice("neg_strategy", neg_strategy, STRATEGIES)
    strategies = (pos_strategy, neg_strategy)
    if "semihard" in strategies and strategies not in SEMI_HARD:
        raise ValueError(
            "pos_strategy and neg_strategy: 'semihard' goes with 'easy' or 'hard' on the other side; got "
            f"pos_strategy={pos_strategy!r}, neg_strategy={neg_strategy!r}"
        )
    pairs = labelled_pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot,
    )  # fmt: skip
    pos_window = _window(pairs, "allowed_pos_range", allowed_pos_range, similarity)
    neg_window = _window(pairs, "allowed_neg_range", allowed_neg_range, similarity)

    def positive(lower: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = pos_window
        low = _tighter(torch.maximum, low, lower)
        return _extreme(pairs, "positive", pos_strategy == "easy", low, high)

    def negative(upper: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = neg_window
        high = _tighter(torch.minimum, high, upper)
        return _extreme(pairs, "negative", neg_strategy != "easy", low, high)

    if "all" in strategies:
        return *_side(pairs, "positive", pos_strategy, positive), *_side(pairs, "negative", neg_strategy, negative)
    if pos_strategy == "semihard":
        value, n = negative()
        _, p = positive(value)
    else:
        value, p = positive()
        _, n = negative(value if neg_strategy == "semihard" else None)
    a = ((p >= 0) & (n >= 0)).nonzero()[:, 0]
    return a, p[a], a, n[a]


@_check.of_data
@torch.no_grad()
def multi_similarity(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    epsilon: float = 0.1,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> PairLists:
    """The mining of the multi-similarity loss: pairs that are informative beside the hardest pair of the other kind
    (arXiv 1904.06627).

    A positive is kept where u_ap < max_n u_an + epsilon, a negative where u_an > min_p u_ap - epsilon; an anchor
    without positives or without negatives keeps nothing.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, ignore_label, multi_hot: as in ``batch_hard``.
        epsilon: any number; a larger one keeps more pairs.

    Returns:
        (a1, p, a2, n), int64, ordered by (a1, p) and by (a2, n).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    epsilon = _check.number("epsilon", epsilon)
    pairs = labelled_pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot,
    )  # fmt: skip
    # Of a side without pairs the extreme is infinite, so that no pair of the other side is within the bound.
    hardest_positive = pairs.statistics("positive", extremes=True).min
    hardest_negative = pairs.statistics("negative", extremes=True).max
    positives = pairs.listed("positive", upper=hardest_negative + epsilon)
    negatives = pairs.listed("negative", lower=hardest_positive - epsilon)
    return positives.rows, positives.columns, negatives.rows, negatives.columns


@_check.of_data
@torch.no_grad()
def pair_margin(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    pos_margin: float = 0.2,
    neg_margin: float = 0.8,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> PairLists:
    """The positive pairs with a similarity below one margin, and the negative pairs with one above another.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, ignore_label, multi_hot: as in ``batch_hard``.
        pos_margin: positives of similarity < pos_margin are kept; for a distance, those of distance > pos_margin.
        neg_margin: negatives of similarity > neg_margin are kept; for a distance, those of distance < neg_margin.

    Returns:
        (a1, p, a2, n), int64, ordered by (a1, p) and by (a2, n).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    upper, lower = _check.number("pos_margin", pos_margin), _check.number("neg_margin", neg_margin)
    pairs = labelled_pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot,
    )  # fmt: skip
    if is_distance(similarity):
        upper, lower = -upper, -lower
    positives = pairs.listed("positive", upper=upper)
    negatives = pairs.listed("negative", lower=lower)
    return positives.rows, positives.columns, negatives.rows, negatives.columns


def _window(pairs: Pairs, name: str, allowed: Any, similarity: str) -> tuple[Limit, Limit]:
    """A closed range of similarities or distances as exclusive bounds on the similarity, two scalars."""
    if allowed is None:
        return None, None
    if not isinstance(allowed, (tuple, list)) or len(allowed) != 2:
        raise ValueError(f"{name} must be a pair of numbers (low, high); got {allowed!r}")
    low, high = (_check.number(f"{name}[{k}]", v) for k, v in enumerate(allowed))
    if low > high:
        raise ValueError(f"{name} must have low <= high; got {allowed!r}")
    if is_distance(similarity):
        low, high = -high, -low
    ends = (filled((), v, pairs.dtype, pairs.x.device) for v in (low, high))
    low_end, high_end = ends
    return below(low_end), above(high_end)


def _tighter(of: Callable[..., torch.Tensor], first: Limit, second: Limit) -> Limit:
    """The tighter of two bounds, of which None is no bound."""
    if first is None or second is None:
        return second if first is None else first
    return of(first, second)


def _extreme(pairs: Pairs, select: str, largest: bool, lower: Limit, upper: Limit) -> tuple[torch.Tensor, torch.Tensor]:
    found = pairs.statistics(select, extremes=True, lower=lower, upper=upper)
    return (found.max, found.argmax) if largest else (found.min, found.argmin)


def _side(pairs: Pairs, select: str, strategy: str, one: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors and columns of one side, independent of the other side."""
    if strategy == "all":
        found = pairs.listed(select)
        return found.rows, found.columns
    _, index = one()
    anchors = (index >= 0).nonzero()[:, 0]
    return anchors, index[anchors]
