"""Dtypes of what is computed."""

from __future__ import annotations

import math

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of similarities, statistics and sums over inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float64 if has_float64(device) else torch.float32


def filled(shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of one number. Beyond the range of the dtype it is infinite, where torch.full would refuse it."""
    wide = widest_dtype(device)
    if abs(value) > torch.finfo(wide).max:
        value = math.copysign(math.inf, value)
    return torch.full(shape, value, dtype=wide, device=device).to(dtype)
