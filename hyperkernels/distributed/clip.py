from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._dtypes import accumulate_dtype
from ..optim.clip import gradient_values
from .sharded import sharded_of


@torch.no_grad()
def clip_grad_norm_(module: torch.nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradients of a module down to a norm of ``max_norm`` where it is larger, over the classes of all ranks.

    ``torch.nn.utils.clip_grad_norm_`` would take each rank's shard for the whole, scale differently on every rank and
    so drive copies of the backbone apart.

    Args:
        module: holds any number of ``hk.nn.PartialFC``; its other parameters have the same gradient on all ranks, or
            are sharded by ``fully_shard``.
        max_norm: the largest Euclidean norm that all gradients may have together, above 0.

    Returns:
        The norm that all gradients had together, a scalar in float64, the same on all ranks.
    """
    _check.number("max_norm", max_norm, above=0.0)
    heads = sharded_of(module)
    gradients, squares = [], []
    for parameter in module.parameters():
        head = heads.get(parameter)
        if parameter.grad is None and head is None:
            continue
        gradient = None if parameter.grad is None else gradient_values(parameter)
        square = torch.zeros((), dtype=torch.float64, device=parameter.device)
        if gradient is not None:
            dtype = accumulate_dtype(gradient.dtype)
            norm: Any = torch.linalg.vector_norm(gradient, dtype=dtype)
            square = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).double() ** 2
        squares.append(square if head is None else head.ranks.all_gather(square[None]).sum())
        if gradient is not None:
            gradients.append(gradient)
    total = torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    return total
