"""Which of the kernels' configurations the device wants."""

from __future__ import annotations

import torch


def architecture() -> str:
    """ "sm_80", "sm_90", "sm_100" or "gfx": a row of the families' tables. Without a device, the interpreter's."""
    if torch.version.hip is not None:
        return "gfx"
    if not torch.cuda.is_available():
        return "sm_90"
    major = torch.cuda.get_device_capability()[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"
