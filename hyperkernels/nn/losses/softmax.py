"""Modules of ``hyperkernels.losses.softmax``. Written by tools/modules.py from its functions."""

from __future__ import annotations

from typing import Any

import torch

from ... import losses
from ..loss_module import LossModule


class NPairsLoss(LossModule):
    """N-pair loss (Sohn, NeurIPS 2016): the first two rows of every label that has two are its anchor and its
    positive, and every anchor is classified among the positives, by the cross-entropy of s / temperature. The paper's
    similarity is "dot"; pytorch-metric-learning's default is "cosine".

    The module of ``hk.losses.n_pairs``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        temperature: above 0; a tensor of one element may be learned.
        reduction: "mean" over the labels with two rows (0 where there is none), "sum", or "none": one loss for each of
            them, by rising label.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.

    Returns:
        float32, float64 for float64 inputs. The number of those labels is read on the host.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    similarity: str
    temperature: torch.Tensor | float
    reduction: str
    _options = ("similarity", "temperature", "reduction")

    def __init__(
        self, *, similarity: str = "cosine", temperature: torch.Tensor | float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__(similarity=similarity, temperature=temperature, reduction=reduction)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses.n_pairs(
            x, labels, similarity=self.similarity, temperature=self.temperature, reduction=self.reduction
        )


class NCALoss(LossModule):
    """Neighbourhood components analysis (Goldberger et al., NeurIPS 2004): -log of the probability that a neighbour
    drawn by the softmax is of the row's label,

        loss_i = log sum over P and N of e^{softmax_scale * s} - log sum_P e^{softmax_scale * s}

    where s is by default minus the squared distance.

    The module of ``hk.losses.nca``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: unit rows first, whatever the similarity.
        softmax_scale: a number, or a tensor of one element, which may be learned.
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
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself, and no row is paired with itself.
        ref_labels: [M] int64, where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count (the same image in a queue). Without
            them, and with ref None, only a row and itself are excluded; never by value.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    similarity: str
    normalize: bool
    softmax_scale: torch.Tensor | float
    reduction: str
    process_group: Any
    communication: str
    gradient_reduction: str
    _options = (
        "similarity",
        "normalize",
        "softmax_scale",
        "reduction",
        "process_group",
        "communication",
        "gradient_reduction",
    )

    def __init__(
        self,
        *,
        similarity: str = "squared_euclidean",
        normalize: bool = True,
        softmax_scale: torch.Tensor | float = 1.0,
        reduction: str = "mean",
        process_group: Any = None,
        communication: str = "gather",
        gradient_reduction: str = "mean",
    ) -> None:
        super().__init__(
            similarity=similarity,
            normalize=normalize,
            softmax_scale=softmax_scale,
            reduction=reduction,
            process_group=process_group,
            communication=communication,
            gradient_reduction=gradient_reduction,
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
        return losses.nca(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            similarity=self.similarity,
            normalize=self.normalize,
            softmax_scale=self.softmax_scale,
            reduction=self.reduction,
            process_group=self.process_group,
            communication=self.communication,
            gradient_reduction=self.gradient_reduction,
        )


class NTXentLoss(LossModule):
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv 2002.05709), one term for each positive pair:

        loss_ip = -log( e^{s_ip / t} / (e^{s_ip / t} + sum_N e^{s_in / t}) )

    The positive pairs are listed (their number is read on the host); the negatives are not.

    The module of ``hk.losses.nt_xent``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        temperature: above 0; a tensor of one element may be learned.
        reduction: "mean" over the positive pairs (0 where there is none), "sum", or "none": one loss a positive pair,
            row by row.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself, and no row is paired with itself.
        ref_labels: [M] int64, where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count (the same image in a queue). Without
            them, and with ref None, only a row and itself are excluded; never by value.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    similarity: str
    temperature: torch.Tensor | float
    reduction: str
    _options = ("similarity", "temperature", "reduction")

    def __init__(
        self, *, similarity: str = "cosine", temperature: torch.Tensor | float = 0.07, reduction: str = "mean"
    ) -> None:
        super().__init__(similarity=similarity, temperature=temperature, reduction=reduction)

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
        return losses.nt_xent(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            similarity=self.similarity,
            temperature=self.temperature,
            reduction=self.reduction,
        )


class SupConLoss(LossModule):
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362), the form with the mean outside the logarithm:

        loss_i = log sum over P and N of e^{s / t} - mean_P s / t,   0 for rows without a positive

    Several views of a sample are rows of one label: x = cat([view1, view2]), labels = cat([y, y]).

    The module of ``hk.losses.supcon``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        temperature: above 0; a tensor of one element may be learned.
        convention: "pml" (pytorch-metric-learning): the mean over the rows whose loss is above 0, and 0 where the batch
            has no negative pair; a learned row, whose loss has rounded to 0 there, is still above 0 here. "supcontrast"
            (the authors' program): the mean over all rows, times temperature / base_temperature.
        base_temperature: of "supcontrast".
        reduction: "mean", "sum" or "none": [N].
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
        labels: [N] int64.
        ref: [M, D] of the dtype of x; None: x itself, and no row is paired with itself.
        ref_labels: [M] int64, where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count (the same image in a queue). Without
            them, and with ref None, only a row and itself are excluded; never by value.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    similarity: str
    temperature: torch.Tensor | float
    convention: str
    base_temperature: float
    reduction: str
    process_group: Any
    communication: str
    gradient_reduction: str
    _options = (
        "similarity",
        "temperature",
        "convention",
        "base_temperature",
        "reduction",
        "process_group",
        "communication",
        "gradient_reduction",
    )

    def __init__(
        self,
        *,
        similarity: str = "cosine",
        temperature: torch.Tensor | float = 0.1,
        convention: str = "pml",
        base_temperature: float = 0.07,
        reduction: str = "mean",
        process_group: Any = None,
        communication: str = "gather",
        gradient_reduction: str = "mean",
    ) -> None:
        super().__init__(
            similarity=similarity,
            temperature=temperature,
            convention=convention,
            base_temperature=base_temperature,
            reduction=reduction,
            process_group=process_group,
            communication=communication,
            gradient_reduction=gradient_reduction,
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
        return losses.supcon(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            similarity=self.similarity,
            temperature=self.temperature,
            convention=self.convention,
            base_temperature=self.base_temperature,
            reduction=self.reduction,
            process_group=self.process_group,
            communication=self.communication,
            gradient_reduction=self.gradient_reduction,
        )
