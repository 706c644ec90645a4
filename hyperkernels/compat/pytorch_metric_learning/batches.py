"""What miners and losses are called with: a batch, what it is compared with, and tuples of indices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ... import _check
from ..._dtypes import accumulate_dtype
from ...pairs.listed import ListedPairs
from ...pairs.pairs import Pairs
from ...pairs.source import Listed
from .distances import Space

Indices = tuple[torch.Tensor, ...]


class Batch(NamedTuple):
    """Checked arguments. ref is None where the rows are compared with each other."""

    x: torch.Tensor
    labels: torch.Tensor | None
    ref: torch.Tensor | None
    ref_labels: torch.Tensor | None
    ids: torch.Tensor | None
    ref_ids: torch.Tensor | None

    def arguments(self, space: Space) -> dict[str, Any]:
        """Those of a function of ``hk.mining`` or ``hk.losses``, but for the similarity."""
        ref = None if self.ref is None else space.rows(self.ref)
        return {
            "x": space.rows(self.x), "labels": self.labels, "ref": ref, "ref_labels": self.ref_labels,
            "ids": self.ids, "ref_ids": self.ref_ids,
        }  # fmt: skip

    def pairs(self, space: Space) -> Pairs:
        return Pairs(**self.arguments(space), similarity=space.similarity)


def batch_of(
    x: Any, labels: Any, ref: Any = None, ref_labels: Any = None, ids: Any = None, ref_ids: Any = None
) -> Batch:
    """As pytorch-metric-learning has it: row i and column i are the same sample, which is no pair, only where
    ``ref_labels`` is not given or is ``labels`` itself, or ``ref`` is not given. Ids say it for any ref."""
    _check.tensor("embeddings", x, _check.FLOAT_DTYPES, dim=2)
    own = ref is None or ref_labels is None or ref_labels is labels
    labels = _labels("labels", labels, x)
    if ref is None or (own and ref is x and ids is None):
        return Batch(x, labels, None, None, _same_device(ids, x), None)
    _check.tensor("ref_emb", ref, _check.FLOAT_DTYPES, dim=2)
    ref = ref.to(x.dtype)
    if labels is not None:
        ref_labels = _labels("ref_labels", labels if own else ref_labels, ref)
    if own and ids is None:
        ids, ref_ids = (torch.arange(len(v), device=x.device) for v in (x, ref))
    ref_labels = None if labels is None else ref_labels
    return Batch(x, labels, ref, ref_labels, _same_device(ids, x), _same_device(ref_ids, x))


def _same_device(v: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return v if v is None else v.to(like.device)


def _labels(name: str, labels: Any, of: torch.Tensor) -> torch.Tensor | None:
    if labels is None:
        return None
    _check.tensor(name, labels)
    if labels.dim() != 1 or len(labels) != len(of):
        raise ValueError(f"{name} must be 1D, one per embedding ({len(of)}); got shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be integers; got {labels.dtype}")
    return labels.to(of.device, torch.int64)


def on_device(indices: Any, device: torch.device) -> Indices:
    """A tuple of 3 or 4 index tensors, checked."""
    if not isinstance(indices, (tuple, list)) or len(indices) not in (3, 4):
        raise ValueError("indices_tuple must be (anchors, positives, negatives) or (a1, positives, a2, negatives)")
    # An empty one may have any dtype.
    return tuple(v.to(device, torch.int64) for v in indices)


def pairs_of_tuple(indices: Indices) -> Indices:
    """(a1, p, a2, n) of a tuple of either kind."""
    if len(indices) == 4:
        return indices
    a, p, n = indices
    return a, p, a, n


def triplets_of_tuple(indices: Indices) -> Indices:
    """(a, p, n): the tuple's, or of (a1, p, a2, n) every positive pair with every negative pair of the same anchor, in
    the order of the positive and then of the negative pairs. Nothing larger than they are is held."""
    if len(indices) == 3:
        return indices
    a1, p, a2, n = indices
    anchors, order = a2.sort(stable=True)
    first, after = (torch.searchsorted(anchors, a1.contiguous(), right=right) for right in (False, True))
    times = after - first
    pair = torch.arange(len(a1), device=a1.device).repeat_interleave(times)
    within = torch.arange(len(pair), device=a1.device) - (times.cumsum(0) - times)[pair]
    return a1[pair], p[pair], n[order[first[pair] + within]]


def listed_tuple(pairs: Pairs | ListedPairs) -> Indices:
    """(a1, p, a2, n) of all pairs that count."""
    lists: list[Listed] = [pairs.listed(select) for select in ("positive", "negative")]
    return lists[0].rows, lists[0].columns, lists[1].rows, lists[1].columns


def selected(pairs: Pairs, indices: Any, distinct: bool) -> Pairs | ListedPairs:
    """The pairs, or those of the tuple where one is given; `distinct`: a pair counts once however often it is there."""
    if indices is None:
        return pairs
    a1, p, a2, n = pairs_of_tuple(on_device(indices, pairs.x.device))
    return ListedPairs(pairs, (a1, p), (a2, n), distinct=distinct)


def sample_weights(indices: Any, batch: Batch) -> torch.Tensor | None:
    """How often every row is in the tuple, as a share of the most frequent one's; None: all alike."""
    if indices is None:
        return None
    indices = on_device(indices, batch.x.device)
    if batch.ref is not None:  # then only anchors number the rows of the batch
        indices = indices[:1] if len(indices) == 3 else (indices[0], indices[2])
    rows = torch.cat(indices)
    counts = torch.zeros(len(batch.x), dtype=torch.int64, device=rows.device)
    counts.scatter_add_(0, rows, torch.ones_like(rows))
    if not len(counts):
        return None
    share = counts.to(accumulate_dtype(batch.x.dtype)) / counts.max().clamp_min(1)
    return torch.where(counts.max() > 0, share, 1)
