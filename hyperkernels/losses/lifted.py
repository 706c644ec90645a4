"""The lifted structure losses: log-sum-exps over the positives and the negatives of a row, in one hinge.

A function `<name>_of` takes the pairs and thresholds in the units of the similarity.
"""

from __future__ import annotations

import torch

from .. import _check
from ..kernels.pair_mining.ordered import row_sums, take
from ..pairs.pairs import LINEAR
from ..pairs.source import LocalPairSource
from .common import REDUCTIONS, pairs_of, reduce, thresholds


@_check.of_data
def lifted(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """Every positive pair against the negatives of both of its ends.

    A positive pair (i, p) has the loss 1/2 [log(sum over the negatives n of i and of p of exp(neg_margin - d_n)) +
    d_ip - pos_margin]+^2 (with similarities exp(s_n - neg_margin) and pos_margin - s_ip); the mean is over the positive
    pairs. Where neither end has negatives the logarithm counts as 0, and without any negatives at all the loss is 0.
    Oh Song et al., 2016 (arXiv 1511.06452); ``LiftedStructureLoss`` of pytorch-metric-learning. The positive pairs are
    listed. With ``ref`` the negatives of p, a row of it, are rows of x.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize: as in ``hk.losses.contrastive``.
        neg_margin, pos_margin: distances, or similarities.
        reduction: "mean"; "sum" over the positive pairs; or "none": the sum over the pairs of each row, [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    near, far = thresholds(similarity, pos_margin, neg_margin)
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    return lifted_of(pairs, near, far, reduction)


def lifted_of(pairs: LocalPairSource, near: float, far: float, reduction: str = "mean") -> torch.Tensor:
    found = pairs.listed("positive")
    rows, columns = pairs.statistics_of_both("negative", transform=LINEAR, scale=1.0)
    a, b = take(rows.lse, found.rows), take(columns.lse, found.columns)
    some = (a != -torch.inf) | (b != -torch.inf)
    negatives = torch.where(some, torch.logaddexp(torch.where(some, a, 0), torch.where(some, b, 0)) - far, 0)
    hinge = (negatives + near - pairs.values(found.rows, found.columns)).relu()
    loss = torch.where(rows.count.sum() > 0, hinge.square() / 2, 0)
    return reduce(row_sums(loss, found.offsets), reduction, loss.shape[0])


def generalized_lifted(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """All positives of a row against all of its negatives.

    The loss of a row is [log(sum over positives of exp(d_p - pos_margin)) + log(sum over negatives of
    exp(neg_margin - d_n))]+ (with similarities exp(pos_margin - s_p) and exp(s_n - neg_margin)), where the logarithm of
    a sum over nothing counts as 0: a row without negatives still pulls its positives. Hermans et al., 2017
    (arXiv 1703.07737); ``GeneralizedLiftedStructureLoss`` of pytorch-metric-learning.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize: as in ``hk.losses.contrastive``.
        neg_margin, pos_margin: distances, or similarities.
        reduction: "mean" over all rows, "sum", or "none" for [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    near, far = thresholds(similarity, pos_margin, neg_margin)
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    return generalized_lifted_of(pairs, near, far, reduction)


def generalized_lifted_of(pairs: LocalPairSource, near: float, far: float, reduction: str = "mean") -> torch.Tensor:
    positive = pairs.statistics("positive", transform=LINEAR, scale=-1.0)
    negative = pairs.statistics("negative", transform=LINEAR, scale=1.0)
    pull = torch.where(positive.count > 0, positive.lse + near, 0)
    push = torch.where(negative.count > 0, negative.lse - far, 0)
    return reduce((pull + push).relu(), reduction, pairs.n)
