"""Derivatives that are numbers, found beside the value: a derivative of them is refused, where autograd would take them
for constants."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


class Slope(torch.autograd.Function):
    """grad * slope, the gradient of a function of x."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, slope: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return grad * slope

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> NoReturn:
        raise RuntimeError("this function of hyperkernels.sphere has no second derivative")
