"""Losses with the names and arguments of pytorch-metric-learning, on the functions of ``hk.losses``."""

from .memory import CrossBatchMemory
from .pairwise import (
    CircleLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    ThresholdConsistentMarginLoss,
    TupletMarginLoss,
)
from .proxies import ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss
from .ranking import FastAPLoss, NCALoss, NPairsLoss, RankedListLoss
from .triplets import MarginLoss, TripletMarginLoss

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "FastAPLoss",
    "GeneralizedLiftedStructureLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankedListLoss",
    "SoftTripleLoss",
    "SupConLoss",
    "ThresholdConsistentMarginLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
]
