"""Modules: heads, which own the class centres, and the losses of ``hk.losses``."""

from . import losses
from .losses import *  # noqa: F403
from .margin_softmax import MarginSoftmax
from .partial_fc import PartialFC
from .sums import SFace, SphereFace2, UniFace

__all__ = ["MarginSoftmax", "PartialFC", "SFace", "SphereFace2", "UniFace", *losses.__all__]
