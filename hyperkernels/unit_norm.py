"""Public functions: check the arguments, move the dimension last, call the op."""

from __future__ import annotations

from typing import Any

import torch

from . import _check
from .kernels.unit_norm import op


def _check_inputs(x: Any, dim: Any, eps: Any) -> tuple[int, float]:
    _check.tensor("x", x, _check.FLOAT_DTYPES)
    _check.integer("dim", dim)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension; got a scalar")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim() - 1}] for x of shape {tuple(x.shape)}; got {dim}")
    return dim, _check.number("eps", eps, minimum=0.0)


def unit_norm(x: torch.Tensor, dim: int = -1, eps: float = 1e-12) -> torch.Tensor:
    """Project vectors onto the unit sphere: ``x / max(|x|, eps)`` along ``dim``.

    The values and derivatives are those of ``torch.nn.functional.normalize(x, dim=dim, eps=eps)`` in float64, rounded
    once. The sum of squares neither overflows nor underflows: float32 rows of 1e30 or 1e-30 are right.

    Args:
        x: any shape with at least one dimension; float64, float32, bfloat16 or float16; any strides.
        dim: the dimension that holds the vectors.
        eps: floor of the norm, at least 0. A vector shorter than eps is divided by eps, and its gradient is that of the
            division by a constant.

    Returns:
        A tensor of the shape and dtype of x. Twice differentiable.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    dim, eps = _check_inputs(x, dim, eps)
    if dim in (-1, x.dim() - 1):
        return op.unit_norm(x, eps)
    y = op.unit_norm(x.movedim(dim, -1), eps).movedim(-1, dim)
    return y.contiguous() if x.is_contiguous() else y


def unit_norm_(x: torch.Tensor, dim: int = -1, eps: float = 1e-12) -> torch.Tensor:
    """``unit_norm`` written over ``x``, outside autograd; it serves to renormalise parameters after a step.

    Args:
        x: as in ``unit_norm``; a parameter that requires grad may be given, autograd does not record it.
        dim, eps: as in ``unit_norm``.

    Returns:
        x itself.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    dim, eps = _check_inputs(x, dim, eps)
    with torch.no_grad():
        rows = x.movedim(dim, -1)
        if rows.is_contiguous():
            op.unit_norm_(rows, eps)
        else:
            rows.copy_(op.unit_norm(rows, eps))
    return x
