"""The ops of the optimisers: schemas, and which backend runs them.

Each exists twice in the dispatcher: `sgd_rows_` and `adamw_rows_` have the C++ kernels for CPU tensors, `..._triton`
the Triton kernels. weight and its state are contiguous [R, D] and written in place, the state in the accumulator's
dtype; step [R] int32 counts the updates of each row. gradient [n, D] belongs to the distinct rows [n], or to all of
them in order where rows is None. `reference` says what the other arguments are.
`sphere_sgd_` and `sphere_adam_` take a list of parameters, each contiguous [R, D], and their states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _backend
from .._fake import register_fake
from . import reference

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")

_GRADIENT = "Tensor gradient, Tensor? rows, Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf, float lr"
_GRADIENTS = "Tensor[] gradients, Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf, float lr"
_SCHEMAS = {
    "sgd_rows_": f"(Tensor(a!) weight, Tensor(b!)? momentum_buffer, Tensor(c!) step, {_GRADIENT}, float momentum, "
    "float dampening, float weight_decay, bool nesterov, bool maximize) -> ()",
    "adamw_rows_": f"(Tensor(a!) weight, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step, {_GRADIENT}, "
    "float beta1, float beta2, float eps, float weight_decay, bool maximize) -> ()",
    "sphere_sgd_": f"(Tensor(a!)[] points, Tensor(b!)[] momentum_buffers, Tensor(c!)[] steps, {_GRADIENTS}, "
    "float momentum, float dampening, bool nesterov, bool maximize) -> ()",
    "sphere_adam_": "(Tensor(a!)[] points, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    f"Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, {_GRADIENTS}, float beta1, float beta2, float eps, "
    "bool maximize) -> ()",
}


def _launch(name: str) -> Callable[..., None]:
    """Triton runs on CUDA, and on the CPU in its interpreter; it is imported at the first call."""

    def call(*args: Any) -> None:
        from . import triton_kernels, triton_sphere

        getattr(triton_sphere if name.startswith("sphere") else triton_kernels, name)(*args)

    return call


for _name, _schema in _SCHEMAS.items():
    for _op in (_name, f"{_name}triton"):
        LIBRARY.define(_op + _schema)
        register_fake(LIBRARY, _op, lambda *args: None)
    for _device in ("CPU", "CUDA"):
        LIBRARY.impl(f"{_name}triton", _launch(_name), _device)


def _run(name: str, *args: Any) -> None:
    written = args[0] if isinstance(args[0], list) else [args[0]]
    backend = _backend.select("optim", written[0].device)
    if backend == "reference":
        getattr(reference, name)(*args)
        return
    getattr(torch.ops.hyperkernels, f"{name}triton" if backend == "triton" else name)(*args)
    # The dispatcher leaves the version counter of a custom op's argument alone; autograd needs it to refuse a stale
    # weight.
    if torch.compiler.is_compiling():
        return
    for weight in written:
        if not weight.is_inference():
            torch.autograd.graph.increment_version(weight)


def sgd_rows_(*args: Any) -> None:
    """The arguments of `reference.sgd_rows_`."""
    _run("sgd_rows_", *args)


def adamw_rows_(*args: Any) -> None:
    """The arguments of `reference.adamw_rows_`."""
    _run("adamw_rows_", *args)


def sphere_sgd_(*args: Any) -> None:
    """The arguments of `reference.sphere_sgd_`, of one parameter at least."""
    _run("sphere_sgd_", *args)


def sphere_adam_(*args: Any) -> None:
    """The arguments of `reference.sphere_adam_`, of one parameter at least."""
    _run("sphere_adam_", *args)
