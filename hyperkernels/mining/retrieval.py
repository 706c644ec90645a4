"""Miners that give every query a fixed number of negatives, each by one top-k."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .. import _check
from ..pairs.pairs import Pairs
from ..pairs.positives import below
from ..pairs.source import Bound
from .common import above, labelled_pairs, random_words, seed_of


class HardNegatives(NamedTuple):
    """The negatives of every query; see ``mine_hard_negatives``."""

    indices: torch.Tensor  # [Q, num_negatives] int64, -1 where there are fewer
    scores: torch.Tensor  # [Q, num_negatives], -inf there
    positive_scores: torch.Tensor  # [Q], the lowest of its positives; +inf for a query without


@torch.no_grad()
def topk_negatives(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    k: int,
    lower: Bound = None,
    upper: Bound = None,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most similar negatives of every row with a similarity between two bounds; filters apply before the top-k is
    taken.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, similarity, ignore_label, multi_hot: as in ``batch_hard``.
        k: how many, at least 0.
        lower, upper: numbers, scalars or [N]; only pairs with lower < similarity < upper count. For distances the
            similarity is minus the distance.

    Returns:
        (values [N, k], descending; indices [N, k] int64, the lowest first where values are equal). -inf and -1 where a
        row has fewer.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.integer("k", k, 0)
    pairs = labelled_pairs(
        x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity, ignore_label=ignore_label,
        multi_hot=multi_hot,
    )  # fmt: skip
    return _top_k(pairs, "negative", k, lower, upper)


@_check.of_data
@torch.no_grad()
def mine_hard_negatives(
    queries: torch.Tensor,
    documents: torch.Tensor | None,
    positives: torch.Tensor | None = None,
    *,
    labels: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: str = "top",
    seed: int | None = None,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
) -> HardNegatives:
    """Hard negatives for retrieval, with the argument names and rules of
    ``sentence_transformers.util.mine_hard_negatives``.

    There the filters remove entries of a top-k; here they apply before it, so that a query gets fewer negatives only if
    the documents have no more. A document is a candidate if it is not a positive of the query and its score passes
    every given filter. Positives that are given as indices are removed from the best k + P candidates, where P is the
    largest number of positives of a query: at most P of these are positives, so the best k others are all there.

    Args:
        queries: [Q, D]; float64, float32, bfloat16 or float16.
        documents: [M, D] of the dtype of queries; None: queries themselves, none of which is its own candidate.
        positives: [Q] or [Q, P] int64, indices of the query's documents, padded with -1.
        labels, ref_labels: [Q] and [M] int64, instead of positives: the positives are then the documents of the same
            label.
        range_min: the number of best candidates that are skipped.
        range_max: negatives are taken from this number of best candidates, the skipped ones included. None: as many as
            "top" needs; for "random", as in sentence-transformers, range_min + 10 * num_negatives + P with a max_score
            or a margin, range_min + num_negatives + P otherwise.
        max_score, min_score: candidates have min_score <= score <= max_score. For distances the score is minus the
            distance.
        absolute_margin: candidates have score <= p - absolute_margin, p the lowest score of the query's positives.
        relative_margin: candidates have score <= p - |p| * relative_margin.
        num_negatives: the number for each query, at least 1.
        sampling_strategy: "top", the best candidates; "random", drawn uniformly and without replacement from
            range_min .. range_max.
        seed: for "random"; the draw is a function of the seed, the query's index and the document's. None: a seed from
            torch's default generator.
        ids, ref_ids: int64 numbers of the samples; a document with the query's id is not a candidate.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean".

    Returns:
        ``HardNegatives``: indices [Q, num_negatives] by descending score, scores, and positive_scores [Q].

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    if (positives is None) == (labels is None):
        raise ValueError("positives or labels must be given, and not both")
    _check.choice("sampling_strategy", sampling_strategy, ("top", "random"))
    _check.integer("num_negatives", num_negatives, 1)
    _check.integer("range_min", range_min, 0)
    if range_max is not None and _check.integer("range_max", range_max) < range_min + num_negatives:
        raise ValueError(
            f"range_max must be at least range_min + num_negatives ({range_min + num_negatives}); got {range_max}"
        )
    limits = (("max_score", max_score), ("min_score", min_score))
    margins = (("absolute_margin", absolute_margin), ("relative_margin", relative_margin))
    for name, value in (*limits, *margins):
        if value is not None:
            _check.number(name, value)
    if seed is not None:
        seed_of(seed)
    _check_embeddings("queries", queries, "documents", documents)
    if positives is None:
        pairs = labelled_pairs(queries, labels, documents, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity)
        own = None
        found = pairs.statistics("positive", extremes=True)
        positive_scores = found.min
    else:
        if ref_labels is not None:
            raise ValueError("ref_labels must be None where positives are given")
        pairs = Pairs(queries, None, documents, ids=ids, ref_ids=ref_ids, similarity=similarity)
        own = _checked_positives(positives, pairs)
        positive_scores = _lowest_score(pairs, own)

    filtered = any(v is not None for v in (max_score, absolute_margin, relative_margin))
    if range_max is None:
        range_max = range_min + num_negatives
        if sampling_strategy == "random":
            most = own.shape[1] if own is not None else int(found.count.max()) if pairs.n else 0
            range_max = range_min + num_negatives * (10 if filtered else 1) + most
    depth = range_max if sampling_strategy == "random" else range_min + num_negatives

    lower = None if min_score is None else below(_full(pairs, "min_score", min_score))
    upper = above(_cap(pairs, positive_scores, max_score, absolute_margin, relative_margin)) if filtered else None
    if own is None:
        scores, indices = _top_k(pairs, "negative", depth, lower, upper)
    else:
        scores, indices = _top_k(pairs, "all", depth + own.shape[1], lower, upper)
        drop = torch.zeros_like(indices, dtype=torch.bool)
        for p in range(own.shape[1]):
            drop |= indices == own[:, p : p + 1]
        scores, indices = (v[:, :depth] for v in _without(scores, indices, drop))
    scores, indices = scores[:, range_min:], indices[:, range_min:]
    if sampling_strategy == "random":
        scores, indices = _draw(scores, indices, num_negatives, seed_of(seed))
    return HardNegatives(indices, scores, positive_scores)


@torch.no_grad()
def semi_hard_pool(
    x: torch.Tensor,
    labels: torch.Tensor,
    bank: torch.Tensor | None,
    bank_labels: torch.Tensor | None,
    *,
    pool: int,
    num_negatives: int,
    seed: int | None = None,
    ids: torch.Tensor | None = None,
    bank_ids: torch.Tensor | None = None,
    similarity: str = "cosine",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negatives drawn uniformly from the most similar rows of a memory bank (InterCLR, arXiv 2008.11702).

    Args:
        x, labels: as in ``batch_hard``.
        bank, bank_labels: [M, D] and [M]; None: x itself, where no row is its own negative.
        pool: the number of most similar rows of the bank, of any label, from which negatives are drawn; rows of the
            same label are then rejected.
        num_negatives: the number drawn, without replacement.
        seed: the draw is a function of the seed, the row's index and the bank row's. None: a seed from torch's default
            generator.
        ids, bank_ids, similarity: as ids, ref_ids and similarity in ``batch_hard``.

    Returns:
        (values [N, num_negatives], descending; indices [N, num_negatives] int64). -inf and -1 where the pool has fewer.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.integer("pool", pool, 0)
    _check.integer("num_negatives", num_negatives, 0)
    seed = seed_of(seed)
    _check_embeddings("x", x, "bank", bank)
    _check_bank(bank, bank_labels, ids, bank_ids)
    pairs = labelled_pairs(x, labels, bank, bank_labels, ids=ids, ref_ids=bank_ids, similarity=similarity)
    values, indices = pairs.top_k("all", min(pool, pairs.m))
    of_column = labels if bank_labels is None else bank_labels
    same = F.pad(of_column, (1, 0))[indices + 1] == labels[:, None]
    return _draw(*_without(values, indices, same), num_negatives, seed)


def _check_embeddings(name: str, x: Any, ref_name: str, ref: Any) -> None:
    """Check embeddings whose argument names are not x and ref."""
    _check.tensor(name, x, _check.FLOAT_DTYPES, dim=2)
    if ref is not None:
        _check.tensor(ref_name, ref, (x.dtype,), dim=2)
        if ref.shape[1] != x.shape[1]:
            raise ValueError(f"{ref_name} must be [M, {x.shape[1]}], as {name}; got shape {tuple(ref.shape)}")
        _check.same_device(ref_name, ref, name, x)


def _check_bank(bank: torch.Tensor | None, bank_labels: Any, ids: Any, bank_ids: Any) -> None:
    if bank is None:
        if bank_labels is not None or bank_ids is not None:
            raise ValueError("bank_labels and bank_ids must be None where bank is")
        return
    if (ids is None) != (bank_ids is None):
        raise ValueError("ids and bank_ids must be given both, or neither, where bank is")
    for name, value in (("bank_labels", bank_labels), ("bank_ids", bank_ids)):
        if name == "bank_ids" and value is None:
            continue
        _check.tensor(name, value, (torch.int64,), dim=1)
        _check.same_device(name, value, "bank", bank)
        if value.shape[0] != bank.shape[0]:
            raise ValueError(f"{name} must have one entry per row of bank ({bank.shape[0]}); got {tuple(value.shape)}")


def _top_k(pairs: Pairs, select: str, k: int, lower: Bound, upper: Bound) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k columns; the op is asked for no more than there are."""
    values, indices = pairs.top_k(select, min(k, pairs.m), lower, upper)
    return _padded(values, indices, k)


def _padded(values: torch.Tensor, indices: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    missing = max(0, k - indices.shape[1])
    return F.pad(values, (0, missing), value=-torch.inf), F.pad(indices, (0, missing), value=-1)


def _without(values: torch.Tensor, indices: torch.Tensor, drop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The others moved to the front, in their order."""
    order = drop.to(torch.uint8).sort(dim=1, stable=True).indices
    dropped = drop.gather(1, order)
    return (
        values.gather(1, order).masked_fill(dropped, -torch.inf),
        indices.gather(1, order).masked_fill(dropped, -1),
    )


def _draw(values: torch.Tensor, indices: torch.Tensor, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """k entries of each row, drawn uniformly without replacement, in their order; entries with index -1 come last."""
    rows = torch.arange(len(indices), device=indices.device)[:, None]
    words = random_words(rows, indices.clamp_min(0), 1, seed)
    key = torch.where(indices >= 0, (words[0] << 31) | (words[1] >> 1), -1)
    chosen = key.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    return _padded(values.gather(1, chosen), indices.gather(1, chosen), k)


def _checked_positives(positives: Any, pairs: Pairs) -> torch.Tensor:
    """[Q, P]."""
    _check.tensor("positives", positives, (torch.int64,))
    _check.same_device("positives", positives, "queries", pairs.x)
    if positives.dim() not in (1, 2) or positives.shape[0] != pairs.n:
        raise ValueError(f"positives must be [{pairs.n}] or [{pairs.n}, P]; got shape {tuple(positives.shape)}")
    if bool(((positives < -1) | (positives >= pairs.m)).any()):
        raise ValueError(f"positives must be indices of documents, below {pairs.m}, or -1")
    return positives.reshape(pairs.n, -1) if positives.dim() == 1 else positives


def _lowest_score(pairs: Pairs, own: torch.Tensor) -> torch.Tensor:
    lowest = pairs.x.new_full((pairs.n,), torch.inf, dtype=pairs.dtype)
    for p in range(own.shape[1]):
        lowest = torch.minimum(lowest, pairs.values_at(own[:, p].contiguous(), torch.inf))
    return lowest


def _cap(
    pairs: Pairs,
    positive_scores: torch.Tensor,
    max_score: float | None,
    absolute_margin: float | None,
    relative_margin: float | None,
) -> torch.Tensor:
    """The largest allowed score of a candidate, [Q]; for a query without positives the margins set no limit."""
    cap = _full(pairs, "max_score", torch.inf if max_score is None else max_score)
    some = positive_scores != torch.inf
    p = torch.where(some, positive_scores, 0)
    if absolute_margin is not None:
        cap = torch.where(some, torch.minimum(cap, p - absolute_margin), cap)
    if relative_margin is not None:
        cap = torch.where(some, torch.minimum(cap, p - p.abs() * relative_margin), cap)
    return cap


def _full(pairs: Pairs, name: str, value: float) -> torch.Tensor:
    found = pairs.row_numbers(name, value)
    assert found is not None
    return found
