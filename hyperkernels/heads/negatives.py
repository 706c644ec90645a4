"""Transforms of the cosines of the other classes, for ``hk.class_statistics``."""

from ..kernels.margin_softmax.negatives import COSINE, KINDS, Negatives, negatives

__all__ = ["COSINE", "KINDS", "Negatives", "negatives"]
