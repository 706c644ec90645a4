"""Shapes without numbers: what an op returns for meta tensors, and to a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def is_dry() -> bool:
    """Whether FakeTensorMode is on with known sizes; a compiler's has symbols for them."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return mode is not None and mode.shape_env is None


def _tensors(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    flat = (v for a in arguments for v in (a if isinstance(a, (list, tuple)) else (a,)))
    return [v for v in flat if isinstance(v, torch.Tensor)]


def register_fake(library: torch.library.Library, op: str, fake: Callable[..., Any]) -> None:
    """``fake`` makes the results of hyperkernels::``op`` for tensors on the meta device.

    A single meta tensor among the arguments brings the dispatcher here. With others that are on a device the results
    would be that device's memory, which nobody has written: a mixture is refused.
    """

    def checked(*arguments: Any) -> Any:
        if len({t.device.type == "meta" for t in _tensors(arguments)}) > 1:
            raise ValueError(f"{op}: either all tensors must be on the meta device or none; got a mixture")
        return fake(*arguments)

    torch.library.register_fake(f"hyperkernels::{op}", checked, lib=library)
