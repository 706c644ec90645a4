"""The unit-norm ops: schemas, shapes, autograd, and which backend runs them.

Each operation exists twice in the dispatcher: `unit_norm` has the C++ kernel for CPU tensors and the CUDA C++ kernel
for CUDA tensors, `unit_norm_triton` the Triton kernel. All work on the last dimension and return contiguous tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _backend
from .._fake import register_fake
from . import reference

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")


def _contiguous_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor, float], output: torch.Tensor) -> None:
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _define(suffix: str) -> None:
    """The three operations of one kernel set."""
    name = f"unit_norm{suffix}"
    backward_name = f"unit_norm_backward{suffix}"
    LIBRARY.define(f"{name}(Tensor x, float eps) -> Tensor")
    LIBRARY.define(f"{backward_name}(Tensor grad, Tensor x, float eps) -> Tensor")
    LIBRARY.define(f"unit_norm_{suffix}(Tensor(a!) x, float eps) -> ()")

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        # A gradient that is itself differentiated takes the formula that autograd can see through.
        if torch.is_grad_enabled():
            return reference.unit_norm_backward(grad, x, ctx.eps), None
        return getattr(torch.ops.hyperkernels, backward_name)(grad, x, ctx.eps), None

    register_fake(LIBRARY, name, lambda x, eps: _contiguous_like(x))
    register_fake(LIBRARY, backward_name, lambda g, x, eps: _contiguous_like(x))
    register_fake(LIBRARY, f"unit_norm_{suffix}", lambda x, eps: None)
    torch.library.register_autograd(f"hyperkernels::{name}", backward, setup_context=_setup_context, lib=LIBRARY)


def _register_triton() -> None:
    """Triton runs on CUDA, and on the CPU in its interpreter; it is imported at the first call."""

    def launch(kernel: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            from . import triton_kernels

            return getattr(triton_kernels, kernel)(*args)

        return call

    for device in ("CPU", "CUDA"):
        LIBRARY.impl("unit_norm_triton", launch("unit_norm"), device)
        LIBRARY.impl("unit_norm_backward_triton", launch("unit_norm_backward"), device)
        LIBRARY.impl("unit_norm__triton", launch("unit_norm_"), device)


_define("")
_define("_triton")
_register_triton()


def unit_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / max(|x|, eps) over the last dimension."""
    backend = _backend.select("unit_norm", x.device)
    if backend == "reference":
        return reference.unit_norm(x, eps)
    _backend.refuse_forward_mode("unit_norm", x)
    ops = torch.ops.hyperkernels
    kernel = ops.unit_norm_triton if backend == "triton" else ops.unit_norm
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return kernel(x, eps)
    # Nothing to record: going round the autograd wrapper halves the cost of a call on a small x.
    with torch._C._AutoDispatchBelowAutograd():
        return kernel(x, eps)


def unit_norm_(x: torch.Tensor, eps: float) -> None:
    """The same, written over a contiguous x."""
    backend = _backend.select("unit_norm", x.device)
    if backend == "reference":
        x.copy_(reference.unit_norm(x, eps))
        return
    ops = torch.ops.hyperkernels
    (ops.unit_norm__triton if backend == "triton" else ops.unit_norm_)(x, eps)
    # The dispatcher leaves the version counter of a custom op's argument alone; autograd needs it to refuse a stale x.
    if not torch.compiler.is_compiling() and not x.is_inference():
        torch.autograd.graph.increment_version(x)
