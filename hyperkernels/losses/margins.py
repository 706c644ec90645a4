"""Losses of hinges: contrastive, triplet, margin and tuplet margin.

A function `<name>_of` takes the pairs and thresholds in the units of the similarity.
"""

from __future__ import annotations

import math

import torch

from .. import _check
from ..kernels.pair_mining.ordered import row_sums, take
from ..pairs.pairs import LINEAR, SOFTPLUS
from ..pairs.positives import hardest_below, rising
from ..pairs.source import LocalPairSource
from .common import DISTANCES, MEANS, REDUCTIONS, pairs_of, reduce, softplus, thresholds

MINING = ("all", "batch_hard", "semi_hard")


def contrastive(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    pos_margin: float | None = None,
    neg_margin: float | None = None,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
    mean_over: str = "nonzero",
) -> torch.Tensor:
    """Positives closer than one margin, negatives farther than another.

    With distances d the sums of [d - pos_margin]+ over the positive and of [neg_margin - d]+ over the negative pairs,
    with similarities s those of [pos_margin - s]+ and [s - neg_margin]+; each divided by its own count. Hadsell et al.,
    2006; ``ContrastiveLoss`` of pytorch-metric-learning. Cosine with margins 1 and 0.5, summed and divided by N, is the
    loss of XBM (arXiv 1912.06798) but for a constant.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        ref, ref_labels, ids, ref_ids: as in ``hk.pair_statistics``.
        pos_margin, neg_margin: by default 0 and 1 for distances, 1 and 0 for similarities.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".
        normalize: distances are those of the unit vectors.
        reduction: "mean"; "sum" over the pairs; or "none": the sum over the pairs of each row, [N].
        mean_over: "nonzero": each part is divided by the number of its pairs with a loss above 0; "all": by the number
            of its pairs, which takes one more pass over the negatives.

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    _check.choice("mean_over", mean_over, MEANS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    near, far = (0.0, 1.0) if similarity in DISTANCES else (1.0, 0.0)
    near, far = thresholds(
        similarity, near if pos_margin is None else pos_margin, far if neg_margin is None else neg_margin
    )
    return contrastive_of(pairs, near, far, reduction, mean_over)


def contrastive_of(
    pairs: LocalPairSource, near: float, far: float, reduction: str = "mean", mean_over: str = "nonzero"
) -> torch.Tensor:
    """Hinges of the positives below `near` and of the negatives above `far`."""
    positive = pairs.statistics("positive", moments=True, upper=near)
    negative = pairs.statistics("negative", moments=True, lower=far)
    dtype = positive.sum.dtype  # counts times a number would be float32
    pull = near * positive.count.to(dtype) - positive.sum
    push = negative.sum - far * negative.count.to(dtype)
    if reduction != "mean":
        return reduce(pull + push, reduction, 0)
    counts = positive.count, negative.count
    if mean_over == "all":
        counts = pairs.statistics("positive").count, pairs.statistics("negative").count
    return reduce(pull, "mean", counts[0].sum()) + reduce(push, "mean", counts[1].sum())


@_check.of_data
def triplet(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 0.05,
    mining: str = "all",
    soft: bool = False,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
    mean_over: str = "nonzero",
) -> torch.Tensor:
    """Every row closer to its positives than to its negatives, by a margin.

    A triplet (i, p, n) of a row, a positive and a negative has the loss [v]+, or log(1 + exp(v)) where ``soft``, of the
    violation v = d_ip - d_in + margin with distances, s_in - s_ip + margin with similarities. FaceNet, Schroff et al.,
    2015 (arXiv 1503.03832); Hermans et al., 2017 (arXiv 1703.07737); ``TripletMarginLoss`` of pytorch-metric-learning.
    Triplets are never listed; only the positive pairs are, unless ``mining="batch_hard"``.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize: as in ``hk.losses.contrastive``.
        margin: by which a negative must be farther than a positive, in the units of the distance or the similarity.
        mining: "all" triplets (where ``soft``, in as many passes over the negatives as the largest number of
            positives); "batch_hard": of every row the least similar positive and the most similar negative;
            "semi_hard": of every positive pair the most similar of the negatives that are less similar than the
            positive, or where there is none the least similar negative.
        soft: log(1 + exp(v)) in place of the hinge.
        reduction: "mean"; "sum" over the triplets; or "none": the sum over the triplets of each row, [N].
        mean_over: the mean is over the triplets with a loss above 0 ("nonzero"; all, where ``soft``), or over "all".

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    margin = _check.number("margin", margin)
    _check.choice("mining", mining, MINING)
    _check.choice("reduction", reduction, REDUCTIONS)
    _check.choice("mean_over", mean_over, MEANS)
    _check.boolean("soft", soft)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    return triplet_of(pairs, margin, mining, soft, reduction, mean_over)


def triplet_of(
    pairs: LocalPairSource,
    margin: float,
    mining: str = "all",
    soft: bool = False,
    reduction: str = "mean",
    mean_over: str = "nonzero",
) -> torch.Tensor:
    if mining == "all":
        rows, violating, counted = (_all_soft if soft else _all_hinge)(pairs, margin)
    else:
        violation, exists, offsets = (_batch_hard if mining == "batch_hard" else _semi_hard)(pairs)
        violation = violation + margin
        loss = torch.where(exists, softplus(violation) if soft else violation.relu(), 0)
        violating, counted = ((loss > 0) | loss.isnan()).sum(), exists.sum()
        rows = loss if offsets is None else row_sums(loss, offsets)
    return reduce(rows, reduction, counted if soft or mean_over == "all" else violating)


def _all_hinge(pairs: LocalPairSource, margin: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of every row, the number of violating triplets and that of all.

    A negative violates with the positives that it is above, less the margin: as many as the number of its bin.
    """
    found = pairs.listed("positive")
    order = rising(found, found.similarities)
    positives, row = found.similarities[order], found.rows[order]
    count, total, _, _ = pairs.binned("negative", positives - margin, found.offsets)
    numbers = torch.arange(pairs.n + 1, device=row.device)
    starts = found.offsets + numbers  # of the bins of every row
    bin_row = torch.repeat_interleave(starts.diff(), output_size=count.shape[0])
    number = torch.arange(count.shape[0], device=row.device) - starts[bin_row]
    until = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    above = until[starts[row + 1]] - until[torch.arange(row.shape[0], device=row.device) + row + 1]
    value = pairs.values(row, found.columns[order])
    # A NaN may be in any bin: also where it counts zero times it is the row's, if that has a positive.
    push = torch.where(found.offsets.diff()[bin_row] > 0, number * total, 0)
    rows = row_sums(push, starts) - row_sums(above * (value - margin), found.offsets)
    negatives = until[starts[1:]] - until[starts[:-1]]
    return rows, above.sum(), (found.offsets.diff() * negatives).sum()


def _all_soft(pairs: LocalPairSource, margin: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_all_hinge`; one pass over the negatives for the first positive of every row, one for the second, ..."""
    found = pairs.listed("positive")
    value = pairs.values(found.rows, found.columns)
    positives = found.offsets.diff()
    rows, triplets = row_sums(0 * value, found.offsets), positives.new_zeros(())
    for k in range(int(positives.max()) if len(positives) else 0):
        has = positives > k
        at = torch.where(has, found.offsets[:-1] + k, 0)
        negative = pairs.statistics("negative", transform=SOFTPLUS, scale=1.0, offset=margin - value[at])
        rows = rows + torch.where(has, negative.lse, 0)
        triplets = triplets + torch.where(has, negative.count, 0).sum()
    return rows, triplets, triplets


def _batch_hard(pairs: LocalPairSource) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Violations without the margin, [N], which of them exist, and nothing to sum over."""
    positive = pairs.statistics("positive", extremes=True).argmin
    negative = pairs.statistics("negative", extremes=True).argmax
    return pairs.values_at(negative) - pairs.values_at(positive), (positive >= 0) & (negative >= 0), None


def _semi_hard(pairs: LocalPairSource) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_batch_hard`, [K] of the positive pairs, and the offsets of the rows' pairs."""
    found = pairs.listed("positive")
    negative, least = hardest_below(pairs, found), pairs.statistics("negative", extremes=True).argmin
    negative = torch.where(negative < 0, least[found.rows], negative)
    violation = pairs.values(found.rows, negative.clamp_min(0)) - pairs.values(found.rows, found.columns)
    return violation, negative >= 0, found.offsets


def margin(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 0.2,
    beta: torch.Tensor | float = 1.2,
    nu: float = 0.0,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """Positives closer than beta - margin, negatives farther than beta + margin, over all triplets.

    A triplet (i, p, n) has the loss [d_ip - beta + margin]+ + [beta - d_in + margin]+ (with similarities the signs
    change); the mean divides the sum over all triplets by the number of hinges above 0, and adds the penalty: nu *
    beta, or for a beta per class, before the division, that of the row for every triplet. Wu et al., 2017
    (arXiv 1706.07567); ``MarginLoss`` of pytorch-metric-learning. Triplets are counted, never listed.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize: as in ``hk.losses.contrastive``.
        margin: at least 0.
        beta: a number, a tensor of one element, or one number per class [C], where labels are in [0, C).
            Differentiable.
        nu: weight of the penalty.
        reduction: "mean"; "sum" over the triplets; or "none": the sum over the triplets of each row, [N], where nu must
            be 0 unless beta is one per class.

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a label out of range where beta is one per class, on the CPU.
    """
    margin, nu = _check.number("margin", margin, minimum=0.0), _check.number("nu", nu)
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, similarity, normalize)
    per_class = isinstance(beta, torch.Tensor) and beta.numel() != 1
    if isinstance(beta, torch.Tensor):
        _check.tensor("beta", beta, _check.FLOAT_DTYPES)
        _check.same_device("beta", beta, "x", pairs.x)
        if beta.dim() > 1:
            raise ValueError(f"beta must be a number, one element or one number per class; got {tuple(beta.shape)}")
        beta = take(beta, labels) if per_class else beta.reshape(())
    else:
        beta = _check.number("beta", beta)
    if nu and reduction == "none" and not per_class:
        raise ValueError('nu must be 0 for reduction="none" where beta is one number: its penalty is no row\'s')
    of_row = pairs.row_numbers("beta", beta)
    assert of_row is not None
    return margin_of(pairs, of_row, margin, -1 if similarity in DISTANCES else 1, nu, per_class, reduction)


def margin_of(
    pairs: LocalPairSource,
    beta: torch.Tensor,  # [N], as the user has it
    margin: float,
    sign: int,  # of beta in the similarity
    nu: float = 0.0,
    per_class: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    near, far = sign * beta + margin, sign * beta - margin
    positive = pairs.statistics("positive", moments=True, upper=near)
    pull = positive.count * near - positive.sum
    positives = pairs.statistics("positive").count
    # One edge a row: the negatives above it, and by both bins how many there are at all.
    edges = torch.arange(pairs.n + 1, device=beta.device)
    count, total, _, _ = pairs.binned("negative", far.detach().contiguous(), edges)
    count, total = count.view(-1, 2), total.view(-1, 2)
    push = total[:, 1] - count[:, 1] * far + 0 * total[:, 0]  # a NaN may be in any bin
    negatives = count.sum(1)
    triplets, hinges = positives * negatives, positive.count * negatives + positives * count[:, 1]
    rows = torch.where(triplets > 0, negatives * pull + positives * push, 0)
    if nu and per_class:
        rows = rows + nu * beta * triplets
    loss = reduce(rows, reduction, hinges.sum())
    if reduction == "mean" and per_class:
        loss = torch.where(hinges.sum() > 0, loss, 0)
    if nu and not per_class and pairs.n:
        loss = loss + torch.where(triplets.sum() > 0, nu * beta[0], 0)
    return loss


@_check.of_data
def tuplet_margin(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    margin: float = 5.73,
    scale: float = 64.0,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """A softmax of every positive pair against the negatives of its row, with slack in the angle.

    A positive pair (i, p) with the angle theta has the loss log(1 + sum over the negatives n of
    exp(scale * (cos_in - cos(theta - margin)))); the mean is over the positive pairs. Yu and Tao, 2019 (ICCV);
    ``TupletMarginLoss`` of pytorch-metric-learning. The positive pairs are listed.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids: as in ``hk.losses.contrastive``.
        margin: the slack in degrees.
        scale: above 0.
        reduction: "mean"; "sum" over the positive pairs; or "none": the sum over the pairs of each row, [N].

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    margin, scale = _check.number("margin", margin), _check.number("scale", scale, above=0.0)
    _check.choice("reduction", reduction, REDUCTIONS)
    pairs = pairs_of(x, labels, ref, ref_labels, ids, ref_ids, "cosine")
    return tuplet_margin_of(pairs, margin, scale, reduction)


def tuplet_margin_of(pairs: LocalPairSource, margin: float, scale: float, reduction: str = "mean") -> torch.Tensor:
    found = pairs.listed("positive")
    cos = pairs.values(found.rows, found.columns)
    square = 1 - cos.square()
    apart = square > 0  # rounding may leave cosines beyond 1, where the angle is none
    sine = torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)
    slack = math.radians(margin)
    eased = cos * math.cos(slack) + sine * math.sin(slack)
    negatives = pairs.statistics("negative", transform=LINEAR, scale=scale).lse
    loss = softplus(take(negatives, found.rows) - scale * eased)
    return reduce(row_sums(loss, found.offsets), reduction, loss.shape[0])
