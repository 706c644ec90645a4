"""Miners with the names and arguments of pytorch-metric-learning, on the functions of ``hk.mining``."""

from __future__ import annotations

from typing import Any

import torch

from ... import _check, mining
from ...mining.lists import SEMI_HARD, STRATEGIES
from .batches import Batch, Indices, batch_of
from .distances import CosineSimilarity, LpDistance, require_space, space_of

__all__ = [
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "EmbeddingsAlreadyPackagedAsTriplets",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
]


class BaseMiner(torch.nn.Module):
    """``miner(embeddings, labels, ref_emb=None, ref_labels=None)`` returns int64 indices on the embeddings' device:
    triplets (a, p, n), or positive and negative pairs (a1, p, a2, n). ``ids`` and ``ref_ids`` may be given besides:
    rows of equal ids are no pair.

    Args:
        distance: an object of ``distances`` here or of pytorch-metric-learning; None: the miner's own.
        collect_stats: taken for the sake of the call shape.
    """

    default_distance: type[torch.nn.Module] = LpDistance

    def __init__(self, distance: torch.nn.Module | None = None, collect_stats: bool | None = None) -> None:
        super().__init__()
        self.collect_stats = bool(collect_stats)
        self.distance = self.default_distance() if distance is None else distance
        self.num_pos_pairs = self.num_neg_pairs = self.num_triplets = 0
        space_of(self.distance, type(self).__name__)

    @torch.no_grad()
    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> Indices:
        if labels is None:
            raise ValueError(f"labels must be given for {type(self).__name__}")
        found = self.mine(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
        if len(found) == 3:
            self.num_triplets = len(found[0])
        else:
            self.num_pos_pairs, self.num_neg_pairs = len(found[0]), len(found[2])
        return found

    def mine(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> Indices:
        return self.mine_batch(batch_of(embeddings, labels, ref_emb, ref_labels, ids, ref_ids))

    def mine_batch(self, batch: Batch) -> Indices:
        raise NotImplementedError

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        space = space_of(self.distance, type(self).__name__)
        return {**batch.arguments(space), "similarity": space.similarity}


class BatchEasyHardMiner(BaseMiner):
    """``hk.mining.batch_easy_hard``; (a1, p, a2, n)."""

    HARD, SEMIHARD, EASY, ALL = "hard", "semihard", "easy", "all"
    all_batch_mining_strategies = (HARD, SEMIHARD, EASY, ALL)

    def __init__(
        self,
        pos_strategy: str = EASY,
        neg_strategy: str = SEMIHARD,
        allowed_pos_range: tuple[float, float] | None = None,
        allowed_neg_range: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, strategy in (("pos_strategy", pos_strategy), ("neg_strategy", neg_strategy)):
            _check.choice(name, strategy, STRATEGIES)
        strategies = (pos_strategy, neg_strategy)
        if self.SEMIHARD in strategies and strategies not in SEMI_HARD:
            raise ValueError(f"'semihard' goes with 'easy' or 'hard' on the other side; got {strategies}")
        self.pos_strategy, self.neg_strategy = strategies
        self.allowed_pos_range, self.allowed_neg_range = allowed_pos_range, allowed_neg_range

    def mine_batch(self, batch: Batch) -> Indices:
        return mining.batch_easy_hard(
            **self._arguments(batch), pos_strategy=self.pos_strategy, neg_strategy=self.neg_strategy,
            allowed_pos_range=self.allowed_pos_range, allowed_neg_range=self.allowed_neg_range,
        )  # fmt: skip


class BatchHardMiner(BaseMiner):
    """``hk.mining.batch_hard``; (a, p, n)."""

    def mine_batch(self, batch: Batch) -> Indices:
        return mining.batch_hard(**self._arguments(batch))


class MultiSimilarityMiner(BaseMiner):
    """``hk.mining.multi_similarity``; (a1, p, a2, n), ordered by index within a row."""

    default_distance = CosineSimilarity

    def __init__(self, epsilon: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    def mine_batch(self, batch: Batch) -> Indices:
        return mining.multi_similarity(**self._arguments(batch), epsilon=self.epsilon)


class PairMarginMiner(BaseMiner):
    """``hk.mining.pair_margin``; (a1, p, a2, n)."""

    def __init__(self, pos_margin: float = 0.2, neg_margin: float = 0.8, **options: Any) -> None:
        super().__init__(**options)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def mine_batch(self, batch: Batch) -> Indices:
        return mining.pair_margin(**self._arguments(batch), pos_margin=self.pos_margin, neg_margin=self.neg_margin)


class TripletMarginMiner(BaseMiner):
    """``hk.mining.triplet_margin``; (a, p, n)."""

    def __init__(self, margin: float = 0.2, type_of_triplets: str = "all", **options: Any) -> None:
        super().__init__(**options)
        self.margin, self.type_of_triplets = margin, type_of_triplets

    def mine_batch(self, batch: Batch) -> Indices:
        return mining.triplet_margin(
            **self._arguments(batch), margin=self.margin, type_of_triplets=self.type_of_triplets
        )


class DistanceWeightedMiner(BaseMiner):
    """``hk.mining.distance_weighted``, with as many triplets to an anchor as its class has columns; (a, p, n).

    Weights are taken in logarithms, row by row: no anchor is dropped because another row has a nearer negative.
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, **options: Any) -> None:
        super().__init__(**options)
        name = type(self).__name__
        require_space(space_of(self.distance, name), name, ("euclidean",), True, "LpDistance()")
        self.cutoff, self.nonzero_loss_cutoff = float(cutoff), float(nonzero_loss_cutoff)

    def mine_batch(self, batch: Batch) -> Indices:
        if self.nonzero_loss_cutoff <= self.cutoff:  # every distance counts as cutoff at least
            none = torch.empty(0, dtype=torch.int64, device=batch.x.device)
            return none, none, none
        arguments = self._arguments(batch)
        del arguments["similarity"]
        labels = batch.labels if batch.ref_labels is None else batch.ref_labels
        assert labels is not None and batch.labels is not None
        columns = labels.sort().values
        of_class = torch.searchsorted(columns, batch.labels, right=True) - torch.searchsorted(columns, batch.labels)
        least = torch.finfo(torch.float32).tiny  # a distance of 0 has no logarithm
        return mining.distance_weighted(
            **arguments, cutoff=max(self.cutoff, least), nonzero_loss_cutoff=self.nonzero_loss_cutoff, draws=of_class
        )


class EmbeddingsAlreadyPackagedAsTriplets(BaseMiner):
    """Rows 3 k, 3 k + 1 and 3 k + 2 are anchor, positive and negative."""

    def mine_batch(self, batch: Batch) -> Indices:
        rows = torch.arange(len(batch.x), device=batch.x.device)
        return rows[0::3], rows[1::3], rows[2::3]
