"""Modules that own the class centres."""

from .margin_softmax import MarginSoftmax
from .sums import SFace, SphereFace2, UniFace

__all__ = ["MarginSoftmax", "SFace", "SphereFace2", "UniFace"]
