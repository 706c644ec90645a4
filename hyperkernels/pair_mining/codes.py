"""Small numbers for labels and ids, so that kernels compare 32 bits."""

from __future__ import annotations

import torch


def codes(first: torch.Tensor, second: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Equal int32 codes, from 0 on, for equal int64 values of both (second: None is first itself); no host sync."""
    values = first if second is None else torch.cat([first, second])
    ordered, order = values.sort()
    group = torch.zeros_like(ordered, dtype=torch.int32)
    if len(values) > 1:
        group[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    found = torch.empty_like(group).scatter_(0, order, group)
    return (found, found) if second is None else (found[: len(first)], found[len(first) :])
