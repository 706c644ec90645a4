"""Modules of ``hyperkernels.losses.lifted``. Written by tools/modules.py from its functions."""

from __future__ import annotations

import torch

from ... import losses
from ..loss_module import LossModule


class GeneralizedLiftedLoss(LossModule):
    """All positives of a row against all of its negatives.

    The loss of a row is [log(sum over positives of exp(d_p - pos_margin)) + log(sum over negatives of
    exp(neg_margin - d_n))]+ (with similarities exp(pos_margin - s_p) and exp(s_n - neg_margin)), where the logarithm of
    a sum over nothing counts as 0: a row without negatives still pulls its positives. Hermans et al., 2017
    (arXiv 1703.07737); ``GeneralizedLiftedStructureLoss`` of pytorch-metric-learning.

    The module of ``hk.losses.generalized_lifted``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        neg_margin, pos_margin: distances, or similarities.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: distances are those of the unit vectors.
        reduction: "mean" over all rows, "sum", or "none" for [N].

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself, and no row is paired with itself.
        ref_labels: [M] int64, where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count (the same image in a queue). Without
            them, and with ref None, only a row and itself are excluded; never by value.

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    neg_margin: float
    pos_margin: float
    similarity: str
    normalize: bool
    reduction: str
    _options = ("neg_margin", "pos_margin", "similarity", "normalize", "reduction")

    def __init__(
        self,
        *,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            similarity=similarity,
            normalize=normalize,
            reduction=reduction,
        )

    def forward(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        ref: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return losses.generalized_lifted(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            neg_margin=self.neg_margin,
            pos_margin=self.pos_margin,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
        )


class LiftedLoss(LossModule):
    """Every positive pair against the negatives of both of its ends.

    A positive pair (i, p) has the loss 1/2 [log(sum over the negatives n of i and of p of exp(neg_margin - d_n)) +
    d_ip - pos_margin]+^2 (with similarities exp(s_n - neg_margin) and pos_margin - s_ip); the mean is over the positive
    pairs. Where neither end has negatives the logarithm counts as 0, and without any negatives at all the loss is 0.
    Oh Song et al., 2016 (arXiv 1511.06452); ``LiftedStructureLoss`` of pytorch-metric-learning. The positive pairs are
    listed. With ``ref`` the negatives of p, a row of it, are rows of x.

    The module of ``hk.losses.lifted``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        neg_margin, pos_margin: distances, or similarities.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: distances are those of the unit vectors.
        reduction: "mean"; "sum" over the positive pairs; or "none": the sum over the pairs of each row, [N].

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself, and no row is paired with itself.
        ref_labels: [M] int64, where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count (the same image in a queue). Without
            them, and with ref None, only a row and itself are excluded; never by value.

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    neg_margin: float
    pos_margin: float
    similarity: str
    normalize: bool
    reduction: str
    _options = ("neg_margin", "pos_margin", "similarity", "normalize", "reduction")

    def __init__(
        self,
        *,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            similarity=similarity,
            normalize=normalize,
            reduction=reduction,
        )

    def forward(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        ref: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return losses.lifted(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            neg_margin=self.neg_margin,
            pos_margin=self.pos_margin,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
        )
