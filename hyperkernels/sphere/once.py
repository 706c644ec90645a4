"""Functions whose derivative is computed together with the value. A second derivative raises: autograd would take the
first one for a constant."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


class Slope(torch.autograd.Function):
    """The gradient grad * slope of a function of x, which refuses to be differentiated again."""

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
