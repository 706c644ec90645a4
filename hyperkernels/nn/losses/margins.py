"""Modules of ``hyperkernels.losses.margins``. Written by tools/modules.py from its functions."""

from __future__ import annotations

import torch

from ... import losses
from ..loss_module import LossModule


class ContrastiveLoss(LossModule):
    """Positives closer than one margin, negatives farther than another.

    With distances d the sums of [d - pos_margin]+ over the positive and of [neg_margin - d]+ over the negative pairs,
    with similarities s those of [pos_margin - s]+ and [s - neg_margin]+; each divided by its own count. Hadsell et al.,
    2006; ``ContrastiveLoss`` of pytorch-metric-learning. Cosine with margins 1 and 0.5, summed and divided by N, is the
    loss of XBM (arXiv 1912.06798) but for a constant.

    The module of ``hk.losses.contrastive``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        pos_margin, neg_margin: by default 0 and 1 for distances, 1 and 0 for similarities.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: distances are those of the unit vectors.
        reduction: "mean"; "sum" over the pairs; or "none": the sum over the pairs of each row, [N].
        mean_over: "nonzero": each part is divided by the number of its pairs with a loss above 0; "all": by the number
            of its pairs, which takes one more pass over the negatives.

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

    pos_margin: float | None
    neg_margin: float | None
    similarity: str
    normalize: bool
    reduction: str
    mean_over: str
    _options = ("pos_margin", "neg_margin", "similarity", "normalize", "reduction", "mean_over")

    def __init__(
        self,
        *,
        pos_margin: float | None = None,
        neg_margin: float | None = None,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
        mean_over: str = "nonzero",
    ) -> None:
        super().__init__(
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            similarity=similarity,
            normalize=normalize,
            reduction=reduction,
            mean_over=mean_over,
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
        return losses.contrastive(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            pos_margin=self.pos_margin,
            neg_margin=self.neg_margin,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
            mean_over=self.mean_over,
        )


class MarginLoss(LossModule):
    """Positives closer than beta - margin, negatives farther than beta + margin, over all triplets.

    A triplet (i, p, n) has the loss [d_ip - beta + margin]+ + [beta - d_in + margin]+ (with similarities the signs
    change); the mean divides the sum over all triplets by the number of hinges above 0, and adds the penalty: nu *
    beta, or for a beta per class, before the division, that of the row for every triplet. Wu et al., 2017
    (arXiv 1706.07567); ``MarginLoss`` of pytorch-metric-learning. Triplets are counted, never listed.

    The module of ``hk.losses.margin``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        margin: at least 0.
        beta: a number, a tensor of one element, or one number per class [C], where labels are in [0, C).
            Differentiable.
        nu: weight of the penalty.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: distances are those of the unit vectors.
        reduction: "mean"; "sum" over the triplets; or "none": the sum over the triplets of each row, [N], where nu must
            be 0 unless beta is one per class.

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
        IndexError: a label out of range where beta is one per class, on the CPU.
    """

    margin: float
    beta: torch.Tensor | float
    nu: float
    similarity: str
    normalize: bool
    reduction: str
    _options = ("margin", "beta", "nu", "similarity", "normalize", "reduction")

    def __init__(
        self,
        *,
        margin: float = 0.2,
        beta: torch.Tensor | float = 1.2,
        nu: float = 0.0,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            margin=margin, beta=beta, nu=nu, similarity=similarity, normalize=normalize, reduction=reduction
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
        return losses.margin(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            margin=self.margin,
            beta=self.beta,
            nu=self.nu,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
        )


class TripletLoss(LossModule):
    """Every row closer to its positives than to its negatives, by a margin.

    A triplet (i, p, n) of a row, a positive and a negative has the loss [v]+, or log(1 + exp(v)) where ``soft``, of the
    violation v = d_ip - d_in + margin with distances, s_in - s_ip + margin with similarities. FaceNet, Schroff et al.,
    2015 (arXiv 1503.03832); Hermans et al., 2017 (arXiv 1703.07737); ``TripletMarginLoss`` of pytorch-metric-learning.
    Triplets are never listed; only the positive pairs are, unless ``mining="batch_hard"``.

    The module of ``hk.losses.triplet``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        margin: by which a negative must be farther than a positive, in the units of the distance or the similarity.
        mining: "all" triplets (where ``soft``, in as many passes over the negatives as the largest number of
            positives); "batch_hard": of every row the least similar positive and the most similar negative;
            "semi_hard": of every positive pair the most similar of the negatives that are less similar than the
            positive, or where there is none the least similar negative.
        soft: log(1 + exp(v)) in place of the hinge.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: distances are those of the unit vectors.
        reduction: "mean"; "sum" over the triplets; or "none": the sum over the triplets of each row, [N].
        mean_over: the mean is over the triplets with a loss above 0 ("nonzero"; all, where ``soft``), or over "all".

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

    margin: float
    mining: str
    soft: bool
    similarity: str
    normalize: bool
    reduction: str
    mean_over: str
    _options = ("margin", "mining", "soft", "similarity", "normalize", "reduction", "mean_over")

    def __init__(
        self,
        *,
        margin: float = 0.05,
        mining: str = "all",
        soft: bool = False,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
        mean_over: str = "nonzero",
    ) -> None:
        super().__init__(
            margin=margin,
            mining=mining,
            soft=soft,
            similarity=similarity,
            normalize=normalize,
            reduction=reduction,
            mean_over=mean_over,
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
        return losses.triplet(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            margin=self.margin,
            mining=self.mining,
            soft=self.soft,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
            mean_over=self.mean_over,
        )


class TupletMarginLoss(LossModule):
    """A softmax of every positive pair against the negatives of its row, with slack in the angle.

    A positive pair (i, p) with the angle theta has the loss log(1 + sum over the negatives n of
    exp(scale * (cos_in - cos(theta - margin)))); the mean is over the positive pairs. Yu and Tao, 2019 (ICCV);
    ``TupletMarginLoss`` of pytorch-metric-learning. The positive pairs are listed.

    The module of ``hk.losses.tuplet_margin``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        margin: the slack in degrees.
        scale: above 0.
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

    margin: float
    scale: float
    reduction: str
    _options = ("margin", "scale", "reduction")

    def __init__(self, *, margin: float = 5.73, scale: float = 64.0, reduction: str = "mean") -> None:
        super().__init__(margin=margin, scale=scale, reduction=reduction)

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
        return losses.tuplet_margin(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            margin=self.margin,
            scale=self.scale,
            reduction=self.reduction,
        )
