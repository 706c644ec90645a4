"""The ops of the family: schemas, shapes, autograd, and which backend runs them.

Each exists twice in the dispatcher: under its name with the C++ kernels for CPU tensors, and as `..._triton`. Matrices
are [N, D] with unit stride in the last dimension; the rows of x, y, h, block and v may be expanded (stride 0). t,
alpha and scale are in the accumulator's dtype and contiguous; order sorts the rows by their labels, and those of
segment k stand from offsets[k] to offsets[k + 1] in it. `reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _backend
from .._fake import register_fake
from . import reference
from .reference import accumulate_dtype

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")

# name: (inputs, other arguments)
_OPS = {
    "sphere_points": (("x", "y", "t"), "str kind"),
    "sphere_vectors": (("x", "v"), "str kind"),
    "sphere_residual": (("h", "block", "alpha"), ""),
    "scaled_unit_norm": (("x", "scale"), ""),
}


def _fake(name: str) -> Callable[..., torch.Tensor]:
    def fake(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if name == "sphere_points" and rest[-1] == "angle":
            return x.new_empty(x.shape[0], dtype=accumulate_dtype(x.dtype))
        return x.new_empty(x.shape)

    return fake


def _fake_backward(inputs: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    def fake(grad: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
        tensors, needs = args[:inputs], args[-inputs:]
        return tuple(
            t.new_empty(t.shape) if need else grad.new_empty(0) for t, need in zip(tensors, needs, strict=True)
        )

    return fake


def _no_second_derivative(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "the kernels of hyperkernels.sphere have no second derivative; use hyperkernels.backend('reference') for one"
    )


def _define(name: str, suffix: str) -> None:
    names, others = _OPS[name]
    signature = ", ".join(f"Tensor{'?' if n == 't' else ''} {n}" for n in names) + (f", {others}" if others else "")
    needs = ", ".join(f"bool need_{n}" for n in names)
    gradients = ", ".join(f"Tensor d{n}" for n in names)
    op, backward_op = f"{name}{suffix}", f"{name}_backward{suffix}"
    LIBRARY.define(f"{op}({signature}) -> Tensor")
    LIBRARY.define(f"{backward_op}(Tensor grad, {signature}, {needs}) -> ({gradients})")

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[: len(names)])
        ctx.others = inputs[len(names) :]

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[: len(names)]
        run = getattr(torch.ops.hyperkernels, backward_op)
        results = run(grad.contiguous(), *ctx.saved_tensors, *ctx.others, *needed)
        given = (g if need else None for g, need in zip(results, needed, strict=True))
        return (*given, *[None] * len(ctx.others))

    register_fake(LIBRARY, op, _fake(name))
    register_fake(LIBRARY, backward_op, _fake_backward(len(names)))
    torch.library.register_autograd(f"hyperkernels::{op}", backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"hyperkernels::{backward_op}", _no_second_derivative, lib=LIBRARY)


def _launch(function: str) -> Callable[..., Any]:
    """Triton runs on CUDA, and on the CPU in its interpreter; it is imported at the first call."""

    def call(*args: Any) -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, function)(*args)

    return call


for _name in _OPS:
    _define(_name, "")
    _define(_name, "_triton")
    for _device in ("CPU", "CUDA"):
        LIBRARY.impl(f"{_name}_triton", _launch(_name), _device)
        LIBRARY.impl(f"{_name}_backward_triton", _launch(f"{_name}_backward"), _device)


def _run(name: str, formula: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    backend = _backend.select("sphere", args[0].device)
    if backend == "reference":
        return formula(*args)
    _backend.refuse_forward_mode(name, *(a for a in args if isinstance(a, torch.Tensor)))
    kernel = getattr(torch.ops.hyperkernels, f"{name}_triton" if backend == "triton" else name)
    return kernel(*args)


def _define_segment_sum(op: str) -> None:
    """A sum's gradient is a gather, which PyTorch does well, and differentiates again."""

    def fake(x: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return x.new_empty((offsets.shape[0] - 1, x.shape[1]), dtype=accumulate_dtype(x.dtype))

    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x, labels = inputs[:2]
        ctx.save_for_backward(labels)
        ctx.dtype = x.dtype

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (labels,) = ctx.saved_tensors
        return reference.segment_gather(grad, labels).to(ctx.dtype), None, None, None

    LIBRARY.define(f"{op}(Tensor x, Tensor labels, Tensor order, Tensor offsets) -> Tensor")
    register_fake(LIBRARY, op, fake)
    torch.library.register_autograd(f"hyperkernels::{op}", backward, setup_context=setup_context, lib=LIBRARY)


_define_segment_sum("segment_sum")
_define_segment_sum("segment_sum_triton")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("segment_sum_triton", _launch("segment_sum"), _device)


def points(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor | None, kind: str) -> torch.Tensor:
    return _run("sphere_points", reference.points, x, y, t, kind)


def vectors(x: torch.Tensor, v: torch.Tensor, kind: str) -> torch.Tensor:
    return _run("sphere_vectors", reference.vectors, x, v, kind)


def residual(h: torch.Tensor, block: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return _run("sphere_residual", reference.residual, h, block, alpha)


def scaled_unit_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _run("scaled_unit_norm", reference.scaled_unit_norm, x, scale)


def segment_sum(x: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return _run("segment_sum", reference.segment_sum, x, labels, order, offsets)
