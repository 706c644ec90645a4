"""Optimisers of class centres, which update only the rows that have a gradient and keep a state for each row; and
optimisers of points on the unit sphere, which stay on it."""

from .adamw import AdamW
from .clip import clip_grad_norm_
from .in_backward import update_in_backward
from .renormalization import renormalize
from .sgd import SGD
from .sphere import SphereAdam, SphereSGD

__all__ = ["SGD", "AdamW", "SphereAdam", "SphereSGD", "clip_grad_norm_", "renormalize", "update_in_backward"]
