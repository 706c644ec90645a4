"""Losses of the rank of the positives."""

from __future__ import annotations

import torch

from .. import _check
from ..pairs.source import LocalPairSource
from .common import REDUCTIONS, pairs_of, reduce


def fast_ap(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    num_bins: int = 10,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """One minus the average precision of every row, from histograms of its distances.

    The squared distances of unit vectors, in [0, 4], fall into triangular bins around num_bins + 1 equidistant centres.
    With h the histogram of the positives, H its cumulative sum and T that of all pairs, the loss of a row with N+
    positives is 1 - 1 / N+ sum over the bins of h H / T. Cakir et al., 2019 (CVPR); ``FastAPLoss`` of
    pytorch-metric-learning.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids: as in ``hk.losses.contrastive``.
        num_bins: at least 1.
        reduction: "mean" over the rows with positives, "sum", or "none" for [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.integer("num_bins", num_bins, minimum=1)
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, "squared_euclidean")
    return fast_ap_of(pairs, num_bins, reduction)


def fast_ap_of(pairs: LocalPairSource, num_bins: int, reduction: str = "mean") -> torch.Tensor:
    found = pairs.statistics("positive", moments=True)
    positives, like = found.count, found.sum
    centres = torch.linspace(0, 4, num_bins + 1, dtype=like.dtype, device=like.device)
    positive, negative = (_histogram(pairs, select, centres) for select in ("positive", "negative"))
    hits, total = positive * _cumulative(positive), _cumulative(positive + negative)
    some = ((hits > 0) & (total > 0)) | hits.isnan() | total.isnan()
    precision = torch.where(some, hits / torch.where(some, total, 1), 0).sum(1) / positives.clamp_min(1)
    return reduce(torch.where(positives > 0, 1 - precision, 0), reduction, (positives > 0).sum())


def _cumulative(histogram: torch.Tensor) -> torch.Tensor:
    """`torch.cumsum` over the bins, which has no fixed order on CUDA."""
    bins = torch.arange(histogram.shape[1], device=histogram.device)
    return torch.where(bins <= bins[:, None], histogram[:, None], 0).sum(2)


def _histogram(pairs: LocalPairSource, select: str, centres: torch.Tensor) -> torch.Tensor:
    """[N, bins + 1] of the squared distances, nearest first.

    Between two centres a pair's shares in both are linear in its distance: counts and sums are enough.
    """
    edges = len(centres)
    offsets = edges * torch.arange(pairs.n + 1, device=centres.device)
    count, total, _, _ = pairs.binned(select, (-centres.flip(0)).repeat(pairs.n), offsets)
    # 0: what is nearer than the first centre, which is nothing, or NaN; k: from centre k - 1 to centre k.
    count, distance = count.view(-1, edges + 1).flip(1), -total.view(-1, edges + 1).flip(1)
    width = centres[1] - centres[0]
    onward = (distance[:, 1:] - count[:, 1:] * centres) / width
    onward_to = torch.cat([distance[:, :1], onward[:, :-1]], 1)
    return count[:, 1:] - onward + onward_to
