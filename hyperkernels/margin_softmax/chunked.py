"""The backward of the class softmax a chunk of classes at a time, for a weight whose gradient is never whole.

A receiver hangs on the weight. It is handed the gradient of each chunk of rows as soon as that is there, before the
next takes its place, and may write these rows of the weight at once: the chunks that follow, and the gradient of x,
read none of them again. Autograd is given no gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from . import op
from .reference import rows_of_classes

CHUNK = 64 * 2**20  # bytes of the weight's gradient, unless the receiver says how many classes

_ATTRIBUTE = "_gradient_receiver"
_IGNORED, _ABSENT = -1, -2  # as targets of a chunk

# A gradient, and whose it is: a slice of the rows that take part, or indices of the weight's rows.
Deliver = Callable[[torch.Tensor, Any], None]


class Receiver(Protocol):
    """Where the gradient of a weight goes instead of its ``.grad``."""

    weight: torch.Tensor
    chunk_classes: int | None

    def begin(self, incoming: list[torch.Tensor]) -> Deliver:
        """Called once a backward, with all that flows into it."""

    def refused(self) -> torch.Tensor | None:
        """A scalar, bool: whether this backward's gradient was found not to be finite. None: it was not looked at."""


class OfClasses:
    """The receiver where some classes alone take part, [R]: their rows are those of the weight."""

    def __init__(self, receiver: Receiver, classes: torch.Tensor, sub_centers: int) -> None:
        self.weight, self.chunk_classes, self.refused = receiver.weight, receiver.chunk_classes, receiver.refused
        self._receiver, self._rows = receiver, rows_of_classes(classes, sub_centers)

    def begin(self, incoming: list[torch.Tensor]) -> Deliver:
        deliver = self._receiver.begin(incoming)
        return lambda gradient, rows: deliver(gradient, self._rows[rows] if isinstance(rows, slice) else rows)


def attach(receiver: Receiver) -> None:
    setattr(receiver.weight, _ATTRIBUTE, receiver)


def detach(weight: torch.Tensor) -> None:
    delattr(weight, _ATTRIBUTE)


def receiver_of(weight: torch.Tensor) -> Receiver | None:
    return getattr(weight, _ATTRIBUTE, None)


def _check(ctx: Any) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("the weight is updated in its backward, which cannot be differentiated: no create_graph")
    if ctx.receiver.weight._version != ctx.version:
        raise RuntimeError(
            "the weight has been updated since this forward, as it is in every backward: each backward needs a forward "
            "of its own, after the last backward"
        )


def _weight_is_wanted(ctx: Any) -> bool:
    """Not where autograd was asked for other gradients alone: nothing is updated then."""
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[1][0]))
    except RuntimeError:
        raise RuntimeError(
            "a weight that is updated in its backward has no gradient to return: call backward()"
        ) from None


def _local_target(target: torch.Tensor, first: int, last: int, classes: int, ctx: Any) -> torch.Tensor:
    """The target as one of the classes first to last; one that is no class at all stays so."""
    ignore_index, absent_index = ctx.constants[5:7]
    counted = target != ignore_index
    here = counted & (target != absent_index)
    local = torch.where(here & (target >= first) & (target < last), target - first, _ABSENT)
    local = torch.where(here & ((target < 0) | (target >= classes)), classes, local)
    return torch.where(counted, local, _IGNORED)


class _Chunked(torch.autograd.Function):
    """The op `class_statistics`, its arguments after the first two."""

    @staticmethod
    def forward(receiver: Receiver, suffix: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = getattr(torch.ops.hyperkernels, f"class_statistics{suffix}")(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.receiver, ctx.suffix, *rest = inputs
        op.setup_context(ctx, tuple(rest), output)
        ctx.version = ctx.receiver.weight._version

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        _check(ctx)
        incoming, saved, skip, scale_slope = op.backward_arguments(ctx, grads, op.SKIP_ROWS[ctx.suffix])
        need_x, _, need_class_scale, need_bias = needs = [ctx.needs_input_grad[2 + i] for i in (0, 1, 4, 5)]
        needs[1] = _weight_is_wanted(ctx)
        x, weight, target, scale, class_scale, bias, transform, sampled, *of_rows, w_norm, kept = saved
        sub_centers, block = ctx.constants[1], ctx.constants[-2]
        classes = op.count_classes(weight, sampled, sub_centers)
        row_bytes = max(1, sub_centers * weight.shape[1] * weight.element_size())
        wanted = ctx.receiver.chunk_classes or CHUNK // row_bytes
        chunk = max(1, wanted // block) * block  # whole tiles
        constants = (*ctx.constants[:5], _IGNORED, _ABSENT, *ctx.constants[7:])
        kernel = getattr(torch.ops.hyperkernels, f"class_statistics_backward{ctx.suffix}")
        deliver = ctx.receiver.begin(incoming) if needs[1] else None
        dx, per_class = None, []
        for first in range(0, classes, chunk):
            last = min(classes, first + chunk)
            rows = slice(first * sub_centers, last * sub_centers)
            part, dweight, *of_classes = kernel(
                *incoming,
                x,
                weight[rows] if sampled is None else weight,
                _local_target(target, first, last, classes, ctx),
                scale,
                None if class_scale is None else class_scale[first:last],
                None if bias is None else bias[first:last],
                transform,
                None if sampled is None else sampled[first:last],
                *of_rows,
                w_norm[rows],
                kept,
                skip[:, first // block : -(-last // block)] if skip.numel() else skip,
                *constants,
                *needs,
            )
            per_class.append(of_classes)
            # What lies along x is taken from each part by itself, and the parts add up.
            dx = part.to(scale.dtype) if dx is None else dx.add_(part)
            incoming[2] = torch.zeros_like(incoming[2])  # the gradient of |x| belongs to one part alone
            if deliver is not None:
                deliver(dweight, rows)
            del part, dweight  # or the next chunk's would lie beside them
        dclass_scale, dbias = (torch.cat(parts) for parts in zip(*per_class, strict=True))
        refused = ctx.receiver.refused() if deliver is not None else None
        if refused is not None and dx is not None:
            dx.masked_fill_(refused, torch.inf)  # so that the gradient scaler hears of it
        dscale = None
        if ctx.needs_input_grad[2 + 3]:
            dscale = torch.ops.hyperkernels.class_statistics_dscale(incoming[0], scale_slope, x, weight, scale)
        return (
            None,
            None,
            dx.to(x.dtype) if need_x and dx is not None else None,
            None,
            None,
            dscale,
            dclass_scale if need_class_scale else None,
            dbias if need_bias else None,
            *[None] * 13,
        )


class _Whole(torch.autograd.Function):
    """The weight itself; its gradient, which the reference makes whole, goes to the receiver."""

    @staticmethod
    def forward(receiver: Receiver, weight: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.receiver = inputs[0]
        ctx.version = ctx.receiver.weight._version

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None]:
        _check(ctx)
        if gradient.layout == torch.sparse_coo:  # of the classes that took part
            gradient = gradient.coalesce()
            ctx.receiver.begin([gradient.values()])(gradient.values(), gradient.indices()[0])
        else:
            ctx.receiver.begin([gradient])(gradient, slice(None))
        return None, None


def class_statistics(receiver: Receiver, suffix: str, *arguments: Any) -> tuple[torch.Tensor, ...]:
    """The op `class_statistics` with this suffix; its backward serves the receiver."""
    outputs: tuple[torch.Tensor, ...] = _Chunked.apply(receiver, suffix, *arguments)
    return outputs


def whole(receiver: Receiver, weight: torch.Tensor) -> torch.Tensor:
    """The weight for a backward that makes its gradient in one piece."""
    served: torch.Tensor = _Whole.apply(receiver, weight)
    return served
