"""Autocast on any device, also on those that have none, as "meta"."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ._backend import _untraced


# Compilers of older torches do not know the question.
@_untraced
def _available(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast computes in on the device of x; None where it is off, and for float64, which stays as it
    is."""
    kind = x.device.type
    if x.dtype == torch.float64 or not (_available(kind) and torch.is_autocast_enabled(kind)):
        return None
    return torch.get_autocast_dtype(kind)


def autocast(x: torch.Tensor, dtype: torch.dtype | None) -> Any:
    """Compute in that dtype on the device of x, whatever autocast says around it; None: in the tensors' own."""
    kind = x.device.type
    if not _available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype, enabled=dtype is not None)
