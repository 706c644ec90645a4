"""Modules that own the class centres."""

from .margin_softmax import MarginSoftmax

__all__ = ["MarginSoftmax"]
