from __future__ import annotations

from typing import Any

import torch

from ..kernels.optim import op
from ..kernels.optim.problem import SgdRowsCall
from .optimizer import RowOptimizer, Update, check_momentum


class SGD(RowOptimizer):
    """Stochastic gradient descent with a separate momentum for each row.

    With a dense gradient it is ``torch.optim.SGD``. With a sparse one (COO, sparse in the first dimension; coalesced or
    not) only the rows in the gradient are updated: the others neither decay nor drift, and their momentum stays until
    their next gradient. The original Partial FC treated the classes that were not sampled in this way.

    Args:
        params: parameters, named parameters or parameter groups; float64, float32, bfloat16 or float16.
        lr: learning rate, a number or a tensor of one element. On a GPU the tensor is read on the device, without
            synchronisation.
        momentum: factor of the row's momentum, at least 0.
        dampening: 1 - dampening is the factor of the gradient in the momentum, from a row's second update on.
        weight_decay: L2 penalty, at least 0, of the rows that are updated.
        nesterov: look ahead by one momentum; needs a momentum and no dampening.
        maximize: ascend instead.

    State of a parameter: ``step`` [rows] int32, the number of updates of each row; with momentum ``momentum_buffer``,
    of the parameter's shape, in float32 (float64 for float64 parameters).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "maximize": maximize})

    def _check_options(self, group: dict[str, Any]) -> None:
        check_momentum(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _apply(self, update: Update, group: dict[str, Any]) -> None:
        call = SgdRowsCall(
            update.weight,
            update.state.get("momentum_buffer"),
            update.state["step"],
            update.given,
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
        )
        op.update(op.SGD_ROWS, call)
