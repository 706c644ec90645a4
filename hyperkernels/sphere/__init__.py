"""Geometry of the unit sphere: points are rows, of any length, that stand for their directions."""

from .functional import (
    angle,
    bezier,
    exp_map,
    log_map,
    residual,
    retract,
    scaled_unit_norm,
    slerp,
    tangent,
    transport,
)
from .segments import segment_mean

__all__ = [
    "angle",
    "bezier",
    "exp_map",
    "log_map",
    "residual",
    "retract",
    "scaled_unit_norm",
    "segment_mean",
    "slerp",
    "tangent",
    "transport",
]
