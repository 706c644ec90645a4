"""Losses that spread points over the sphere, or align two sets of them, and need no labels."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._autocast import autocast
from ..kernels.pair_mining.blocks import log_sum_exp
from ..pairs.pairs import LINEAR, SOFTPLUS, Pairs
from ..pairs.source import LocalPairSource, PairSource
from .common import (
    REDUCTIONS,
    Number,
    blocks,
    group_of,
    numbered,
    over_ranks,
    own_columns,
    recomputed,
    reduce_counted,
    scalar,
    shared,
    softplus,
)
from .info_nce import info_nce

_BLOCK = 2**22  # similarities that calibrated_uniformity and its gradient hold at a time
GAUSSIAN = ("cosine", "squared_euclidean")


def uniformity(
    x: torch.Tensor,
    ref: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    t: float = 2.0,
    similarity: str = "cosine",
) -> torch.Tensor:
    """Uniformity (Wang and Isola, arXiv 2005.10242): log of the mean of e^{-t |x_i - x_j|^2} over all pairs i < j.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        ref: [M, D] of the dtype of x: the mean is over its pairs with x instead.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count.
        t: above 0.
        similarity: "cosine": the rows are made unit rows first, and the gradient is tangent to the sphere.
            "squared_euclidean": they are taken as they are, as in the authors' program.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 where there is no pair.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("similarity", similarity, GAUSSIAN)
    t = _check.number("t", t, above=0.0)
    pairs = Pairs(x, None, ref, None, ids=ids, ref_ids=ref_ids, similarity=similarity)
    if similarity == "cosine":
        return log_mean_exp_of(pairs, scale=2 * t, shift=-2 * t)
    return log_mean_exp_of(pairs, scale=t)


def log_mean_exp_of(pairs: PairSource, *, scale: Number, shift: float = 0.0) -> torch.Tensor:
    """Log of the mean of e^{scale * s + shift} over all pairs; 0 where there is none."""
    found = pairs.statistics("all", transform=LINEAR, scale=scale)
    total = found.count.sum()
    some = total > 0
    lse = _logsumexp(torch.where(some, found.lse, 0))
    return torch.where(some, lse - torch.where(some, total, 1).to(lse.dtype).log() + shift, 0)


def _logsumexp(v: torch.Tensor) -> torch.Tensor:
    return v.logsumexp(0) if v.shape[0] else v.sum()


def calibrated_uniformity(
    x: torch.Tensor, fused: torch.Tensor, *, t: float = 2.0, min_sim: float = 0.0, max_sim: float = 0.8
) -> torch.Tensor:
    """Calibrated uniformity of CM3 (arXiv 2508.01226): items that are alike may lie closer,

        log of the mean over i < j of e^{-t (|x_i - x_j|^2 - 2 + 2 sim_ij)},   sim = clamp(cos(f_i, f_j), min, max)

    of unit rows. The clamp needs both similarities of a pair at once: this is plain PyTorch over blocks of rows, whose
    similarities are computed again for the gradient. N x N of them are never stored, but in a program that torch.export
    made, which takes all rows as one block.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16; made unit rows.
        fused: [N, E] features f of the same items; made unit rows. The gradient flows to both.
        t: above 0.
        min_sim, max_sim: range of the calibration, min_sim <= max_sim.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 for fewer than two rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    t = _check.number("t", t, above=0.0)
    min_sim = _check.number("min_sim", min_sim)
    max_sim = _check.number("max_sim", max_sim, minimum=min_sim)
    pairs, other = Pairs(x), Pairs(fused)
    _check.same_device("fused", other.x, "x", pairs.x)
    if other.n != pairs.n:
        raise ValueError(f"fused must have one row per row of x ({pairs.n}); got shape {tuple(fused.shape)}")
    a, b = pairs.x.to(pairs.dtype), other.x.to(pairs.dtype)
    n = pairs.n

    def block(a: torch.Tensor, b: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Log-sum-exp over j > i of the rows from first to last."""
        calibration = (b[first:last] @ b[first:].T).clamp(min_sim, max_sim)
        power = 2 * t * (a[first:last] @ a[first:].T - calibration)
        below = torch.ones_like(power, dtype=torch.bool).tril()
        return log_sum_exp(power.masked_fill(below, -torch.inf).flatten())

    with autocast(a, None):  # a and b are rounded to its dtype already
        parts = [recomputed(block, a, b, first, last) for first, last in blocks(n, _BLOCK, n)]
    total = log_sum_exp(torch.stack(parts))
    number = torch.ones_like(total) * n * (n - 1) / 2
    return torch.where(number > 0, total - number.log(), 0)


def nearest_pair_packing(
    x: torch.Tensor, gallery: torch.Tensor | None = None, *, alpha: float = 0.5
) -> torch.Tensor:  # fmt: skip
    """The packing of HyperFace (arXiv 2411.08470): drives the closest pair of points apart, and the points towards the
    gallery,

        loss = -min_{i != j} d(x_i, x_j) + alpha * mean_i min_g d(x_i, g),   d = 1 - cosine

    The gradient reaches the closest pair (the lowest indices on ties) and the nearest of the gallery of every row.

    Args:
        x: points [N, D]; float64, float32, bfloat16 or float16.
        gallery: [M, D] of the dtype of x; None: no second term.
        alpha: weight of the second term.

    Returns:
        A scalar; float32, float64 for float64 inputs. A term without a pair is 0.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    alpha = _check.number("alpha", alpha)
    loss = closest_pair_of(Pairs(x))
    if gallery is None:
        return loss
    pairs = Pairs(x, None, gallery)
    distance, some = _nearest_distance(pairs)
    return loss + alpha * reduce_counted(distance, some, "mean")


def closest_pair_of(pairs: Pairs) -> torch.Tensor:
    """Minus the smallest distance of all."""
    distance, some = _nearest_distance(pairs)
    if not pairs.n:
        return pairs.x.to(pairs.dtype).sum()
    closest = torch.where(some, distance.detach(), torch.inf).argmin(0, keepdim=True)
    return -torch.where(some, distance, 0).gather(0, closest)[0]


def _nearest_distance(pairs: LocalPairSource) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance from every row to the nearest column, [N], and whether there is one."""
    index = pairs.statistics("all", extremes=True).argmax
    return 1 - pairs.values_at(index), index >= 0


def siglip(
    x: torch.Tensor,
    ref: torch.Tensor,
    labels: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    t: torch.Tensor | float = 10.0,
    b: torch.Tensor | float = -10.0,
    reduction: str = "mean",
    process_group: Any = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
) -> torch.Tensor:
    """Sigmoid loss (Zhai et al., arXiv 2303.15343): every pair is a classification of its own,

        loss_i = sum_P softplus(-(t s + b)) + sum_N softplus(t s + b)

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        ref: [M, D] of the dtype of x.
        labels, ref_labels: [N] and [M] int64; positives are the pairs of equal labels. None: row i of ref is the
            positive of row i, M at least N.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count, but for the positive in row i of
            ref.
        t: scale of the cosines (the exponential of the paper's t'); a tensor of one element may be learned.
        b: bias; a tensor of one element may be learned.
        reduction: "mean" over the rows, "sum", or "none": [N].
        process_group, communication, gradient_reduction: as in ``info_nce``.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    group = group_of(process_group, communication, gradient_reduction)
    paired = labels is None
    if paired:
        if ref_labels is not None:
            raise ValueError("labels must be given where ref_labels are")
        labels, ref_labels = numbered(x, "x"), numbered(ref, "ref")
    pairs = Pairs(x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids)
    if paired and pairs.m < pairs.n:
        raise ValueError(f"ref must have a row for each of the {pairs.n} of x, the positives")
    scale, offset = scalar("t", shared(group, t), pairs.dtype), scalar("b", shared(group, b), pairs.dtype)
    (pairs,) = over_ranks(group, [pairs], ids, ref_ids, paired)
    return siglip_of(pairs, scale=scale, offset=offset, paired=paired, reduction=reduction)


def siglip_of(
    pairs: PairSource, *, scale: Number, offset: Number, paired: bool = False, reduction: str = "mean"
) -> torch.Tensor:
    wanted = [{"select": "negative", "transform": SOFTPLUS, "scale": scale, "offset": offset}]
    if not paired:
        wanted.append({"select": "positive", "transform": SOFTPLUS, "scale": -scale, "offset": -offset})
    (negative,), *positive = pairs.together(wanted)
    if paired:
        loss = negative.lse + softplus(-(scale * pairs.values_at(own_columns(pairs)) + offset))
    else:
        loss = negative.lse + positive[0][0].lse
    return reduce_counted(loss, torch.ones_like(loss, dtype=torch.bool), reduction, pairs.group)


def meow(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor,
    ref_labels: torch.Tensor | None = None,
    *,
    temperature: torch.Tensor | float = 0.5,
    reduction: str = "mean",
) -> torch.Tensor:
    """The contrastive term of MEOW (arXiv 2212.13847): a negative weighs as much as clusterings tell it apart,

        loss_i = log sum_j W_ij e^{s_ij / t} - s_ii / t,   W_ij = number of clusterings k with c_k(i) != c_k(j)

    with the cosine s_ij of row i of x and row j of ref, two views. (Its prototype term is
    ``hk.margin_softmax_loss`` with a ``class_scale``.)

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N, K] int64: K clusterings of the rows.
        ref: [M, D] of the dtype of x, M at least N; row i is the other view of row i.
        ref_labels: [M, K]; None: labels, M = N.
        temperature: above 0; a tensor of one element may be learned.
        reduction: "mean" over the rows, "sum", or "none": [N]. A row that no clustering tells from any other has 0.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("labels", labels, (torch.int64,), dim=2)
    return info_nce(
        x, labels, ref, labels if ref_labels is None else ref_labels,
        temperature=temperature, positive_in_denominator=False, reduction=reduction,
    )  # fmt: skip
