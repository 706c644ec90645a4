"""Fused kernels for training on the unit hypersphere."""

from . import nn
from ._backend import backend
from ._version import __version__
from .margin_softmax import margins
from .margin_softmax.functional import ClassStatistics, class_statistics, margin_softmax_loss
from .unit_norm.functional import unit_norm, unit_norm_

__all__ = [
    "ClassStatistics",
    "__version__",
    "backend",
    "class_statistics",
    "margin_softmax_loss",
    "margins",
    "nn",
    "unit_norm",
    "unit_norm_",
]
