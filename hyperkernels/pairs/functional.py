"""The public face of the engine: row statistics over pairs, without the matrix of similarities."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from .. import _check
from ..kernels.pair_mining.problem import PairRowStatistics, Transform
from .pairs import LINEAR, SELECT, SOFTPLUS, Pairs
from .source import Bound


class PairStatistics(NamedTuple):
    """Per row over the pairs that count, [N] each, None where not asked for; see ``hk.pair_statistics``."""

    count: torch.Tensor  # type: ignore[assignment]
    sum: torch.Tensor | None = None
    sum_squares: torch.Tensor | None = None
    min: torch.Tensor | None = None
    argmin: torch.Tensor | None = None
    max: torch.Tensor | None = None
    argmax: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    softmax_mean: torch.Tensor | None = None
    softplus_sum: torch.Tensor | None = None


GROUPS = ("moments", "extremes", "lse", "softplus")


def pair_statistics(
    x: torch.Tensor,
    labels: torch.Tensor | None = None,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    select: str = "all",
    statistics: Collection[str] = ("moments", "extremes", "lse"),
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    scale: torch.Tensor | float = 1.0,
    offset: torch.Tensor | float = 0.0,
    lower: Bound = None,
    upper: Bound = None,
    ignore_label: int | None = None,
    multi_hot: bool = False,
    eps: float = 1e-12,
) -> PairStatistics:
    """Statistics of every row of the N x M similarities of ``x`` and ``ref``; the matrix is never stored.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64, any values; needed unless ``select="all"``.
        ref: [M, D] of the dtype of x; None: x itself, and no row is paired with itself.
        ref_labels: [M] int64, where ref and labels are given.
        select: "positive" (equal labels), "negative" (different ones) or "all".
        statistics: which to compute, of "moments" (sum, sum_squares), "extremes" (min, argmin, max, argmax), "lse"
            (lse, softmax_mean) and "softplus" (softplus_sum). Count always comes.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count (the same image in a queue). Without
            them, and with ref None, only a row and itself are excluded; never by value.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean"; the last two are minus the distance, so that
            larger always means closer.
        scale, offset: numbers, scalars or [N]; differentiable, but for that of softmax_mean to scale, which raises
            RuntimeError in backward. lse is log sum exp(scale * similarity), softplus_sum is
            sum softplus(scale * similarity + offset).
        lower, upper: numbers, scalars or [N]; only pairs with lower < similarity < upper count. Held constant. None and
            NaN: no bound. A similarity that is NaN is within any.
        ignore_label: rows and columns of this label have no pairs; None without labels.
        multi_hot: labels are sets of up to 64 bits; two are equal where they share one. False without labels.
        eps: floor of the norm, for "cosine"; a shorter row gets a zero gradient.

    Returns:
        ``PairStatistics`` with [N] tensors: count (int64), sum, sum_squares, min and max of the similarities with
        argmin and argmax (the lowest column on ties, -1 where no pair counts), lse (-inf there), softmax_mean (the mean
        under the softmax of scale * similarity), softplus_sum. float32, float64 for float64 inputs; all but the
        integers are differentiable (min and max through the pair that attains them).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("select", select, SELECT)
    if isinstance(statistics, str) or not isinstance(statistics, Collection):
        raise TypeError(f"statistics must be a sequence of names; got {statistics!r}")
    for name in statistics:
        _check.choice("statistics", name, GROUPS)
    if scale is None or offset is None:
        raise TypeError("scale and offset must be numbers or tensors; got None")
    pairs = Pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot, eps=eps,
    )  # fmt: skip
    if select != "all" and labels is None:
        raise ValueError(f"labels must be given for select={select!r}")
    given = (("scale", scale), ("offset", offset), ("lower", lower), ("upper", upper))
    by, shift, low, high = (pairs.row_numbers(name, value) for name, value in given)
    linear = "lse" in statistics
    first = pairs.statistics(
        select, moments="moments" in statistics, extremes="extremes" in statistics,
        transform=LINEAR if linear else Transform(), scale=by if linear else None, lower=low, upper=high,
    )  # fmt: skip
    found: dict[str, Any] = {"count": first.count}
    if "moments" in statistics:
        found |= {"sum": first.sum, "sum_squares": first.sum_squares}
    if "extremes" in statistics:
        found |= _extremes(pairs, first)
    if linear:
        found |= {"lse": first.lse, "softmax_mean": first.d_scale}
    if "softplus" in statistics:
        second = pairs.statistics(select, transform=SOFTPLUS, scale=by, offset=shift, lower=low, upper=high)
        found |= {"softplus_sum": second.lse}
    return PairStatistics(**found)


def _extremes(pairs: Pairs, found: PairRowStatistics) -> dict[str, torch.Tensor]:
    low, high = found.min, found.max
    if torch.is_grad_enabled() and any(v.requires_grad for v in (pairs.x, pairs.keys)):
        low, high = pairs.values_at(found.argmin, torch.inf), pairs.values_at(found.argmax, -torch.inf)
    return {"min": low, "argmin": found.argmin, "max": high, "argmax": found.argmax}
