"""What the loss classes share: the call, and the reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....pairs.listed import ListedPairs
from ....pairs.pairs import Pairs
from .. import reducers
from ..batches import Batch, batch_of, selected
from ..distances import LpDistance, Space, space_of
from ..reducers import MeanReducer, apply, plain


class BaseLoss(torch.nn.Module):
    """``loss(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None)``.

    The loss is float32, float64 for float64 embeddings. ``indices_tuple`` is what a miner returns: it says which pairs
    or triplets count; labels may then be left out where the loss does not need them. ``ids`` and ``ref_ids`` may be
    given besides: rows of equal ids are no pair.

    Args:
        distance, reducer: objects of ``distances`` and ``reducers`` here or of pytorch-metric-learning; None: the
            loss's own.
        embedding_regularizer, embedding_reg_weight: called with the embeddings, times the weight, it is added.
        collect_stats: taken for the sake of the call shape.
    """

    default_distance: Callable[[], torch.nn.Module] = LpDistance
    default_reducer: Callable[[], torch.nn.Module] = MeanReducer
    needs_labels = False
    takes_indices = True
    takes_ref = True

    def __init__(
        self,
        distance: torch.nn.Module | None = None,
        reducer: torch.nn.Module | None = None,
        embedding_regularizer: torch.nn.Module | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.collect_stats = bool(collect_stats)
        self.distance = type(self).default_distance() if distance is None else distance
        self.reducer = type(self).default_reducer() if reducer is None else reducer
        self.embedding_regularizer, self.embedding_reg_weight = embedding_regularizer, embedding_reg_weight
        self.check_space(self.space)

    @property
    def space(self) -> Space:
        return space_of(self.distance, type(self).__name__)

    def check_space(self, space: Space) -> None:
        """Raises where the loss knows no such distance."""

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> Any:
        name = type(self).__name__
        if labels is None and (self.needs_labels or indices_tuple is None):
            raise ValueError(f"labels {'' if self.needs_labels else 'or indices_tuple '}must be given for {name}")
        if not self.takes_indices and indices_tuple is not None:
            raise ValueError(f"indices_tuple must be None for {name}")
        if not self.takes_ref and ref_emb is not None and ref_emb is not embeddings:
            raise ValueError(f"ref_emb must be None for {name}")
        if not self.takes_ref:
            ref_emb = ref_labels = None
        loss = self.compute(batch_of(embeddings, labels, ref_emb, ref_labels, ids, ref_ids), indices_tuple)
        if self.embedding_regularizer is None:
            return loss
        return loss + self.embedding_regularizer(embeddings) * self.embedding_reg_weight

    def compute(self, batch: Batch, indices: Any) -> Any:
        raise NotImplementedError

    def of_rows(self, losses: torch.Tensor, batch: Batch, counted: torch.Tensor | None = None) -> Any:
        """Reduced, of one loss per row of the batch; `counted`: only those rows have one."""
        kind = plain(self.reducer)
        if kind == "nonzero":
            counted = ~(losses <= 0)
        if kind in ("mean", "sum", "nonzero"):
            total = (losses if counted is None else torch.where(counted, losses, 0)).sum()
            return (
                total
                if kind == "sum"
                else total / (max(len(losses), 1) if counted is None else counted.sum().clamp_min(1))
            )
        rows = torch.arange(len(losses), device=losses.device)
        if counted is not None:
            losses, rows = losses[counted], rows[counted]
        return self.handed_on({"loss": _part(losses, rows, "element")}, batch)

    def of_positives(self, losses: torch.Tensor, pairs: Pairs | ListedPairs, batch: Batch) -> Any:
        """Reduced, of one loss per positive pair, in the order in which they are listed."""
        kind = plain(self.reducer)
        if kind == "mean":
            return losses.sum() / max(len(losses), 1)
        if kind == "sum":
            return losses.sum()
        listed = pairs.listed("positive")
        return self.handed_on({"loss": _part(losses, (listed.rows, listed.columns), "pos_pair")}, batch)

    def handed_on(self, loss_dict: reducers.Losses, batch: Batch) -> Any:
        return apply(self.reducer, loss_dict, batch.x, batch.labels)

    def only_plain(self, *allowed: str) -> str:
        """What a plain reducer divides by, for the losses that only those serve."""
        kind = plain(self.reducer)
        if kind not in allowed:
            names = " or ".join(f"{name}()" for name, k in reducers._PLAIN.items() if k in allowed)
            raise ValueError(f"reducer must be {names} for {type(self).__name__}; got {type(self.reducer).__name__}")
        return kind


class PairLoss(BaseLoss):
    """A loss of positive and negative pairs."""

    distinct = True  # a pair that indices_tuple has twice counts once

    def compute(self, batch: Batch, indices: Any) -> Any:
        space = self.space
        return self.of_pairs(selected(batch.pairs(space), indices, self.distinct), batch, space)

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        raise NotImplementedError


def _part(losses: Any, indices: Any, kind: str, **more: Any) -> dict[str, Any]:
    return {"losses": losses, "indices": indices, "reduction_type": kind, **more}
