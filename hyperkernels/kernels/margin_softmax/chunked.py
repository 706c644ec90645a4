"""The backward of the class softmax a chunk of classes at a time, for a weight whose gradient is never whole."""

from __future__ import annotations

from typing import Any

import torch

from . import op
from .problem import (
    ABSENT,
    IGNORED,
    ClassBackwardCall,
    ClassStatisticsCall,
    ClassStatisticsResult,
    Needs,
    Options,
    count_classes,
)
from .receivers import Receiver, check

CHUNK = 64 * 2**20  # bytes of the weight's gradient, unless the receiver says how many classes


def _weight_is_wanted(ctx: Any) -> bool:
    """Not where autograd was asked for other gradients alone: nothing is updated then."""
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[1][0]))
    except RuntimeError:
        raise RuntimeError(
            "a weight that is updated in its backward has no gradient to return: call backward()"
        ) from None


def _local_target(target: torch.Tensor, first: int, last: int, classes: int, options: Options) -> torch.Tensor:
    """The target as one of the classes first to last; one that is no class at all stays so."""
    counted = target != options.ignore_index
    here = counted & (target != options.absent_index)
    local = torch.where(here & (target >= first) & (target < last), target - first, ABSENT)
    local = torch.where(here & ((target < 0) | (target >= classes)), classes, local)
    return torch.where(counted, local, IGNORED)


def _chunk(whole: ClassBackwardCall, first: int, last: int, classes: int) -> ClassBackwardCall:
    """The backward of the classes first to last, whole tiles of them."""
    p, k, block = whole.problem, whole.options.sub_centers, whole.tiles.block
    rows, of_classes = slice(first * k, last * k), slice(first, last)

    def part(per_class: torch.Tensor | None) -> torch.Tensor | None:
        return None if per_class is None else per_class[of_classes]

    return whole._replace(
        problem=p._replace(
            weight=p.weight[rows] if p.classes is None else p.weight,
            target=_local_target(p.target, first, last, classes, whole.options),
            class_scale=part(p.class_scale),
            bias=part(p.bias),
            classes=part(p.classes),
        ),
        forward=whole.forward._replace(w_norm=whole.forward.w_norm[rows]),
        skip=whole.skip[:, first // block : -(-last // block)] if whole.skip.numel() else whole.skip,
        options=whole.options._replace(ignore_index=IGNORED, absent_index=ABSENT),
    )


class _Chunked(torch.autograd.Function):
    """The op `class_statistics`, its arguments after the first two."""

    @staticmethod
    def forward(receiver: Receiver, backend: str, *flat: Any) -> tuple[torch.Tensor, ...]:
        return op.STATISTICS.run(flat, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.receiver, ctx.backend, *flat = inputs
        op.STATISTICS.save(ctx, tuple(flat), output)
        ctx.version = ctx.receiver.weight._version

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        check(ctx)
        call, result = op.STATISTICS.restored(ctx)
        whole = op.prepared(call, result, op.STATISTICS.built(grads), ctx.backend)
        wanted = op.STATISTICS.needs(ctx.needs_input_grad[2:])
        needs = Needs("x" in wanted, _weight_is_wanted(ctx), "class_scale" in wanted, "bias" in wanted)
        whole = whole._replace(needs=needs)
        weight, sampled, k = call.problem.weight, call.problem.classes, call.options.sub_centers
        classes, block = count_classes(weight, sampled, k), call.tiles.block
        row_bytes = max(1, k * weight.shape[1] * weight.element_size())
        chunk = max(1, (ctx.receiver.chunk_classes or CHUNK // row_bytes) // block) * block  # whole tiles
        deliver = ctx.receiver.begin([*whole.incoming]) if needs.need_weight else None
        dx, per_class = None, []
        for first in range(0, classes, chunk):
            last = min(classes, first + chunk)
            part, dweight, *of_classes = op.BACKWARD(_chunk(whole, first, last, classes), ctx.backend)
            per_class.append(of_classes)
            # What lies along x is taken from each part by itself, and the parts add up.
            dx = part.to(call.problem.scale.dtype) if dx is None else dx.add_(part)
            # The gradient of |x| belongs to one part alone.
            whole = whole._replace(incoming=whole.incoming._replace(d_x_norm=torch.zeros_like(whole.incoming.d_x_norm)))
            if deliver is not None:
                deliver(dweight, slice(first * k, last * k))
            del part, dweight  # or the next chunk's would lie beside them
        dclass_scale, dbias = (torch.cat(parts) for parts in zip(*per_class, strict=True))
        refused = ctx.receiver.refused() if deliver is not None else None
        if refused is not None and dx is not None:
            dx.masked_fill_(refused, torch.inf)  # so that the gradient scaler hears of it
        found = {
            "x": dx.to(call.problem.x.dtype) if dx is not None else None,
            "scale": op.scale_gradient(whole.incoming, result) if "scale" in wanted else None,
            "class_scale": dclass_scale,
            "bias": dbias,
        }
        return (None, None, *op.STATISTICS.by_position(found, wanted))


def class_statistics(receiver: Receiver, call: ClassStatisticsCall, backend: str) -> ClassStatisticsResult:
    """The op; its backward serves the receiver."""
    out: tuple[torch.Tensor, ...] = _Chunked.apply(receiver, backend, *op.STATISTICS.flat(call))
    return op.STATISTICS.built(out)
