"""The unit-norm ops and which backend runs them. All work on the last dimension and return contiguous tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ... import _backend
from ..._ops import Gradient, Operation
from ..._schema import Tensor, Written
from . import reference


class UnitNormCall(NamedTuple):
    x: Tensor
    eps: float


class UnitNormInPlaceCall(NamedTuple):
    x: Written
    eps: float


class UnitNormBackwardCall(NamedTuple):
    grad: Tensor
    x: Tensor
    eps: float


def _contiguous_like(call: UnitNormCall | UnitNormBackwardCall) -> torch.Tensor:
    return torch.empty_like(call.x, memory_format=torch.contiguous_format)


def _backward(
    call: UnitNormCall, result: None, grad: torch.Tensor, needs: frozenset[str], backend: str
) -> dict[str, torch.Tensor | None]:
    # A gradient that is itself differentiated takes the formula that autograd can see through.
    if torch.is_grad_enabled():
        return {"x": reference.unit_norm_backward(grad, *call)}
    return {"x": BACKWARD(UnitNormBackwardCall(grad, *call), backend)}


_LAUNCHERS = "kernels.unit_norm.triton.kernels"
BACKWARD = Operation(
    "unit_norm_backward",
    UnitNormBackwardCall,
    Tensor,
    results=_contiguous_like,
    triton=f"{_LAUNCHERS}:unit_norm_backward",
)
UNIT_NORM = Operation(
    "unit_norm",
    UnitNormCall,
    Tensor,
    results=_contiguous_like,
    triton=f"{_LAUNCHERS}:unit_norm",
    gradient=Gradient(inputs=("x",), backward=_backward, twice=True),
)
IN_PLACE: Operation[UnitNormInPlaceCall, None] = Operation(
    "unit_norm_", UnitNormInPlaceCall, None, results=lambda _: None, triton=f"{_LAUNCHERS}:unit_norm_"
)


def unit_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / max(|x|, eps) over the last dimension."""
    backend = _backend.select("unit_norm", x.device)
    if backend == "reference":
        return reference.unit_norm(x, eps)
    return UNIT_NORM(UnitNormCall(x, eps), backend)


def unit_norm_(x: torch.Tensor, eps: float) -> None:
    """The same, written over a contiguous x."""
    backend = _backend.select("unit_norm", x.device)
    if backend == "reference":
        x.copy_(reference.unit_norm(x, eps))
    else:
        IN_PLACE(UnitNormInPlaceCall(x, eps), backend)
