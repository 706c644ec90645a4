"""Margins: how the target's cosine, and those of the other classes, are changed before the softmax.

A margin is a callable ``(target_cos [N], x_norm [N]) -> psi [N]``: from the cosine between each sample and its own
class centre, and the sample's norm before normalisation, it gives the target logit divided by the scale. Any function
with this signature is a margin; autograd differentiates it. ``Margin`` has hooks for more: a state that follows the
batches, a transform of the other classes' cosines, a scale or a loss term.

Margins without state are frozen dataclasses; those with state or parameters (``AdaCos``, ``AdaFace``, ``ASoftmax``,
``ClassMargin``, ``CurricularFace``, ``InterClassFilter``) are modules, whose state moves in training only and is part
of their ``state_dict``. Keep the state in float32, also in a model of half precision. Activation checkpointing of the
head itself runs its forward twice and so moves the state twice, as it does with batch normalisation.

The margins that work on the angle take ``gradient``. ``"exact"`` is the derivative of the formula,
d cos(theta + m) / d cos(theta) = sin(theta + m) / sin(theta). ``"straight_through"`` takes the derivative as 1 and does
not change the value, as current insightface does (characteristic gradient detachment in SphereFace Revived, Liu et al.,
2022).
"""

from .adaptive import AdaCos, AdaFace, ElasticFace, MagFace
from .additive import ArcFace, ClassMargin, CombinedMargin, CosFace, NormFace
from .base import Margin, Rows
from .hard import ArcNegFace, CircleMargin, CurricularFace, InterClassFilter, MVSoftmax, NPCFace
from .sphereface import ASoftmax, SphereFace, SphereFaceR1, SphereFaceR2

__all__ = [
    "ASoftmax",
    "AdaCos",
    "AdaFace",
    "ArcFace",
    "ArcNegFace",
    "CircleMargin",
    "ClassMargin",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "InterClassFilter",
    "MVSoftmax",
    "MagFace",
    "Margin",
    "NPCFace",
    "NormFace",
    "Rows",
    "SphereFace",
    "SphereFaceR1",
    "SphereFaceR2",
]
