"""Modules of ``hyperkernels.losses.info_nce``. Written by tools/modules.py from its functions."""

from __future__ import annotations

from typing import Any

import torch

from ... import losses
from ..loss_module import LossModule


class InfoNCELoss(LossModule):
    """InfoNCE (van den Oord et al., arXiv 1807.03748): -log of the softmax at the positive, of s_ij / temperature.

        loss_i = lse_coefficient * log(sum_P e^{(s - margin) / t} + sum_N e^{s / t}) - mean_P (s - margin) / t

    Without labels the positive of row i is row i of ref, and all others are negatives (CLIP; with M > N the further
    rows of ref are hard negatives).

    The module of ``hk.losses.info_nce``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean" (minus the distance).
        temperature: above 0; a tensor of one element may be learned.
        margin: subtracted from the similarity of the positives, in the numerator and the denominator.
        same_label: "ignore": row i of ref is the one positive, the other pairs of equal labels do not count.
        positive_in_denominator: False leaves the positives out of the log-sum-exp (arXiv 2110.06848).
        symmetric: the mean of the losses of the rows of x and of the rows of ref, in one pass; M = N.
        lse_coefficient: 1 - lambda of CMA (arXiv 2503.18817).
        reduction: "mean" over the rows with a positive, "sum", or "none": [N], 0 for rows without a positive.
        process_group: the ranks whose batches make one, or None: this process alone. Every rank gives its own rows, as
            many as it has; the loss, the same number on all of them, is that of the ranks' arguments put together, and
            labels and ids are to be understood among all ranks. The positive in row i of ref is on the same rank, and
            queue is the same on all ranks. What else is learned (temperature, queue) gets the whole of its gradient on
            every rank. With reduction "none": the rows of this rank; their gradients are those of the sum over ranks of
            what each makes of its own.
        communication: "gather": every rank has the rows of ref (None: of x) of all ranks in memory. "ring": they travel
            from rank to rank, each rank having a few ranks' of them at a time, in its backward once more.
        gradient_reduction: how the wrapper of the backbone reduces its gradients over ranks: "mean", as
            DistributedDataParallel and ``fully_shard`` do, or "sum". The loss is one of the global batch already, so
            for "mean" the gradients of x, ref and positive are multiplied by the number of ranks.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64; the positives are the pairs of equal labels. [N, K]: row i of ref is the positive, and a
            negative weighs as many times as there are columns in which the labels differ (MEOW).
        ref: [M, D] of the dtype of x; None: x itself, where no row is a pair with itself.
        ref_labels: [M], or [M, K]; where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids are neither positive nor negative. The positive
            in row i of ref counts whatever its id.
        positive: [N] similarities that take the place of the positives' (m2-mix, arXiv 2203.03897); differentiable.
            Pairs of equal labels, or without labels (i, i), do not count.
        queue, queue_labels: [Q, D] further negatives of the rows (MoCo), with labels [Q] or without; those of the row's
            label do not count. Not with symmetric, nor with labels [N, K].
        negatives: [N, K] int64: these rows of ref are the negatives of a row, and no others; -1 is none (those drawn
            from a memory bank, InterCLR, arXiv 2008.11702). Only their similarities are computed. Without labels, ids,
            symmetric, queue and process_group.

    Returns:
        float32, float64 for float64 inputs. A row without negatives has the loss 0 where the positive is not in the
        denominator.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    similarity: str
    temperature: torch.Tensor | float
    margin: float
    same_label: str
    positive_in_denominator: bool
    symmetric: bool
    lse_coefficient: float
    reduction: str
    process_group: Any
    communication: str
    gradient_reduction: str
    _options = (
        "similarity",
        "temperature",
        "margin",
        "same_label",
        "positive_in_denominator",
        "symmetric",
        "lse_coefficient",
        "reduction",
        "process_group",
        "communication",
        "gradient_reduction",
    )

    def __init__(
        self,
        *,
        similarity: str = "cosine",
        temperature: torch.Tensor | float = 0.07,
        margin: float = 0.0,
        same_label: str = "positive",
        positive_in_denominator: bool = True,
        symmetric: bool = False,
        lse_coefficient: float = 1.0,
        reduction: str = "mean",
        process_group: Any = None,
        communication: str = "gather",
        gradient_reduction: str = "mean",
    ) -> None:
        super().__init__(
            similarity=similarity,
            temperature=temperature,
            margin=margin,
            same_label=same_label,
            positive_in_denominator=positive_in_denominator,
            symmetric=symmetric,
            lse_coefficient=lse_coefficient,
            reduction=reduction,
            process_group=process_group,
            communication=communication,
            gradient_reduction=gradient_reduction,
        )

    def forward(
        self,
        x: torch.Tensor,
        labels: torch.Tensor | None = None,
        ref: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
        positive: torch.Tensor | None = None,
        queue: torch.Tensor | None = None,
        queue_labels: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return losses.info_nce(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            positive=positive,
            queue=queue,
            queue_labels=queue_labels,
            negatives=negatives,
            similarity=self.similarity,
            temperature=self.temperature,
            margin=self.margin,
            same_label=self.same_label,
            positive_in_denominator=self.positive_in_denominator,
            symmetric=self.symmetric,
            lse_coefficient=self.lse_coefficient,
            reduction=self.reduction,
            process_group=self.process_group,
            communication=self.communication,
            gradient_reduction=self.gradient_reduction,
        )
