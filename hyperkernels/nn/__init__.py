"""Modules that own the class centres."""

from .margin_softmax import MarginSoftmax
from .partial_fc import PartialFC
from .sums import SFace, SphereFace2, UniFace

__all__ = ["MarginSoftmax", "PartialFC", "SFace", "SphereFace2", "UniFace"]
