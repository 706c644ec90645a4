"""Sums over runs and over repeated indices, in an order that does not depend on the threads."""

from __future__ import annotations

from typing import Any

import torch


def row_sums(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The sums of values[offsets[i]:offsets[i+1]], [N], in a fixed order."""
    return torch.segment_reduce(values, "sum", offsets=offsets, initial=0)


def moved(offsets: torch.Tensor, order: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the runs offsets[i]:offsets[i+1], with `total` entries, taken in that order: which entries, and the offsets
    of the runs then."""
    counts = offsets.diff()[order]
    after = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    run = torch.repeat_interleave(counts, output_size=total)
    shift = offsets[:-1][order] - after[:-1]
    return torch.arange(total, device=offsets.device) + shift[run], after


class _Take(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return values.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        values, index = inputs
        ctx.save_for_backward(index)
        ctx.n = values.shape[0]

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        index, order = index.sort(stable=True)
        return row_sums(d[order], torch.searchsorted(index, torch.arange(ctx.n + 1, device=d.device))), None


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[index], whose gradients add up in the order of the index: PyTorch's own do so in that of the threads."""
    return _Take.apply(values, index)
