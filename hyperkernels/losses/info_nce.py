"""InfoNCE: the softmax of a row's similarities at its positives.

With LN and LP the log-sum-exp over the negatives and over the positives, lse over both is LP + softplus(LN - LP). The
losses are written with the softplus: where a row is learned, lse minus the positive has cancelled, softplus has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import _check
from ..pairs.pairs import LINEAR, Pairs
from ..pairs.source import LocalPairSource, PairSource
from .common import (
    REDUCTIONS,
    Number,
    embeddings,
    group_of,
    inverse,
    numbered,
    over_ranks,
    own_columns,
    reduce_counted,
    shared,
    softplus,
)

SAME_LABEL = ("positive", "ignore")


class Positives(NamedTuple):
    """Of the positives of every row, [N] each; 0 where there is none."""

    some: torch.Tensor
    lse: torch.Tensor
    mean: torch.Tensor


def of_logits(logits: torch.Tensor, some: torch.Tensor | None = None) -> Positives:
    """One positive a row."""
    return Positives(torch.ones_like(logits, dtype=torch.bool) if some is None else some, logits, logits)


def of_statistics(found: Any, scale: Number, margin: float) -> Positives:
    some = found.count > 0
    mean = scale * (found.sum / found.count.clamp_min(1) - margin)
    return Positives(some, torch.where(some, found.lse, 0) - scale * margin, mean)


def cross_entropy(negative: torch.Tensor, positive: Positives) -> torch.Tensor:
    """lse over all pairs of the row - mean of the positives, 0 for rows without a positive."""
    over = softplus(torch.where(positive.some, negative, -torch.inf) - positive.lse)
    return torch.where(positive.some, over + (positive.lse - positive.mean), 0)


def info_nce(
    x: torch.Tensor,
    labels: torch.Tensor | None = None,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    temperature: torch.Tensor | float = 0.07,
    margin: float = 0.0,
    same_label: str = "positive",
    positive: torch.Tensor | None = None,
    positive_in_denominator: bool = True,
    symmetric: bool = False,
    queue: torch.Tensor | None = None,
    queue_labels: torch.Tensor | None = None,
    negatives: torch.Tensor | None = None,
    lse_coefficient: float = 1.0,
    reduction: str = "mean",
    process_group: Any = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
) -> torch.Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748): -log of the softmax at the positive, of s_ij / temperature.

        loss_i = lse_coefficient * log(sum_P e^{(s - margin) / t} + sum_N e^{s / t}) - mean_P (s - margin) / t

    Without labels the positive of row i is row i of ref, and all others are negatives (CLIP; with M > N the further
    rows of ref are hard negatives).

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64; the positives are the pairs of equal labels. [N, K]: row i of ref is the positive, and a
            negative weighs as many times as there are columns in which the labels differ (MEOW).
        ref: [M, D] of the dtype of x; None: x itself, where no row is a pair with itself.
        ref_labels: [M], or [M, K]; where ref and labels are given.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids are neither positive nor negative. The positive
            in row i of ref counts whatever its id.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean" (minus the distance).
        temperature: above 0; a tensor of one element may be learned.
        margin: subtracted from the similarity of the positives, in the numerator and the denominator.
        same_label: "ignore": row i of ref is the one positive, the other pairs of equal labels do not count.
        positive: [N] similarities that take the place of the positives' (m2-mix, arXiv 2203.03897); differentiable.
            Pairs of equal labels, or without labels (i, i), do not count.
        positive_in_denominator: False leaves the positives out of the log-sum-exp (arXiv 2110.06848).
        symmetric: the mean of the losses of the rows of x and of the rows of ref, in one pass; M = N.
        queue, queue_labels: [Q, D] further negatives of the rows (MoCo), with labels [Q] or without; those of the
            row's label do not count. Not with symmetric, nor with labels [N, K].
        negatives: [N, K] int64: these rows of ref are the negatives of a row, and no others; -1 is none (those drawn
            from a memory bank, InterCLR, arXiv 2008.11702). Only their similarities are computed. Without labels, ids,
            symmetric, queue and process_group.
        lse_coefficient: 1 - lambda of CMA (arXiv 2503.18817).
        reduction: "mean" over the rows with a positive, "sum", or "none": [N], 0 for rows without a positive.
        process_group: the ranks whose batches make one, or None: this process alone. Every rank gives its own rows, as
            many as it has; the loss, the same number on all of them, is that of the ranks' arguments put together, and
            labels and ids are to be understood among all ranks. The positive in row i of ref is on the same rank, and
            queue is the same on all ranks. What else is learned (temperature, queue) gets the whole of its gradient on
            every rank. With reduction "none": the rows of this rank; their gradients are those of the sum over ranks
            of what each makes of its own.
        communication: "gather": every rank has the rows of ref (None: of x) of all ranks in memory. "ring": they travel
            from rank to rank, each rank having a few ranks' of them at a time, in its backward once more.
        gradient_reduction: how the wrapper of the backbone reduces its gradients over ranks: "mean", as
            DistributedDataParallel and ``fully_shard`` do, or "sum". The loss is one of the global batch already, so
            for "mean" the gradients of x, ref and positive are multiplied by the number of ranks.

    Returns:
        float32, float64 for float64 inputs. A row without negatives has the loss 0 where the positive is not in the
        denominator.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("same_label", same_label, SAME_LABEL)
    _check.choice("reduction", reduction, REDUCTIONS)
    _check.boolean("positive_in_denominator", positive_in_denominator)
    _check.boolean("symmetric", symmetric)
    group = group_of(process_group, communication, gradient_reduction)
    columns = labels.shape[1] if isinstance(labels, torch.Tensor) and labels.dim() == 2 else None
    if columns == 0:
        raise ValueError(f"labels must be [N] or [N, K] with K at least 1; got shape {tuple(labels.shape)}")  # type: ignore[union-attr]
    unlabelled = labels is None
    paired = unlabelled or columns is not None or same_label == "ignore" or positive is not None
    if labels is None:
        if ref is None and positive is None:
            raise ValueError("ref must be given where labels is None")
        if ref_labels is not None or queue_labels is not None:
            raise ValueError("labels must be given where ref_labels or queue_labels are")
        labels = numbered(x, "x")
        ref_labels = None if ref is None else numbered(ref, "ref")

    def column(v: torch.Tensor | None, k: int) -> torch.Tensor | None:
        return v if columns is None or v is None else v[:, k]

    if columns is not None and isinstance(ref_labels, torch.Tensor) and ref_labels.shape[1:] != labels.shape[1:]:
        raise ValueError(f"ref_labels must be [M, {columns}], as labels; got shape {tuple(ref_labels.shape)}")
    pairs = Pairs(
        x, column(labels, 0), ref, column(ref_labels, 0), ids=ids, ref_ids=ref_ids, similarity=similarity
    )  # fmt: skip
    if positive is not None:
        _check.tensor("positive", positive, _check.FLOAT_DTYPES, dim=1)
        _check.same_device("positive", positive, "x", x)
        if positive.shape[0] != pairs.n:
            raise ValueError(f"positive must be [N] with N = {pairs.n}; got shape {tuple(positive.shape)}")
    elif paired and (ref is None or pairs.m < pairs.n):
        raise ValueError(f"ref must have a row for each of the {pairs.n} of x, the positives")
    if symmetric and (ref is None or pairs.m != pairs.n):
        raise ValueError("ref must have as many rows as x where symmetric")
    if queue is not None and (symmetric or columns is not None):
        raise ValueError("queue must be None where symmetric is set or labels are [N, K]")
    if queue is None and queue_labels is not None:
        raise ValueError("queue must be given where queue_labels are")
    if negatives is not None:
        _check_negatives(
            negatives, pairs, labels=None if unlabelled else labels, ids=ids, ref_ids=ref_ids,
            symmetric=symmetric or None, queue=queue, process_group=process_group,
        )  # fmt: skip
    more = [
        Pairs(
            pairs.x, column(labels, k), pairs.ref, column(ref_labels, k), ids=ids, ref_ids=ref_ids,
            similarity=pairs.similarity,
        )
        for k in range(1, columns or 1)
    ]  # fmt: skip
    scale = inverse("temperature", shared(group, temperature), pairs.dtype)
    margin, lse_coefficient = _check.number("margin", margin), _check.number("lse_coefficient", lse_coefficient)
    queued = None if queue is None else _queue(pairs, shared(group, queue), queue_labels, similarity)
    pairs, *more = over_ranks(group, [pairs, *more], ids, ref_ids, unlabelled)
    return info_nce_of(
        pairs,
        scale=scale,
        margin=margin,
        paired=paired,
        positive=positive,
        positive_in_denominator=positive_in_denominator,
        symmetric=symmetric,
        more=more,
        queue=queued,
        negatives=negatives,
        lse_coefficient=lse_coefficient,
        reduction=reduction,
    )


def _queue(pairs: Pairs, queue: Any, queue_labels: Any, similarity: str) -> Pairs:
    rows = _check.tensor("queue", embeddings("queue", queue, similarity), (pairs.x.dtype,))
    _check.same_device("queue", rows, "x", pairs.x)
    if rows.shape[1] != pairs.x.shape[1]:
        raise ValueError(f"queue must have the embedding size of x ({pairs.x.shape[1]}); got {tuple(rows.shape)}")
    labels = None if queue_labels is None else pairs.labels
    return Pairs(pairs.x, labels, rows, queue_labels, similarity=pairs.similarity)


def _check_negatives(negatives: Any, pairs: Pairs, **others: Any) -> None:
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name} must be left out where negatives are given")
    _check.tensor("negatives", negatives, (torch.int64,), dim=2)
    _check.same_device("negatives", negatives, "x", pairs.x)
    if negatives.shape[0] != pairs.n:
        raise ValueError(f"negatives must be [N, K] with N = {pairs.n}; got shape {tuple(negatives.shape)}")


def info_nce_of(
    pairs: PairSource,
    *,
    scale: Number,
    margin: float = 0.0,
    paired: bool = False,
    positive: torch.Tensor | None = None,
    positive_in_denominator: bool = True,
    symmetric: bool = False,
    more: Sequence[PairSource] = (),
    queue: LocalPairSource | None = None,
    negatives: torch.Tensor | None = None,
    lse_coefficient: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    def asked(select: str, moments: bool = False) -> dict[str, Any]:
        return {"select": select, "moments": moments, "transform": LINEAR, "scale": scale}

    wanted = [asked("negative"), *([] if paired else [asked("positive", moments=True)])]
    of_positives: list[Any] = []
    if negatives is None:
        found, *of_positives = pairs.together(wanted, symmetric)  # of rows, with symmetric of columns
        negative = [side.lse for side in found]
    else:
        negative = [_lse_of_listed(pairs, negatives, scale)]
    for other in more:
        (found,) = other.together(wanted[:1], symmetric)
        negative = [_logaddexp(a, side.lse) for a, side in zip(negative, found, strict=True)]
    if queue is not None:
        in_queue = queue.statistics(**asked("all" if queue.labels is None else "negative")).lse
        negative = [_logaddexp(negative[0], in_queue)]

    if paired:
        own = pairs.values_at(own_columns(pairs)) if positive is None else positive.to(negative[0].dtype)
        positives = [of_logits(scale * (own - margin))] * len(negative)
    else:
        positives = [of_statistics(side, scale, margin) for side in of_positives[0]]

    sides = []
    for lse, of_side in zip(negative, positives, strict=True):
        if positive_in_denominator:
            loss = cross_entropy(lse, of_side)
            if lse_coefficient != 1:
                loss = loss + (lse_coefficient - 1) * (loss + of_side.mean)
        else:
            some = lse != -torch.inf
            loss = torch.where(some, lse_coefficient * torch.where(some, lse, 0) - of_side.mean, 0)
        sides.append(reduce_counted(loss, of_side.some, reduction, pairs.group))
    return sides[0] if len(sides) == 1 else (sides[0] + sides[1]) / 2


def _lse_of_listed(pairs: PairSource, columns: torch.Tensor, scale: Number) -> torch.Tensor:
    """Over the columns [N, K] of every row, -1 being none; where all are none -inf, with a gradient of 0."""
    columns = columns if pairs.m else columns[:, :0]
    none = columns == -1
    rows = own_columns(pairs)[:, None].expand_as(columns)
    logits = scale * pairs.values(rows.flatten(), torch.where(none, 0, columns).flatten()).view(columns.shape)
    logits = torch.where(none, -torch.inf, logits)
    some = ~none.all(1)
    return torch.where(some, torch.where(some[:, None], logits, 0).logsumexp(1), -torch.inf)


def _logaddexp(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where both are -inf, the gradient of torch.logaddexp is NaN."""
    none = (a == -torch.inf) & (b == -torch.inf)
    return torch.where(none, -torch.inf, torch.logaddexp(torch.where(none, 0, a), torch.where(none, 0, b)))
