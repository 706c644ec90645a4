"""The ops of the optimisers, and which backend runs them. `reference` says what they write."""

from __future__ import annotations

from typing import Any

from ... import _backend
from ..._ops import Operation
from . import reference
from .problem import AdamWRowsCall, SgdRowsCall, SphereAdamCall, SphereSgdCall


def _operation(name: str, call: Any, module: str) -> Operation[Any, None]:
    return Operation(name, call, None, results=lambda _: None, triton=f"kernels.optim.triton.{module}:{name}")


SGD_ROWS = _operation("sgd_rows_", SgdRowsCall, "kernels")
ADAMW_ROWS = _operation("adamw_rows_", AdamWRowsCall, "kernels")
SPHERE_SGD = _operation("sphere_sgd_", SphereSgdCall, "sphere")
SPHERE_ADAM = _operation("sphere_adam_", SphereAdamCall, "sphere")


def update(operation: Operation[Any, None], call: Any) -> None:
    """Run one of these; a call with lists has one parameter at least."""
    written = call[0][0] if isinstance(call[0], list) else call[0]
    backend = _backend.select("optim", written.device)
    if backend == "reference":
        getattr(reference, operation.name)(call)
    else:
        operation(call, backend)
