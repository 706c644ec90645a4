"""Derivatives that are numbers, found beside the value: a derivative of them is refused, where autograd would take them
for constants."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


class Slope(torch.autograd.Function):
    """grad * slope, the gradient of a function of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: torch.Tensor, slope: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return grad * slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> NoReturn:
        raise RuntimeError("this function of hyperkernels.sphere has no second derivative")
