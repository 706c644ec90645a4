"""Dtypes of what is computed."""

from __future__ import annotations

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of similarities, statistics and sums over inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
