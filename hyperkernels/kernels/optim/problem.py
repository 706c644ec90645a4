"""What the ops of the optimisers are called with. Everything but the gradients is written in place.

weight and its state are contiguous [R, D], the state in the accumulator's dtype; step [R] int32 counts the updates of
each row. Points are lists of parameters, each contiguous [R, D], and their states.
"""

from __future__ import annotations

from typing import NamedTuple

from ..._schema import Tensor, Written


class RowGradient(NamedTuple):
    """gradient [n, D] belongs to the distinct rows [n], or to all of them in order where rows is None."""

    gradient: Tensor
    rows: Tensor | None  # [n] int64
    lr_tensor: Tensor | None  # one number, taken instead of lr
    grad_scale: Tensor | None  # one number, which the gradient is divided by
    found_inf: Tensor | None  # one number: where it is not 0 nothing changes
    lr: float


class PointGradients(NamedTuple):
    gradients: list[Tensor]
    lr_tensor: Tensor | None
    grad_scale: Tensor | None
    found_inf: Tensor | None
    lr: float


class SgdRowsCall(NamedTuple):
    weight: Written
    momentum_buffer: Written | None  # [R, D]
    step: Written
    given: RowGradient
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


class AdamWRowsCall(NamedTuple):
    weight: Written
    exp_avg: Written  # [R, D]
    exp_avg_sq: Written  # [R, D]
    step: Written
    given: RowGradient
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool


class SphereSgdCall(NamedTuple):
    points: list[Written]
    momentum_buffers: list[Written]
    steps: list[Written]
    given: PointGradients
    momentum: float
    dampening: float
    nesterov: bool
    maximize: bool


class SphereAdamCall(NamedTuple):
    points: list[Written]
    exp_avgs: list[Written]
    exp_avg_sqs: list[Written]  # [R] each
    max_exp_avg_sqs: list[Written]  # [R] each, or none at all
    steps: list[Written]
    given: PointGradients
    beta1: float
    beta2: float
    eps: float
    maximize: bool
