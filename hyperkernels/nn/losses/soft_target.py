"""Modules of ``hyperkernels.losses.soft_target``. Written by tools/modules.py from its functions."""

from __future__ import annotations

import torch

from ... import losses
from ..loss_module import LossModule


class SoftTargetInfoNCELoss(LossModule):
    """The contrastive term of Contra-X (arXiv 2209.11887): KL divergence of the softmax of the similarities from that
    of the labels,

        loss_i = KL( softmax_j(Y_ij / t) || softmax_j(s_ij / t) ),   Y_ij = 1 where the labels are equal, else 0

    The module of ``hk.losses.soft_target_info_nce``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean" (minus the distance).
        temperature: above 0, of both softmaxes; a tensor of one element may be learned.
        diagonal: where ref is None, the pair of a row with itself counts, as a positive (the authors' program).
        reduction: "mean" over the rows that have a pair, "sum", or "none": [N].

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself.
        ref_labels: [M] int64, where ref is given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    similarity: str
    temperature: torch.Tensor | float
    diagonal: bool
    reduction: str
    _options = ("similarity", "temperature", "diagonal", "reduction")

    def __init__(
        self,
        *,
        similarity: str = "cosine",
        temperature: torch.Tensor | float = 0.1,
        diagonal: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(similarity=similarity, temperature=temperature, diagonal=diagonal, reduction=reduction)

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
        return losses.soft_target_info_nce(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            similarity=self.similarity,
            temperature=self.temperature,
            diagonal=self.diagonal,
            reduction=self.reduction,
        )
