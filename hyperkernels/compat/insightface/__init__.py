"""The class-sharded head and the margins of insightface's recognition/arcface_torch, by its names and signatures.

    from hyperkernels.compat.insightface import CombinedMarginLoss, PartialFC_V2

in the place of ``from losses import CombinedMarginLoss`` and ``from partial_fc_v2 import PartialFC_V2``. What differs,
and why, is in docs/insightface.md.
"""

from .losses import ArcFace, CombinedMarginLoss, CosFace
from .partial_fc import PartialFC_V2

__all__ = ["ArcFace", "CombinedMarginLoss", "CosFace", "PartialFC_V2"]
