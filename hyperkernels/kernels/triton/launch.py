"""The one way in which a Triton kernel is launched."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses import FakeTensor

# Whether a product and a sum are rounded once, as one fused operation: the accuracy of the kernels is proved with it.
# It is asked for at every launch, since compilers differ in what they do unasked.
FP_FUSION = True


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, which is a tensor or a tuple that begins with one.

    Nothing is launched for the tensors of FakeTensorMode, which have no data.
    The grid has one dimension: the second and third end at 65,535 programs.
    """
    first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
    if isinstance(first, FakeTensor):
        return
    with torch.cuda.device_of(first):
        kernel[(programs,)](*args, enable_fp_fusion=FP_FUSION, **constants)
