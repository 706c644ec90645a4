"""Optimisers of class centres: only the rows that have a gradient move, and each keeps a state of its own. Optimisers
of points on the sphere: every vector moves along it."""

from .adamw import AdamW
from .clip import clip_grad_norm_
from .in_backward import update_in_backward
from .renormalization import renormalize
from .sgd import SGD
from .sphere import SphereAdam, SphereSGD

__all__ = ["SGD", "AdamW", "SphereAdam", "SphereSGD", "clip_grad_norm_", "renormalize", "update_in_backward"]
