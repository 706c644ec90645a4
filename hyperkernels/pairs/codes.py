"""Small numbers for labels and ids, so that kernels compare 32 bits."""

from __future__ import annotations

import torch


def run_starts(values: torch.Tensor) -> torch.Tensor:
    """Which of the values, [N], differ from the one before, bool. Without a slice of N - 1, whose size torch.export
    would want to know where N is a symbol."""
    place = torch.arange(values.shape[0], device=values.device)
    return (values != values.roll(1)) | (place == 0)


def codes(first: torch.Tensor, second: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Equal int32 codes, from 0 on, for equal int64 values of both (second: None is first itself); no host sync."""
    values = first if second is None else torch.cat([first, second])
    ordered, order = values.sort()
    group = run_starts(ordered).cumsum(0, dtype=torch.int32) - 1
    found = torch.empty_like(group).scatter_(0, order, group)
    n = first.shape[0]  # len() would be a constant where the number of rows is a symbol
    return (found, found) if second is None else (found[:n], found[n:])
