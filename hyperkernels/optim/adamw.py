from __future__ import annotations

from typing import Any

import torch

from ..kernels.optim import op
from ..kernels.optim.problem import AdamWRowsCall
from .optimizer import RowOptimizer, Update, check_moments


class AdamW(RowOptimizer):
    """AdamW (Loshchilov and Hutter, 2019) with separate moments and a separate step count for each row.

    With a dense gradient it is ``torch.optim.AdamW``. With a sparse one (COO, sparse in the first dimension; coalesced
    or not) only the rows in the gradient are updated: the others neither decay nor drift, and the bias of a row's
    moments is corrected by the number of updates of that row.

    Args:
        params: parameters, named parameters or parameter groups; float64, float32, bfloat16 or float16.
        lr: learning rate, a number or a tensor of one element. On a GPU the tensor is read on the device, without
            synchronisation.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: decoupled decay, at least 0, of the rows that are updated.
        amsgrad: must be False.
        maximize: ascend instead.

    State of a parameter: ``step`` [rows] int32, the number of updates of each row; ``exp_avg`` and ``exp_avg_sq``, of
    the parameter's shape, in float32 (float64 for float64 parameters).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "amsgrad": amsgrad, "maximize": maximize})

    def _check_options(self, group: dict[str, Any]) -> None:
        check_moments(group)
        if group["amsgrad"]:
            raise ValueError("amsgrad must be False: its maximum is not kept by rows")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _apply(self, update: Update, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        call = AdamWRowsCall(
            update.weight,
            update.state["exp_avg"],
            update.state["exp_avg_sq"],
            update.state["step"],
            update.given,
            beta1=float(beta1),
            beta2=float(beta2),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            maximize=bool(group["maximize"]),
        )
        op.update(op.ADAMW_ROWS, call)
