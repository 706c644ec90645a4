"""Sums in an order that the sizes alone decide.

On the CPU PyTorch cuts a sum over many numbers by its threads, and adds by index in the order in which they come, so
that the last bits depend on how many there are. These take fixed blocks. What torch.compile makes of a sum is its own.
"""

from __future__ import annotations

import torch

_BLOCK = 4096
_CUT = 2**15  # fewer numbers PyTorch adds on one thread


def _is_cut(size: int, device: torch.device) -> bool:
    return device.type == "cpu" and not torch.compiler.is_compiling() and size >= _CUT


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of values [N]."""
    if not _is_cut(values.shape[0], values.device):
        return values.sum()
    whole = values.shape[0] // _BLOCK * _BLOCK
    return total(values[:whole].view(-1, _BLOCK).sum(1)) + values[whole:].sum()


def spread(value: torch.Tensor, size: int) -> torch.Tensor:
    """A scalar, or [1], as [size]; its gradient is such a sum."""
    if not _is_cut(size, value.device):
        return value.expand(size)
    blocks = -(-size // _BLOCK)
    return spread(value, blocks)[:, None].expand(blocks, _BLOCK).reshape(-1)[:size]


def pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[index], both one-dimensional; the gradient of values adds in the order of the index."""
    # Elsewhere this one adds as it comes, and plain indexing does not.
    return values.index_select(0, index) if values.device.type == "cpu" else values[index]
