"""Miners of triplets: the hardest, the semi-hard, and all within a margin."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import _check
from ..kernels.pair_mining import selections
from ..pairs.pairs import Pairs
from ..pairs.positives import below, hardest_below, own_bin, rising
from ..pairs.source import Listed
from .common import Triplets, labelled_pairs, parts, problem_of_rows

KINDS = ("all", "hard", "semihard", "easy")


class TripletCounts(NamedTuple):
    """For every positive pair (a, p), [K] each, the number of negatives that make a triplet with it."""

    a: torch.Tensor
    p: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]


@_check.of_data
@torch.no_grad()
def batch_hard(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> Triplets:
    """The least similar positive and the most similar negative of every anchor that has both (arXiv 1703.07737).

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64, any values.
        ref, ref_labels: [M, D] of the dtype of x, and [M]; None: x itself, where no row is paired with itself.
        ids, ref_ids: int64 numbers of the samples; rows of equal ids are not paired.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        ignore_label: rows and columns of this label have no pairs.
        multi_hot: labels are sets of up to 64 bits; a pair is positive if they share a bit.

    Returns:
        (a, p, n), [K] int64 each, ordered by a; the lowest index where several are equally similar.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    pairs = labelled_pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot,
    )  # fmt: skip
    p = pairs.statistics("positive", extremes=True).argmin
    n = pairs.statistics("negative", extremes=True).argmax
    a = ((p >= 0) & (n >= 0)).nonzero()[:, 0]
    return a, p[a], n[a]


@_check.of_data
@torch.no_grad()
def semi_hard(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    fallback: str = "none",
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> Triplets:
    """For every positive pair the hardest negative that is less similar than the positive (arXiv 1503.03832).

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, ignore_label, multi_hot: as in ``batch_hard``.
        fallback: what is returned for a positive pair if every negative is at least as similar: "none" leaves it out,
            "easiest" takes the anchor's least similar negative, as TensorFlow Addons and sentence-transformers do.

    Returns:
        (a, p, n), [K] int64 each, ordered by (a, p): one triplet per positive pair.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("fallback", fallback, ("none", "easiest"))
    pairs = labelled_pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot,
    )  # fmt: skip
    found = pairs.listed("positive")
    n = hardest_below(pairs, found)
    if fallback == "easiest":
        easiest = pairs.statistics("negative", extremes=True).argmin
        n = torch.where(n < 0, easiest[found.rows], n)
    keep = n >= 0
    return found.rows[keep], found.columns[keep], n[keep]


@_check.of_data
@torch.no_grad()
def triplet_margin(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 0.2,
    type_of_triplets: str = "all",
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> Triplets:
    """All triplets of one kind, by the gap g = u_ap - u_an of the similarities (for distances d_an - d_ap).

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, ignore_label, multi_hot: as in ``batch_hard``.
        margin: any number.
        type_of_triplets: "all", g <= margin; "hard", g <= margin and g <= 0; "semihard", 0 < g <= margin; "easy",
            g > margin. The similarity of the negative is compared with u_ap - margin, rounded once.

    Returns:
        (a, p, n), [K] int64 each, ordered by (a, p, n). Memory is proportional to K, whatever the number of triplets of
        other kinds. If K is too large, use ``triplet_counts``.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    pairs, found, margin = _positives(
        type_of_triplets, margin, x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity,
        ignore_label=ignore_label, multi_hot=multi_hot,
    )  # fmt: skip
    rows, columns = found.rows, found.columns
    lower, upper = _window(type_of_triplets, found.similarities, margin)
    # Pairs without any negative within the bounds are left out before the others are listed.
    extremes = pairs.statistics("negative", extremes=True)
    some = extremes.count[rows] > 0
    if lower is not None:
        some &= ~(extremes.max[rows] <= lower)
    if upper is not None:
        some &= ~(extremes.min[rows] >= upper)
    rows, columns = rows[some], columns[some]
    lower, upper = (v if v is None else v[some] for v in (lower, upper))
    lists: list[Triplets] = [(rows[:0], rows[:0], rows[:0])]
    for part in parts(len(rows), pairs):
        bounds = (v if v is None else v[part] for v in (lower, upper))
        offsets, n, _ = selections.listed(problem_of_rows(pairs, rows[part], "negative", *bounds))
        times = offsets.diff()
        a, p = (v[part].repeat_interleave(times, output_size=len(n)) for v in (rows, columns))
        lists.append((a, p, n))
    a, p, n = (torch.cat(v) for v in zip(*lists, strict=True))
    return a, p, n


@_check.of_data
@torch.no_grad()
def triplet_counts(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 0.2,
    type_of_triplets: str = "all",
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> TripletCounts:
    """The number of triplets that ``triplet_margin`` would list for every positive pair, in one or two passes over the
    pairs.

    Args:
        x, labels, ref, ref_labels, margin, type_of_triplets, ids, ref_ids, similarity, ignore_label, multi_hot: as in
            ``triplet_margin``.

    Returns:
        ``TripletCounts`` (a, p, count), [K] int64 each, ordered by (a, p); K is the number of positive pairs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    pairs, found, margin = _positives(
        type_of_triplets, margin, x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity,
        ignore_label=ignore_label, multi_hot=multi_hot,
    )  # fmt: skip
    if type_of_triplets == "hard":
        margin = min(margin, 0.0)
    count = _at_least(pairs, found, found.similarities - margin)
    if type_of_triplets == "semihard":
        count = (count - _at_least(pairs, found, found.similarities)).clamp_min(0)
    elif type_of_triplets == "easy":
        count = pairs.statistics("negative").count[found.rows] - count
    return TripletCounts(found.rows, found.columns, count)


def _positives(kind: Any, margin: Any, *batch: Any, **options: Any) -> tuple[Pairs, Listed, float]:
    """The checked pairs, the listed positive pairs, and the checked margin."""
    _check.choice("type_of_triplets", kind, KINDS)
    margin = _check.number("margin", margin)
    pairs = labelled_pairs(*batch, **options)
    return pairs, pairs.listed("positive"), margin


def _window(kind: str, positive: torch.Tensor, margin: float) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The exclusive bounds on the similarities of the negatives in triplets of that kind."""
    if kind == "easy":
        return None, positive - margin
    least = positive - (min(margin, 0.0) if kind == "hard" else margin)
    return below(least), positive if kind == "semihard" else None


def _at_least(pairs: Pairs, found: Listed, least: torch.Tensor) -> torch.Tensor:
    """For each positive pair the number of negatives of its row that are at least that similar, [K] int64."""
    order = rising(found, least)
    running = pairs.binned("negative", below(least[order]), found.offsets)[0].cumsum(0)
    last = found.offsets[1:][found.rows] + found.rows
    count = torch.empty_like(found.rows)
    count[order] = running[last] - running[own_bin(found)]
    return count
