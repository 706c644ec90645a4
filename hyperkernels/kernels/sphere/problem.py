"""What the ops of the sphere are called with and return.

Matrices are [N, D] with unit stride in the last dimension; the rows of x, y, h, block and v may be expanded (stride 0).
t, alpha and scale are in the accumulator's dtype and contiguous. `reference` says what is computed.
"""

from __future__ import annotations

from typing import NamedTuple

from ..._schema import Tensor

EPS = 1e-12  # a shorter row has no direction
# |y^ + x^| in units of the dtype's epsilon, below which two points count as opposite: every great circle through x^ is
# then a shortest way, and the one through its smallest coordinate's axis is taken, with no gradient to the points.
OPPOSITE = 16.0


class PointsCall(NamedTuple):
    x: Tensor
    y: Tensor
    t: Tensor | None  # [N]
    kind: str


class PointsBackwardCall(NamedTuple):
    grad: Tensor
    call: PointsCall
    need_x: bool
    need_y: bool
    need_t: bool


class PointsGradients(NamedTuple):
    """Empty where not needed, as all gradients here."""

    dx: Tensor
    dy: Tensor
    dt: Tensor


class VectorsCall(NamedTuple):
    x: Tensor
    v: Tensor
    kind: str


class VectorsBackwardCall(NamedTuple):
    grad: Tensor
    call: VectorsCall
    need_x: bool
    need_v: bool


class VectorsGradients(NamedTuple):
    dx: Tensor
    dv: Tensor


class ResidualCall(NamedTuple):
    h: Tensor
    block: Tensor
    alpha: Tensor  # [D]


class ResidualBackwardCall(NamedTuple):
    grad: Tensor
    call: ResidualCall
    need_h: bool
    need_block: bool
    need_alpha: bool


class ResidualGradients(NamedTuple):
    dh: Tensor
    dblock: Tensor
    dalpha: Tensor


class ScaledCall(NamedTuple):
    x: Tensor
    scale: Tensor  # [S, D]


class ScaledBackwardCall(NamedTuple):
    grad: Tensor
    call: ScaledCall
    need_x: bool
    need_scale: bool


class ScaledGradients(NamedTuple):
    dx: Tensor
    dscale: Tensor


class SegmentSumCall(NamedTuple):
    """order sorts the rows by their labels, and those of segment k stand from offsets[k] to offsets[k + 1] in it."""

    x: Tensor
    labels: Tensor  # [N]
    order: Tensor  # [N]
    offsets: Tensor  # [K + 1]
