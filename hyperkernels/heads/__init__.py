"""Losses of the class softmax."""

from . import negatives

__all__ = ["negatives"]
