"""The softmax of a row's similarities drawn to that of its labels."""

from __future__ import annotations

import torch

from .. import _check
from ..pairs.pairs import LINEAR, Pairs
from ..pairs.source import LocalPairSource
from .common import REDUCTIONS, Number, inverse, own_columns, reduce_counted


def soft_target_info_nce(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    temperature: torch.Tensor | float = 0.1,
    diagonal: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """The contrastive term of Contra-X (arXiv 2209.11887): KL divergence of the softmax of the similarities from that
    of the labels,

        loss_i = KL( softmax_j(Y_ij / t) || softmax_j(s_ij / t) ),   Y_ij = 1 where the labels are equal, else 0

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself.
        ref_labels: [M] int64, where ref is given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean" (minus the distance).
        temperature: above 0, of both softmaxes; a tensor of one element may be learned.
        diagonal: where ref is None, the pair of a row with itself counts, as a positive (the authors' program).
        reduction: "mean" over the rows that have a pair, "sum", or "none": [N].

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    _check.boolean("diagonal", diagonal)
    pairs = Pairs(x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity)
    scale = inverse("temperature", temperature, pairs.dtype)
    return soft_target_info_nce_of(pairs, scale=scale, diagonal=diagonal and ref is None, reduction=reduction)


def soft_target_info_nce_of(
    pairs: LocalPairSource, *, scale: Number, diagonal: bool = False, reduction: str = "mean"
) -> torch.Tensor:
    everything = pairs.statistics("all", moments=True, transform=LINEAR, scale=scale)
    positive = pairs.statistics("positive", moments=True)
    total, negative_total = positive.sum, everything.sum - positive.sum
    # An integer times a number would be float32.
    count, negative_count = (c.to(total.dtype) for c in (positive.count, everything.count - positive.count))
    some = everything.count > 0
    lse = torch.where(some, everything.lse, 0)
    if diagonal:
        own = pairs.values_at(own_columns(pairs))
        lse = torch.where(some, torch.logaddexp(lse, scale * own), scale * own)
        count, total, some = count + 1, total + own, torch.ones_like(some)

    # With Z the sum of e^{Y / t}, divided by its largest term: the target of a positive is 1 / Z, of a negative w / Z.
    top = torch.where(count > 0, scale, torch.zeros_like(lse))
    weight = torch.exp(-top)
    z = (count + weight * negative_count).clamp_min(1)
    of_labels = count * scale / z - top - z.log()
    return reduce_counted(lse + of_labels - scale * (total + weight * negative_total) / z, some, reduction)
