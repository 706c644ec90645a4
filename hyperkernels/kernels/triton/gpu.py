"""Which of the kernels' configurations the device wants."""

from __future__ import annotations

import torch

from ..._fake import is_dry


def table(major: int) -> str:
    """The row of the families' tables for an NVIDIA GPU, by the first number of its compute capability.

    One without a row of its own takes that of "sm_80", whose tiles fit the 99 KB of shared memory that a block has on
    the smallest (capability 8.6, 8.9 and 12).
    """
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def architecture(device: torch.device) -> str:
    """ "sm_80", "sm_90", "sm_100" or "gfx": the row of the families' tables. "sm_90" for the CPU, which is the
    interpreter's, and for FakeTensorMode where there is no GPU."""
    if device.type != "cuda" or (is_dry() and not torch.cuda.is_available()):
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx"
    return table(torch.cuda.get_device_capability(device)[0])
