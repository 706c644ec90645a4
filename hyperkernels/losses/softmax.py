"""Losses by labels that are a softmax over the pairs of a row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .. import _check
from ..kernels.pair_mining.ordered import take
from ..pairs.pairs import LINEAR, Pairs
from ..pairs.source import LocalPairSource, PairSource
from .common import (
    REDUCTIONS,
    Number,
    group_of,
    inverse,
    nonzero,
    normalized,
    over_ranks,
    reduce_counted,
    scalar,
    shared,
    softplus,
)
from .info_nce import cross_entropy, info_nce_of, of_logits, of_statistics

CONVENTIONS = ("pml", "supcontrast")


def supcon(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    temperature: torch.Tensor | float = 0.1,
    convention: str = "pml",
    base_temperature: float = 0.07,
    reduction: str = "mean",
    process_group: Any = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
) -> torch.Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362), the form with the mean outside the logarithm:

        loss_i = log sum over P and N of e^{s / t} - mean_P s / t,   0 for rows without a positive

    Several views of a sample are rows of one label: x = cat([view1, view2]), labels = cat([y, y]).

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity: as in ``hk.losses.contrastive``.
        temperature: above 0; a tensor of one element may be learned.
        convention: "pml" (pytorch-metric-learning): the mean over the rows whose loss is above 0, and 0 where the batch
            has no negative pair; a learned row, whose loss has rounded to 0 there, is still above 0 here.
            "supcontrast" (the authors' program): the mean over all rows, times temperature / base_temperature.
        base_temperature: of "supcontrast".
        reduction: "mean", "sum" or "none": [N].
        process_group, communication, gradient_reduction: as in ``info_nce``.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("convention", convention, CONVENTIONS)
    _check.choice("reduction", reduction, REDUCTIONS)
    base_temperature = _check.number("base_temperature", base_temperature, above=0.0)
    group = group_of(process_group, communication, gradient_reduction)
    pairs = Pairs(x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity)
    scale = inverse("temperature", shared(group, temperature), pairs.dtype)
    (pairs,) = over_ranks(group, [pairs], ids, ref_ids)
    return supcon_of(pairs, scale=scale, convention=convention, base_temperature=base_temperature, reduction=reduction)


def supcon_of(
    pairs: PairSource,
    *,
    scale: Number,
    convention: str = "pml",
    base_temperature: float = 0.07,
    reduction: str = "mean",
) -> torch.Tensor:
    (negative,), (positive,) = pairs.together(
        [
            {"select": "negative", "transform": LINEAR, "scale": scale},
            {"select": "positive", "moments": True, "transform": LINEAR, "scale": scale},
        ]
    )
    loss = cross_entropy(negative.lse, of_statistics(positive, scale, 0.0))
    if convention == "supcontrast":
        loss = loss / (scale * base_temperature)
        return reduce_counted(loss, torch.ones_like(loss, dtype=torch.bool), reduction, pairs.group)
    some = (negative.count > 0).any()
    loss = torch.where(some if pairs.group is None else pairs.group.any(some), loss, 0)
    return reduce_counted(loss, nonzero(loss), reduction, pairs.group)


@_check.of_data
def nt_xent(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    temperature: torch.Tensor | float = 0.07,
    reduction: str = "mean",
) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv 2002.05709), one term for each positive pair:

        loss_ip = -log( e^{s_ip / t} / (e^{s_ip / t} + sum_N e^{s_in / t}) )

    The positive pairs are listed (their number is read on the host); the negatives are not.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity: as in ``hk.losses.contrastive``.
        temperature: above 0; a tensor of one element may be learned.
        reduction: "mean" over the positive pairs (0 where there is none), "sum", or "none": one loss a positive pair,
            row by row.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = Pairs(x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity)
    return nt_xent_of(pairs, scale=inverse("temperature", temperature, pairs.dtype), reduction=reduction)


def nt_xent_of(pairs: LocalPairSource, *, scale: Number, reduction: str = "mean") -> torch.Tensor:
    negative = pairs.statistics("negative", transform=LINEAR, scale=scale).lse
    listed = pairs.listed("positive")
    loss = softplus(take(negative, listed.rows) - scale * pairs.values(listed.rows, listed.columns))
    return reduce_counted(loss, torch.ones_like(loss, dtype=torch.bool), reduction)


@_check.of_data
def n_pairs(
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    similarity: str = "cosine",
    temperature: torch.Tensor | float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """N-pair loss (Sohn, NeurIPS 2016): the first two rows of every label that has two are its anchor and its
    positive, and every anchor is classified among the positives, by the cross-entropy of s / temperature. The paper's
    similarity is "dot"; pytorch-metric-learning's default is "cosine".

    Args:
        x, labels, similarity: as in ``hk.losses.contrastive``.
        temperature: above 0; a tensor of one element may be learned.
        reduction: "mean" over the labels with two rows (0 where there is none), "sum", or "none": one loss for each of
            them, by rising label.

    Returns:
        float32, float64 for float64 inputs. The number of those labels is read on the host.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = Pairs(x, labels, similarity=similarity)
    if pairs.labels is None:
        raise ValueError("labels must be given")
    order = pairs.labels.argsort(stable=True)
    same = pairs.labels[order].diff() == 0
    first = same & ~F.pad(same, (1, 0))[:-1]
    scale = inverse("temperature", temperature, pairs.dtype)
    return n_pairs_of(pairs, order[:-1][first], order[1:][first], scale=scale, reduction=reduction)


def n_pairs_of(
    pairs: Pairs, anchors: torch.Tensor, positives: torch.Tensor, *, scale: Number, reduction: str = "mean"
) -> torch.Tensor:
    number = torch.arange(anchors.shape[0], device=anchors.device)
    chosen = Pairs(pairs.x[anchors], number, pairs.keys[positives], number, similarity=pairs.similarity)
    return info_nce_of(chosen, scale=scale, paired=True, reduction=reduction)


def nca(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "squared_euclidean",
    normalize: bool = True,
    softmax_scale: torch.Tensor | float = 1.0,
    reduction: str = "mean",
    process_group: Any = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
) -> torch.Tensor:
    """Neighbourhood components analysis (Goldberger et al., NeurIPS 2004): -log of the probability that a neighbour
    drawn by the softmax is of the row's label,

        loss_i = log sum over P and N of e^{softmax_scale * s} - log sum_P e^{softmax_scale * s}

    where s is by default minus the squared distance.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity: as in ``hk.losses.contrastive``.
        normalize: unit rows first, whatever the similarity.
        softmax_scale: a number, or a tensor of one element, which may be learned.
        reduction: "mean" over the rows with a positive, "sum", or "none": [N], 0 for rows without a positive.
        process_group, communication, gradient_reduction: as in ``info_nce``.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    group = group_of(process_group, communication, gradient_reduction)
    if _check.boolean("normalize", normalize):
        x, ref = normalized("x", x), None if ref is None else normalized("ref", ref)
    pairs = Pairs(x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity)
    scale = scalar("softmax_scale", shared(group, softmax_scale), pairs.dtype)
    (pairs,) = over_ranks(group, [pairs], ids, ref_ids)
    return nca_of(pairs, scale=scale, reduction=reduction)


def nca_of(pairs: PairSource, *, scale: Number, reduction: str = "mean") -> torch.Tensor:
    (negative,), (positive,) = pairs.together(
        [{"select": select, "transform": LINEAR, "scale": scale} for select in ("negative", "positive")]
    )
    some = positive.count > 0
    logit = torch.where(some, positive.lse, 0)
    loss = cross_entropy(negative.lse, of_logits(logit, some))
    return reduce_counted(loss, some, reduction, pairs.group)
