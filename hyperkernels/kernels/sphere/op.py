"""The ops of the family, and which backend runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ... import _backend
from ..._dtypes import accumulate_dtype
from ..._ops import Gradient, Operation
from ..._schema import Tensor
from . import reference
from .problem import (
    PointsBackwardCall,
    PointsCall,
    PointsGradients,
    ResidualBackwardCall,
    ResidualCall,
    ResidualGradients,
    ScaledBackwardCall,
    ScaledCall,
    ScaledGradients,
    SegmentSumCall,
    VectorsBackwardCall,
    VectorsCall,
    VectorsGradients,
)

_LAUNCHERS = "kernels.sphere.triton.kernels"


def _rows_like_the_first(call: Any) -> torch.Tensor:
    return call[0].new_empty(call[0].shape)


def _points(call: PointsCall) -> torch.Tensor:
    if call.kind == "angle":
        return call.x.new_empty(call.x.shape[0], dtype=accumulate_dtype(call.x.dtype))
    return _rows_like_the_first(call)


def _operation(
    name: str, call: Any, backward_call: Any, gradients: Any, inputs: tuple[str, ...], results: Callable[[Any], Any]
) -> Operation[Any, torch.Tensor]:
    """An op of rows, whose backward takes the gradient, the call again and what is needed."""

    def not_yet_written(backward: Any) -> Any:
        grad, call, *needs = backward
        given = (getattr(call, name) for name in inputs)
        return gradients(*(t.new_empty(t.shape) if n else grad.new_empty(0) for t, n in zip(given, needs, strict=True)))

    backward_op: Operation[Any, Any] = Operation(
        f"{name}_backward", backward_call, gradients, results=not_yet_written, triton=f"{_LAUNCHERS}:{name}_backward"
    )

    def backward(call: Any, _: None, grad: torch.Tensor, needs: frozenset[str], backend: str) -> dict[str, Any]:
        wanted = (name in needs for name in inputs)
        found = backward_op(backward_call(grad.contiguous(), call, *wanted), backend)
        return dict(zip(inputs, found, strict=True))

    gradient = Gradient(inputs=inputs, backward=backward)
    return Operation(name, call, Tensor, results=results, triton=f"{_LAUNCHERS}:{name}", gradient=gradient)


POINTS = _operation("sphere_points", PointsCall, PointsBackwardCall, PointsGradients, ("x", "y", "t"), _points)
VECTORS = _operation(
    "sphere_vectors", VectorsCall, VectorsBackwardCall, VectorsGradients, ("x", "v"), _rows_like_the_first
)
RESIDUAL = _operation(
    "sphere_residual", ResidualCall, ResidualBackwardCall, ResidualGradients, ("h", "block", "alpha"),
    _rows_like_the_first,
)  # fmt: skip
SCALED = _operation(
    "scaled_unit_norm", ScaledCall, ScaledBackwardCall, ScaledGradients, ("x", "scale"), _rows_like_the_first
)


def _segment_gradient(
    call: SegmentSumCall, _: None, grad: torch.Tensor, needs: frozenset[str], backend: str
) -> dict[str, torch.Tensor | None]:
    """A sum's gradient is a gather, which PyTorch does well, and differentiates again."""
    return {"x": reference.segment_gather(grad, call.labels).to(call.x.dtype)}


SEGMENT_SUM = Operation(
    "segment_sum",
    SegmentSumCall,
    Tensor,
    results=lambda c: c.x.new_empty((c.offsets.shape[0] - 1, c.x.shape[1]), dtype=accumulate_dtype(c.x.dtype)),
    triton=f"{_LAUNCHERS}:segment_sum",
    gradient=Gradient(inputs=("x",), backward=_segment_gradient, twice=True),
)


def _run(operation: Operation[Any, torch.Tensor], formula: Callable[..., torch.Tensor], call: Any) -> torch.Tensor:
    backend = _backend.select("sphere", call[0].device)
    return formula(*call) if backend == "reference" else operation(call, backend)


def points(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor | None, kind: str) -> torch.Tensor:
    return _run(POINTS, reference.points, PointsCall(x, y, t, kind))


def vectors(x: torch.Tensor, v: torch.Tensor, kind: str) -> torch.Tensor:
    return _run(VECTORS, reference.vectors, VectorsCall(x, v, kind))


def residual(h: torch.Tensor, block: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return _run(RESIDUAL, reference.residual, ResidualCall(h, block, alpha))


def scaled_unit_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _run(SCALED, reference.scaled_unit_norm, ScaledCall(x, scale))


def segment_sum(x: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return _run(SEGMENT_SUM, reference.segment_sum, SegmentSumCall(x, labels, order, offsets))
