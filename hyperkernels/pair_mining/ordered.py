"""Sums over runs and over repeated indices, in an order that does not depend on the threads."""

from __future__ import annotations

from typing import Any

import torch


def row_sums(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The sums of values[offsets[i]:offsets[i+1]], [N], in a fixed order."""
    return torch.segment_reduce(values, "sum", offsets=offsets, initial=0)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.n = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        index, order = index.sort(stable=True)
        return row_sums(d[order], torch.searchsorted(index, torch.arange(ctx.n + 1, device=d.device))), None


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[index], whose gradients add up in the order of the index: PyTorch's own do so in that of the threads."""
    return _Take.apply(values, index)
