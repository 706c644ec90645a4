"""Public functions of the losses that sum over the classes. Arguments are checked here; `sums` does the work."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import _check
from .._order import spread
from ..kernels.margin_softmax.negatives import LARGEST_POWER
from ..margins.angles import GRADIENTS
from . import sums
from .functional import LARGEST_SCALE, REDUCTIONS, check_head
from .losses import Head


def _head(x: Any, weight: Any, target: Any, scale: Any, **options: Any) -> Head:
    # A learned scale would need its gradient through the sum, which the kernels do not give.
    return check_head(
        x, weight, target, scale=_check.number("scale", scale, above=0.0, maximum=LARGEST_SCALE), **options
    )


def _with_bias(head: Head, bias: Any, sign: int) -> Head:
    """The head with the same bias for all classes."""
    if not isinstance(bias, torch.Tensor):
        value = torch.full((), sign * _check.number("bias", bias), dtype=head.scale.dtype, device=head.x.device)
    else:
        _check.tensor("bias", bias, _check.FLOAT_DTYPES)
        _check.same_device("bias", bias, "x", head.x)
        if bias.numel() != 1:
            raise ValueError(f"bias must be a number or a tensor of one element; got shape {tuple(bias.shape)}")
        value = sign * bias.reshape(()).to(head.scale.dtype)
    return head._replace(bias=spread(value, head.classes()))


def sface_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    scale: float = 64.0,
    k: float = 80.0,
    a: float = 0.8,
    b: float = 1.23,
    classes: torch.Tensor | None = None,
    sub_centers: int = 1,
    reduction: str = "mean",
    ignore_index: int = -100,
    workspace: int | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Sigmoid-constrained pull and push on the hypersphere, without a softmax.

    With theta_j the angle between a row of ``x`` and centre j, and y its target, the loss of the row is

        -r(theta_y) s cos(theta_y) + sum over j != y of q(theta_j) s cos(theta_j),
        r(theta) = sigmoid(k (theta - a)), q(theta) = sigmoid(-k (theta - b)),

    where r and q are constants for the gradient: the pull ends near the angle a, the push begins below b. The loss may
    be negative. SFace, Zhong et al., 2021 (arXiv 2205.12010); the authors tune (a, b) to the data: (0.87, 1.20) for
    CASIA-WebFace, (0.88, 1.25) for VGGFace2, (0.90, 1.20) for MS1MV2.

    Args:
        x: embeddings [N, D] in float64, float32, bfloat16 or float16, any norm.
        weight: class centres [C * sub_centers, D] of the same dtype, any norm.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        scale: s, a number above 0.
        k: steepness of the sigmoids, at least 0.
        a, b: angles in radians, in [0, pi].
        classes, sub_centers, ignore_index, workspace, eps: as in ``hk.margin_softmax_loss``.
        reduction: ``"mean"`` over the rows that are not ignored (0 if all are), ``"sum"``, or ``"none"`` for [N].

    Returns:
        A scalar, or [N] for ``reduction="none"``, in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target that is no class, or not among ``classes``, on the CPU; elsewhere such a row is NaN.
    """
    head = _head(
        x, weight, target, scale, classes=classes, sub_centers=sub_centers, ignore_index=ignore_index,
        workspace=workspace, eps=eps,
    )  # fmt: skip
    return sums.sface(
        head,
        _check.number("k", k, minimum=0.0),
        _check.number("a", a, minimum=0.0, maximum=math.pi),
        _check.number("b", b, minimum=0.0, maximum=math.pi),
        _check.choice("reduction", reduction, REDUCTIONS),
    )


def sphereface2_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | float,
    *,
    alpha: float = 0.7,
    scale: float = 40.0,
    m: float = 0.4,
    t: int = 3,
    loss_weight: float = 50.0,
    gradient: str = "straight_through",
    classes: torch.Tensor | None = None,
    sub_centers: int = 1,
    reduction: str = "mean",
    ignore_index: int = -100,
    workspace: int | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Binary classification of every class on the hypersphere, without a softmax.

    With c_j = cos(x, weight_j) and g(c) = 2 ((c + 1) / 2)^t - 1, the loss of a row of ``x`` with target y is

        loss_weight / s * (alpha softplus(-z_y) + (1 - alpha) sum over j != y of softplus(z_j)),
        z_y = s (g(c_y) - m) + bias, z_j = s (g(c_j) + m) + bias.

    SphereFace2, Wen et al., 2022 (arXiv 2108.01513), its SphereFace2-C, weighed as in the authors' OpenSphere; there
    alpha, s, m and loss_weight vary with the data: (0.7, 40, 0.4, 10) for VGGFace2, (0.8, 64, 0.5, 50) for MS1M.

    Args:
        x: embeddings [N, D] in float64, float32, bfloat16 or float16, any norm.
        weight: class centres [C * sub_centers, D] of the same dtype, any norm.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        bias: a number, or a tensor of one element, which may be learned.
        alpha: weight of the target's term, in [0, 1].
        scale: s (the paper's r), a number above 0.
        m: margin in units of g, any finite number.
        t: exponent, from 1 to 8.
        loss_weight: factor of the loss, at least 0.
        gradient: of g to the cosine: ``"straight_through"`` takes it as 1, as the authors do; ``"exact"`` is its own.
        classes, sub_centers, ignore_index, workspace, eps: as in ``hk.margin_softmax_loss``.
        reduction: ``"mean"`` over the rows that are not ignored (0 if all are), ``"sum"``, or ``"none"`` for [N].

    Returns:
        A scalar, or [N] for ``reduction="none"``, in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target that is no class, or not among ``classes``, on the CPU; elsewhere such a row is NaN.
    """
    head = _head(
        x, weight, target, scale, classes=classes, sub_centers=sub_centers, ignore_index=ignore_index,
        workspace=workspace, eps=eps,
    )  # fmt: skip
    if _check.integer("t", t, minimum=1) > LARGEST_POWER:
        raise ValueError(f"t must be in [1, {LARGEST_POWER}]; got {t}")
    return sums.sphereface2(
        _with_bias(head, bias, 1),
        _check.number("alpha", alpha, minimum=0.0, maximum=1.0),
        _check.number("m", m),
        t,
        _check.number("loss_weight", loss_weight, minimum=0.0),
        _check.choice("gradient", gradient, GRADIENTS),
        _check.choice("reduction", reduction, REDUCTIONS),
    )


def uniface_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | float,
    *,
    m: float = 0.4,
    scale: float = 64.0,
    l: float = 1.0,  # noqa: E741
    classes: torch.Tensor | None = None,
    sub_centers: int = 1,
    reduction: str = "mean",
    ignore_index: int = -100,
    workspace: int | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Unified cross-entropy: one threshold for the cosines of all samples with all classes, without a softmax.

    With c_j = cos(x, weight_j), the loss of a row of ``x`` with target y is

        softplus(-[s (c_y - m) - bias]) + l sum over j != y of softplus([s c_j - bias]),

    where [.] clamps its argument to [-s, s], with a gradient of 0 outside. UniFace, Zhou et al., ICCV 2023.

    Args:
        x: embeddings [N, D] in float64, float32, bfloat16 or float16, any norm.
        weight: class centres [C * sub_centers, D] of the same dtype, any norm.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        bias: a number, or a tensor of one element, which may be learned; it is subtracted.
        m: margin in units of cosine, any finite number.
        scale: s, a number above 0.
        l: weight of the other classes' terms, at least 0.
        classes, sub_centers, ignore_index, workspace, eps: as in ``hk.margin_softmax_loss``.
        reduction: ``"mean"`` over the rows that are not ignored (0 if all are), ``"sum"``, or ``"none"`` for [N].

    Returns:
        A scalar, or [N] for ``reduction="none"``, in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target that is no class, or not among ``classes``, on the CPU; elsewhere such a row is NaN.
    """
    head = _head(
        x, weight, target, scale, classes=classes, sub_centers=sub_centers, ignore_index=ignore_index,
        workspace=workspace, eps=eps,
    )  # fmt: skip
    return sums.uniface(
        _with_bias(head, bias, -1),
        _check.number("m", m),
        _check.number("l", l, minimum=0.0),
        _check.choice("reduction", reduction, REDUCTIONS),
    )
