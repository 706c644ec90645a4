"""Losses on pairs, ``hk.losses``. None of them stores the N x M similarities."""

from .info_nce import info_nce
from .lifted import generalized_lifted, lifted
from .margins import contrastive, margin, triplet, tuplet_margin
from .proxies import nbc_softmax, proxy_anchor, proxy_nca, soft_triple
from .ranking import fast_ap
from .soft_target import soft_target_info_nce
from .softmax import n_pairs, nca, nt_xent, supcon
from .spread import calibrated_uniformity, meow, nearest_pair_packing, siglip, uniformity
from .weighted import circle, multi_similarity, ranked_list, weighted_triplet

__all__ = [
    "calibrated_uniformity",
    "circle",
    "contrastive",
    "fast_ap",
    "generalized_lifted",
    "info_nce",
    "lifted",
    "margin",
    "meow",
    "multi_similarity",
    "n_pairs",
    "nbc_softmax",
    "nca",
    "nearest_pair_packing",
    "nt_xent",
    "proxy_anchor",
    "proxy_nca",
    "ranked_list",
    "siglip",
    "soft_target_info_nce",
    "soft_triple",
    "supcon",
    "triplet",
    "tuplet_margin",
    "uniformity",
    "weighted_triplet",
]
