"""Where the gradient of a weight goes instead of its ``.grad``.

A receiver hangs on the weight. It is handed the gradient of each chunk of rows as soon as that is there, before the
next takes its place, and may write these rows of the weight at once: the chunks that follow, and the gradient of x,
read none of them again. Autograd is given no gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .rows import rows_of_classes

_ATTRIBUTE = "_gradient_receiver"

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


def check(ctx: Any) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("the weight is updated in its backward, which cannot be differentiated: no create_graph")
    if ctx.receiver.weight._version != ctx.version:
        raise RuntimeError(
            "the weight has been updated since this forward, as it is in every backward: each backward needs a forward "
            "of its own, after the last backward"
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
        check(ctx)
        if gradient.layout == torch.sparse_coo:  # of the classes that took part
            gradient = gradient.coalesce()
            ctx.receiver.begin([gradient.values()])(gradient.values(), gradient.indices()[0])
        else:
            ctx.receiver.begin([gradient])(gradient, slice(None))
        return None, None


def whole(receiver: Receiver, weight: torch.Tensor) -> torch.Tensor:
    """The weight for a backward that makes its gradient in one piece."""
    served: torch.Tensor = _Whole.apply(receiver, weight)
    return served
