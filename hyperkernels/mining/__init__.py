"""Miners: they find the pairs and triplets to train on, without the matrix of similarities.

``miner(x, labels, ref=None, ref_labels=None, *, ids=None, ref_ids=None, similarity="cosine", ...)`` returns int64
indices on the device of x, row by row: ``(a, p, n)``, triplets, or ``(a1, p, a2, n)``, positive pairs and negative
pairs. Anchors a are row numbers of x; p and n are row numbers of ref, or of x where ref is None. Nothing is
differentiable.
"""

from .lists import batch_easy_hard, multi_similarity, pair_margin
from .memory import CrossBatchMemory
from .retrieval import HardNegatives, mine_hard_negatives, semi_hard_pool, topk_negatives
from .sampling import distance_weighted
from .triplets import TripletCounts, batch_hard, semi_hard, triplet_counts, triplet_margin

__all__ = [
    "CrossBatchMemory",
    "HardNegatives",
    "TripletCounts",
    "batch_easy_hard",
    "batch_hard",
    "distance_weighted",
    "mine_hard_negatives",
    "multi_similarity",
    "pair_margin",
    "semi_hard",
    "semi_hard_pool",
    "topk_negatives",
    "triplet_counts",
    "triplet_margin",
]
