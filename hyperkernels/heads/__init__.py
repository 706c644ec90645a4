"""Losses of the class softmax, and what they share."""

from . import negatives

__all__ = ["negatives"]
