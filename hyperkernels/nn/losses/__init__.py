"""A module for every loss of ``hk.losses``. Written by tools/modules.py from the functions."""

from .info_nce import InfoNCELoss
from .lifted import GeneralizedLiftedLoss, LiftedLoss
from .margins import ContrastiveLoss, MarginLoss, TripletLoss, TupletMarginLoss
from .proxies import NBCSoftmaxLoss, ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss
from .ranking import FastAPLoss
from .soft_target import SoftTargetInfoNCELoss
from .softmax import NCALoss, NPairsLoss, NTXentLoss, SupConLoss
from .spread import CalibratedUniformityLoss, MEOWLoss, NearestPairPackingLoss, SigLIPLoss, UniformityLoss
from .weighted import CircleLoss, MultiSimilarityLoss, RankedListLoss, WeightedTripletLoss

__all__ = [
    "CalibratedUniformityLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "FastAPLoss",
    "GeneralizedLiftedLoss",
    "InfoNCELoss",
    "LiftedLoss",
    "MEOWLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NBCSoftmaxLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "NearestPairPackingLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankedListLoss",
    "SigLIPLoss",
    "SoftTargetInfoNCELoss",
    "SoftTripleLoss",
    "SupConLoss",
    "TripletLoss",
    "TupletMarginLoss",
    "UniformityLoss",
    "WeightedTripletLoss",
]
