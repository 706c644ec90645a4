"""Fused kernels for training on the unit hypersphere."""

from typing import Any

from . import _moved, distributed, losses, margins, mining, nn, optim, sphere
from ._backend import backend
from ._version import __version__
from .heads import sub_centers
from .heads.functional import ClassStatistics, class_statistics, margin_softmax_loss
from .heads.sum_functional import sface_loss, sphereface2_loss, uniface_loss
from .pairs.functional import PairStatistics, pair_statistics
from .unit_norm import unit_norm, unit_norm_

_moved.install()


def __getattr__(name: str) -> Any:
    """The packages by their old names, as attributes."""
    return _moved.attribute(__name__, name)


__all__ = [
    "ClassStatistics",
    "PairStatistics",
    "__version__",
    "backend",
    "class_statistics",
    "distributed",
    "losses",
    "margin_softmax_loss",
    "margins",
    "mining",
    "nn",
    "optim",
    "pair_statistics",
    "sface_loss",
    "sphere",
    "sphereface2_loss",
    "sub_centers",
    "uniface_loss",
    "unit_norm",
    "unit_norm_",
]
