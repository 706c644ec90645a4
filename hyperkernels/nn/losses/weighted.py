"""Modules of ``hyperkernels.losses.weighted``. Written by tools/modules.py from its functions."""

from __future__ import annotations

import torch

from ... import losses
from ..loss_module import LossModule


class CircleLoss(LossModule):
    """Circle loss: every similarity pulled or pushed in proportion to how far it is from its optimum.

        log(1 + sum over negatives of exp(gamma a_n (s_n - m)) * sum over positives of exp(-gamma a_p (s_p - 1 + m))),
        a_p = [1 + m - s_p]+, a_n = [s_n + m]+, constants for the gradient,

    of cosines s.

    Sun et al., 2020 (arXiv 2002.10857), who use m = 0.25 with gamma = 256 for faces and 128 for persons.

    The module of ``hk.losses.circle``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        m: the margin.
        gamma: above 0.
        scope: "anchor": a loss for every row with positives and negatives, as ``CircleLoss`` of
            pytorch-metric-learning; "batch": one over all pairs, each pair of x counted once, where ``reduction`` and
            ``mean_over`` say nothing.
        reduction: "mean", "sum", or "none" for [N].
        mean_over: the mean is over the rows with a loss above 0 ("nonzero") or over "all".

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

    m: float
    gamma: float
    scope: str
    reduction: str
    mean_over: str
    _options = ("m", "gamma", "scope", "reduction", "mean_over")

    def __init__(
        self,
        *,
        m: float = 0.4,
        gamma: float = 80.0,
        scope: str = "anchor",
        reduction: str = "mean",
        mean_over: str = "nonzero",
    ) -> None:
        super().__init__(m=m, gamma=gamma, scope=scope, reduction=reduction, mean_over=mean_over)

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
        return losses.circle(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            m=self.m,
            gamma=self.gamma,
            scope=self.scope,
            reduction=self.reduction,
            mean_over=self.mean_over,
        )


class MultiSimilarityLoss(LossModule):
    """The multi-similarity loss with its mining, in one pass over the negatives.

    The loss of a row, over its mined positives p and negatives n, is

        1 / alpha log(1 + sum exp(-alpha (s_p - base))) + 1 / beta log(1 + sum exp(beta (s_n - base))),

    where a negative is mined if s_n + epsilon is above the least similar positive of the row, and a positive if
    s_p - epsilon is below its most similar negative. Wang et al., 2019 (arXiv 1904.06627); ``MultiSimilarityMiner``
    with ``MultiSimilarityLoss`` of pytorch-metric-learning. With distances s is minus the distance, base too.

    The module of ``hk.losses.multi_similarity``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        alpha, beta: above 0; the authors' code has beta 40.
        base: the similarity that is neither near nor far.
        epsilon: None: no mining, all pairs count.
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

    alpha: float
    beta: float
    base: float
    epsilon: float | None
    similarity: str
    normalize: bool
    reduction: str
    _options = ("alpha", "beta", "base", "epsilon", "similarity", "normalize", "reduction")

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
        similarity: str = "cosine",
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            alpha=alpha,
            beta=beta,
            base=base,
            epsilon=epsilon,
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
        return losses.multi_similarity(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
        )


class RankedListLoss(LossModule):
    """Positives inside a sphere of radius alpha - margin, negatives outside of one of radius alpha.

    The loss of a row is (1 - imbalance) mean_p(d_p - (alpha - margin)) + imbalance mean_n(alpha - d_n) over the pairs
    for which that is above 0, weighted by exp(Tp v) and exp(Tn v) of that violation v; the sum of the weights that a
    mean divides by has M * 1e-5 added. Wang et al., 2019 (arXiv 1903.03238); ``RankedListLoss`` of
    pytorch-metric-learning, where a negative at a distance of 0 does not count.

    The module of ``hk.losses.ranked_list``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        margin: between the two spheres.
        Tn, Tp: temperatures of the weights of negatives and positives, at least 0.
        imbalance: in [0, 1].
        alpha: None: 1 + margin / 2.
        detach_weights: the weights are constants for the gradient.
        similarity: "euclidean" or "squared_euclidean".
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

    margin: float
    Tn: float
    imbalance: float
    alpha: float | None
    Tp: float
    detach_weights: bool
    similarity: str
    normalize: bool
    reduction: str
    _options = ("margin", "Tn", "imbalance", "alpha", "Tp", "detach_weights", "similarity", "normalize", "reduction")

    def __init__(
        self,
        *,
        margin: float,
        Tn: float,
        imbalance: float = 0.5,
        alpha: float | None = None,
        Tp: float = 0.0,
        detach_weights: bool = False,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            margin=margin,
            Tn=Tn,
            imbalance=imbalance,
            alpha=alpha,
            Tp=Tp,
            detach_weights=detach_weights,
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
        return losses.ranked_list(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            margin=self.margin,
            Tn=self.Tn,
            imbalance=self.imbalance,
            alpha=self.alpha,
            Tp=self.Tp,
            detach_weights=self.detach_weights,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
        )


class WeightedTripletLoss(LossModule):
    """The weighted regularised triplet loss of AGW: hard pairs weigh more, and there is no margin to choose.

    The loss of a row is log(1 + exp(f - c)), f the mean distance to its positives weighted by the softmax of d, c that
    to its negatives weighted by the softmax of -d; the weights are not constants. Rows without positives or negatives
    have none. Ye et al., 2021 (arXiv 2001.04193), whose code has ``include_self=True, exact=False, normalize=False``.

    The module of ``hk.losses.weighted_triplet``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        include_self: every row counts as one of its positives, at a distance of 0.
        exact: False: the weights as the authors compute them, exp(d_p - max d_p) and exp(-d_n), each divided by its sum
            plus 1e-6. Negatives farther than about 10 then lose their weight.
        similarity: "euclidean", "squared_euclidean"; or "cosine" and "dot" where exact and not ``include_self``, with d
            minus the similarity.
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

    include_self: bool
    exact: bool
    similarity: str
    normalize: bool
    reduction: str
    _options = ("include_self", "exact", "similarity", "normalize", "reduction")

    def __init__(
        self,
        *,
        include_self: bool = False,
        exact: bool = True,
        similarity: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            include_self=include_self, exact=exact, similarity=similarity, normalize=normalize, reduction=reduction
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
        return losses.weighted_triplet(
            x,
            labels,
            ref,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            include_self=self.include_self,
            exact=self.exact,
            similarity=self.similarity,
            normalize=self.normalize,
            reduction=self.reduction,
        )
