"""Modules of ``hyperkernels.losses.ranking``. Written by tools/modules.py from its functions."""

from __future__ import annotations

import torch

from ... import losses
from ..loss_module import LossModule


class FastAPLoss(LossModule):
    """One minus the average precision of every row, from histograms of its distances.

    The squared distances of unit vectors, in [0, 4], fall into triangular bins around num_bins + 1 equidistant centres.
    With h the histogram of the positives, H its cumulative sum and T that of all pairs, the loss of a row with N+
    positives is 1 - 1 / N+ sum over the bins of h H / T. Cakir et al., 2019 (CVPR); ``FastAPLoss`` of
    pytorch-metric-learning.

    The module of ``hk.losses.fast_ap``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        num_bins: at least 1.
        reduction: "mean" over the rows with positives, "sum", or "none" for [N].

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

    num_bins: int
    reduction: str
    _options = ("num_bins", "reduction")

    def __init__(self, *, num_bins: int = 10, reduction: str = "mean") -> None:
        super().__init__(num_bins=num_bins, reduction=reduction)

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
        return losses.fast_ap(
            x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, num_bins=self.num_bins, reduction=self.reduction
        )
