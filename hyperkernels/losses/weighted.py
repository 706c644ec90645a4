"""Losses that weigh the pairs of a row by exponentials of their similarities.

A function `<name>_of` takes the pairs and thresholds in the units of the similarity.
"""

from __future__ import annotations

import math

import torch

from .. import _check
from .._dtypes import widest_dtype
from ..kernels.pair_mining.problem import PairRowStatistics, Transform
from ..pairs.pairs import LINEAR
from ..pairs.source import LocalPairSource
from .common import DISTANCES, MEANS, REDUCTIONS, in_similarity, pairs_of, reduce, softplus

SCOPES = ("anchor", "batch")


def multi_similarity(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """The multi-similarity loss with its mining, in one pass over the negatives.

    The loss of a row, over its mined positives p and negatives n, is

        1 / alpha log(1 + sum exp(-alpha (s_p - base))) + 1 / beta log(1 + sum exp(beta (s_n - base))),

    where a negative is mined if s_n + epsilon is above the least similar positive of the row, and a positive if
    s_p - epsilon is below its most similar negative. Wang et al., 2019 (arXiv 1904.06627); ``MultiSimilarityMiner``
    with ``MultiSimilarityLoss`` of pytorch-metric-learning. With distances s is minus the distance, base too.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize: as in ``hk.losses.contrastive``.
        alpha, beta: above 0; the authors' code has beta 40.
        base: the similarity that is neither near nor far.
        epsilon: None: no mining, all pairs count.
        reduction: "mean" over all rows, "sum", or "none" for [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    alpha, beta = _check.number("alpha", alpha, above=0.0), _check.number("beta", beta, above=0.0)
    base = in_similarity(similarity, _check.number("base", base))
    epsilon = None if epsilon is None else _check.number("epsilon", epsilon)
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    return multi_similarity_of(pairs, alpha, beta, base, epsilon, reduction)


def multi_similarity_of(
    pairs: LocalPairSource, alpha: float, beta: float, base: float, epsilon: float | None, reduction: str = "mean"
) -> torch.Tensor:
    lower = upper = None
    if epsilon is not None:
        lower = pairs.statistics("positive", extremes=True).min - epsilon
    negative = pairs.statistics("negative", extremes=epsilon is not None, transform=LINEAR, scale=beta, lower=lower)
    if epsilon is not None:
        # The largest of the mined negatives is the largest of all; where none is mined, no positive would be either.
        upper = negative.max + epsilon
    positive = pairs.statistics("positive", transform=LINEAR, scale=-alpha, upper=upper)
    pull, push = softplus(positive.lse + alpha * base) / alpha, softplus(negative.lse - beta * base) / beta
    return reduce(pull + push, reduction, pairs.n)


def circle(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    m: float = 0.4,
    gamma: float = 80.0,
    scope: str = "anchor",
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    reduction: str = "mean",
    mean_over: str = "nonzero",
) -> torch.Tensor:
    """Circle loss: every similarity pulled or pushed in proportion to how far it is from its optimum.

        log(1 + sum over negatives of exp(gamma a_n (s_n - m)) * sum over positives of exp(-gamma a_p (s_p - 1 + m))),
        a_p = [1 + m - s_p]+, a_n = [s_n + m]+, constants for the gradient,

    of cosines s.

    Sun et al., 2020 (arXiv 2002.10857), who use m = 0.25 with gamma = 256 for faces and 128 for persons.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids: as in ``hk.losses.contrastive``.
        m: the margin.
        gamma: above 0.
        scope: "anchor": a loss for every row with positives and negatives, as ``CircleLoss`` of
            pytorch-metric-learning; "batch": one over all pairs, each pair of x counted once, where ``reduction`` and
            ``mean_over`` say nothing.
        reduction: "mean", "sum", or "none" for [N].
        mean_over: the mean is over the rows with a loss above 0 ("nonzero") or over "all".

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    m, gamma = _check.number("m", m), _check.number("gamma", gamma, above=0.0)
    for name, value, allowed in (
        ("scope", scope, SCOPES), ("reduction", reduction, REDUCTIONS), ("mean_over", mean_over, MEANS)
    ):  # fmt: skip
        _check.choice(name, value, allowed)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, "cosine")
    if scope == "batch":
        return circle_of_batch(pairs, m, gamma, twice=ref is None)
    return circle_of(pairs, m, gamma, reduction, mean_over)


def _circle_sums(pairs: LocalPairSource, m: float, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    positive = pairs.statistics("positive", transform=Transform("circle", 1 + m, 1 - m), scale=-gamma)
    negative = pairs.statistics("negative", transform=Transform("circle", m, -m), scale=gamma)
    return positive.lse, negative.lse


def circle_of(
    pairs: LocalPairSource, m: float, gamma: float, reduction: str = "mean", mean_over: str = "nonzero"
) -> torch.Tensor:
    positive, negative = _circle_sums(pairs, m, gamma)
    rows = softplus(positive + negative)
    return reduce(rows, reduction, pairs.n if mean_over == "all" else ((rows > 0) | rows.isnan()).sum())


def circle_of_batch(pairs: LocalPairSource, m: float, gamma: float, twice: bool) -> torch.Tensor:
    """`twice`: the pairs hold every pair in both orders."""
    positive, negative = (_logsumexp(rows) for rows in _circle_sums(pairs, m, gamma))
    return softplus(positive + negative - (2 * math.log(2) if twice else 0))


def _logsumexp(rows: torch.Tensor) -> torch.Tensor:
    """Where all is -inf (or nothing is) -inf with a gradient of 0, which `torch.logsumexp` has as NaN."""
    some = (rows != -torch.inf).any()
    return torch.where(some, torch.logsumexp(torch.where(some, rows, 0), 0), -torch.inf)


def weighted_triplet(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    include_self: bool = False,
    exact: bool = True,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """The weighted regularised triplet loss of AGW: hard pairs weigh more, and there is no margin to choose.

    The loss of a row is log(1 + exp(f - c)), f the mean distance to its positives weighted by the softmax of d, c that
    to its negatives weighted by the softmax of -d; the weights are not constants. Rows without positives or negatives
    have none. Ye et al., 2021 (arXiv 2001.04193), whose code has ``include_self=True, exact=False, normalize=False``.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, normalize: as in ``hk.losses.contrastive``.
        include_self: every row counts as one of its positives, at a distance of 0.
        exact: False: the weights as the authors compute them, exp(d_p - max d_p) and exp(-d_n), each divided by its sum
            plus 1e-6. Negatives farther than about 10 then lose their weight.
        similarity: "euclidean", "squared_euclidean"; or "cosine" and "dot" where exact and not ``include_self``, with d
            minus the similarity.
        reduction: "mean" over all rows, "sum", or "none" for [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    _check.boolean("include_self", include_self)
    _check.boolean("exact", exact)
    if (include_self or not exact) and similarity not in DISTANCES:
        raise ValueError(f"similarity must be a distance for include_self or exact=False; got {similarity!r}")
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    return weighted_triplet_of(pairs, include_self, exact, reduction)


def weighted_triplet_of(
    pairs: LocalPairSource, include_self: bool = False, exact: bool = True, reduction: str = "mean"
) -> torch.Tensor:
    positive = pairs.statistics("positive", extremes=not exact, transform=LINEAR, scale=-1.0)
    negative = pairs.statistics("negative", transform=LINEAR, scale=1.0)
    near, far = positive.d_scale, negative.d_scale
    some = positive.count > 0
    lse = torch.where(some, positive.lse, 0)  # of the distances
    if include_self:
        near = torch.where(some, near * lse.sigmoid(), 0)
        lse = torch.where(some, softplus(lse), 0)
    if not exact:
        farthest = -pairs.values_at(positive.argmin)
        near = near / (1 + 1e-6 * torch.exp(farthest - lse))
        far = far * torch.sigmoid(torch.where(negative.count > 0, negative.lse, 0) - math.log(1e-6))
    counted = (some | include_self) & (negative.count > 0)
    return reduce(torch.where(counted, softplus(far - near), 0), reduction, pairs.n)


def ranked_list(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float,
    Tn: float,
    imbalance: float = 0.5,
    alpha: float | None = None,
    Tp: float = 0.0,
    detach_weights: bool = False,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """Positives inside a sphere of radius alpha - margin, negatives outside of one of radius alpha.

    The loss of a row is (1 - imbalance) mean_p(d_p - (alpha - margin)) + imbalance mean_n(alpha - d_n) over the pairs
    for which that is above 0, weighted by exp(Tp v) and exp(Tn v) of that violation v; the sum of the weights that a
    mean divides by has M * 1e-5 added. Wang et al., 2019 (arXiv 1903.03238); ``RankedListLoss`` of
    pytorch-metric-learning, where a negative at a distance of 0 does not count.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, normalize: as in ``hk.losses.contrastive``.
        margin: between the two spheres.
        Tn, Tp: temperatures of the weights of negatives and positives, at least 0.
        imbalance: in [0, 1].
        alpha: None: 1 + margin / 2.
        detach_weights: the weights are constants for the gradient.
        similarity: "euclidean" or "squared_euclidean".
        reduction: "mean" over all rows, "sum", or "none" for [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    margin = _check.number("margin", margin)
    alpha = 1 + margin / 2 if alpha is None else _check.number("alpha", alpha)
    tn, tp = _check.number("Tn", Tn, minimum=0.0), _check.number("Tp", Tp, minimum=0.0)
    imbalance = _check.number("imbalance", imbalance, minimum=0.0, maximum=1.0)
    _check.choice("reduction", reduction, REDUCTIONS)
    _check.boolean("detach_weights", detach_weights)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize, DISTANCES)
    return ranked_list_of(pairs, margin - alpha, -alpha, tp, tn, imbalance, detach_weights, reduction)


def ranked_list_of(
    pairs: LocalPairSource,
    near: float,
    far: float,
    tp: float,
    tn: float,
    imbalance: float = 0.5,
    detach_weights: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    positive = pairs.statistics("positive", transform=LINEAR, scale=-tp, upper=near)
    negative = pairs.statistics("negative", transform=LINEAR, scale=tn, lower=far)
    pull = _ranked(positive, -tp, near, -1, pairs.m, detach_weights)
    push = _ranked(negative, tn, far, 1, pairs.m, detach_weights)
    return reduce((1 - imbalance) * pull + imbalance * push, reduction, pairs.n)


def _ranked(
    found: PairRowStatistics, scale: float, threshold: float, sign: int, columns: int, detach_weights: bool
) -> torch.Tensor:
    """The weighted mean of sign * (similarity - threshold), 0 where no pair counts."""
    some = found.count > 0
    lse, mean = torch.where(some, found.lse, 0), torch.where(some, found.d_scale, 0)
    if detach_weights:
        # The derivative of the log-sum-exp is scale * weight, without the weights' own derivatives.
        if scale:
            mean = mean.detach() + (lse - lse.detach()) / scale
        lse = lse.detach()
    number = torch.full((), columns, dtype=widest_dtype(lse.device))  # columns may be a symbol
    floor = number.clamp_min(1).mul(1e-5).log()
    share = torch.sigmoid(lse - scale * threshold - floor)
    return torch.where(some, sign * (mean - threshold) * share, 0)
