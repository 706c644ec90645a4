from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._dtypes import accumulate_dtype, widest_dtype
from ..optim.clip import gradient_values
from .sharded import sharded_of


@torch.no_grad()
def clip_grad_norm_(module: torch.nn.Module, max_norm: float) -> torch.Tensor:
    """Clip the norm of the gradients of a module, over the classes of all ranks, to ``max_norm``.

    ``torch.nn.utils.clip_grad_norm_`` would compute another norm on every rank, of its own shard; the copies of the
    backbone would be scaled differently and diverge.

    Args:
        module: holds any number of ``hk.nn.PartialFC``; its other parameters have the same gradient on all ranks, or
            are sharded by ``fully_shard``.
        max_norm: the largest Euclidean norm of all gradients together, above 0.

    Returns:
        The norm of all gradients together before clipping, a scalar in float64, or
        in float32 on a device without float64, the same on all ranks.
    """
    _check.number("max_norm", max_norm, above=0.0)
    heads = sharded_of(module)
    gradients, squares = [], []
    for parameter in module.parameters():
        head = heads.get(parameter)
        if parameter.grad is None and head is None:
            continue
        gradient = None if parameter.grad is None else gradient_values(parameter)
        square = torch.zeros((), dtype=widest_dtype(parameter.device), device=parameter.device)
        if gradient is not None:
            dtype = accumulate_dtype(gradient.dtype)
            norm: Any = torch.linalg.vector_norm(gradient, dtype=dtype)
            square = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).to(square.dtype) ** 2
        squares.append(square if head is None else head.ranks.all_gather(square[None]).sum())
        if gradient is not None:
            gradients.append(gradient)
    total = torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    return total
