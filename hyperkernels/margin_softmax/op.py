"""The class-statistics op: schema, shapes, autograd, and which backend runs it.

Two dispatcher ops carry the family, `class_statistics` and `class_statistics_backward`. The plan (how many classes a
tile holds, how many tiles of cosines are kept for the backward) is made here from the sizes alone, so that shapes are
known to the compiler and results do not depend on the machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import _backend
from . import reference

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")

LIBRARY.define(
    "class_statistics(Tensor x, Tensor weight, Tensor target, float scale, float eps, int ignore_index, "
    "SymInt block, SymInt kept_blocks) -> (Tensor neg_lse, Tensor target_cos, Tensor x_norm, Tensor hardest_cos, "
    "Tensor hardest_class, Tensor neg_cos_sum, Tensor log_sum, Tensor w_norm, Tensor kept)"
)
LIBRARY.define(
    "class_statistics_backward(Tensor d_neg_lse, Tensor d_target_cos, Tensor d_x_norm, Tensor d_neg_cos_sum, Tensor x, "
    "Tensor weight, Tensor target, Tensor x_norm, Tensor hardest_cos, Tensor log_sum, Tensor w_norm, Tensor kept, "
    "float scale, float eps, int ignore_index, SymInt block, SymInt kept_blocks, bool need_x, "
    "bool need_weight) -> (Tensor dx, Tensor dweight)"
)

SMALL = 4 * 2**20  # bytes that nobody misses


class ClassStatistics(NamedTuple):
    """Per-row statistics of the class cosines, [N] each; `hyperkernels.class_statistics` says what each is."""

    neg_lse: torch.Tensor
    target_cos: torch.Tensor
    x_norm: torch.Tensor
    hardest_cos: torch.Tensor
    hardest_class: torch.Tensor
    neg_cos_sum: torch.Tensor


def plan(n: int, c: int, d: int, itemsize: int, workspace: int | None) -> tuple[int, int]:
    """(classes in a tile, tiles whose cosines the forward keeps) within `workspace` bytes."""
    block = min(512, -(-c // (32 * 128)) * 128)  # about 32 tiles; smaller than 128 the products run slower
    blocks = -(-c // block)
    budget = max(c * d * itemsize // 4, SMALL) if workspace is None else workspace
    return block, min(blocks, budget // max(1, n * block * itemsize))


@torch.library.register_fake("hyperkernels::class_statistics", lib=LIBRARY)
def _fake(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    n, (block, kept_blocks) = x.shape[0], rest[-2:]
    rows = [x.new_empty(n) for _ in range(6)]
    rows.insert(4, target.new_empty(n))
    return (*rows, x.new_empty(weight.shape[0]), x.new_empty(kept_blocks * n * block))


@torch.library.register_fake("hyperkernels::class_statistics_backward", lib=LIBRARY)
def _fake_backward(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight, (need_x, need_weight) = args[4], args[5], args[-2:]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else weight.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, target, *ctx.constants = inputs
    _, _, x_norm, hardest_cos, hardest_class, _, log_sum, w_norm, kept = output
    ctx.mark_non_differentiable(hardest_cos, hardest_class, log_sum, w_norm, kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, target, x_norm, hardest_cos, log_sum, w_norm, kept)


def _backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    zeros = torch.zeros_like(saved[3])
    incoming = (zeros if grads[i] is None else grads[i] for i in (0, 1, 2, 5))
    need_x, need_weight = ctx.needs_input_grad[:2]
    dx, dweight = torch.ops.hyperkernels.class_statistics_backward(
        *incoming, *saved, *ctx.constants, need_x, need_weight
    )
    return (dx if need_x else None, dweight if need_weight else None, *[None] * 6)


def _no_second_derivative(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "the class softmax has no second derivative in its kernels; use hyperkernels.backend('reference') for one"
    )


torch.library.register_autograd("hyperkernels::class_statistics", _backward, setup_context=_setup_context, lib=LIBRARY)
# Without this torch would take the gradient for a constant and lose the second derivative in silence.
torch.library.register_autograd("hyperkernels::class_statistics_backward", _no_second_derivative, lib=LIBRARY)


def class_statistics(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C, D]
    target: torch.Tensor,  # [N]
    scale: float,
    eps: float,
    ignore_index: int,
    workspace: int | None,
) -> ClassStatistics:
    backend = _backend.select("margin_softmax", x.device)
    if backend == "reference":
        return ClassStatistics(*reference.class_statistics(x, weight, target, scale, eps, ignore_index))
    _backend.refuse_forward_mode("class_statistics", x, weight)
    for_backward = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    budget = workspace if for_backward else 0
    block, kept_blocks = plan(x.shape[0], weight.shape[0], x.shape[1], x.element_size(), budget)
    outputs = torch.ops.hyperkernels.class_statistics(x, weight, target, scale, eps, ignore_index, block, kept_blocks)
    return ClassStatistics(*outputs[:6])
