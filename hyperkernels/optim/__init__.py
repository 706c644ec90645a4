"""Optimisers of class centres: only the rows that have a gradient move, and each keeps a state of its own."""

from .adamw import AdamW
from .clip import clip_grad_norm_
from .in_backward import update_in_backward
from .sgd import SGD

__all__ = ["SGD", "AdamW", "clip_grad_norm_", "update_in_backward"]
