from __future__ import annotations

from typing import Any

import torch

from .. import _check
from ..kernels.margin_softmax import receivers
from .optimizer import RowOptimizer, Scaling


class _Receiver:
    """Applies the gradient of each chunk of rows as soon as it is computed."""

    def __init__(self, weight: torch.Tensor, optimizer: RowOptimizer, chunk_classes: int | None, scaler: Any) -> None:
        self.weight, self.optimizer, self.chunk_classes, self.scaler = weight, optimizer, chunk_classes, scaler
        self.scaling = Scaling()

    def _group(self) -> dict[str, Any]:
        # Looked up each time: loading a checkpoint replaces the groups.
        for group in self.optimizer.param_groups:
            if any(parameter is self.weight for parameter in group["params"]):
                return group
        raise ValueError("weight must be among the optimizer's parameters; it is not")

    def begin(self, incoming: list[torch.Tensor]) -> receivers.Deliver:
        group = self._group()
        self.scaling = Scaling()
        if self.scaler is not None and self.scaler.is_enabled():
            one = torch.ones((), device=self.weight.device)
            finite = torch.stack([tensor.isfinite().all() for tensor in incoming]).all()
            self.scaling = Scaling(self.scaler.scale(one), (~finite).float())

        def deliver(gradient: torch.Tensor, rows: Any) -> None:
            found_inf = self.scaling.found_inf
            if found_inf is not None:
                found_inf = torch.maximum(found_inf, (~gradient.isfinite().all()).float())
                self.scaling = self.scaling._replace(found_inf=found_inf)
            self.optimizer._update(self.weight, group, gradient.to(self.weight.dtype), rows, self.scaling)

        return deliver

    def refused(self) -> torch.Tensor | None:
        return None if self.scaling.found_inf is None else self.scaling.found_inf != 0


class UpdateHandle:
    """What ``update_in_backward`` returns: ``remove()`` ends it, and the weight has a ``.grad`` again."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight: torch.Tensor | None = weight

    def remove(self) -> None:
        if self._weight is not None:
            receivers.detach(self._weight)
        self._weight = None


def update_in_backward(
    weight: torch.nn.Parameter,
    optimizer: RowOptimizer,
    *,
    chunk_classes: int | None = None,
    scaler: Any = None,
) -> UpdateHandle:
    """Update the weight of a class head within its backward, a chunk of classes at a time.

    The heads of this package (``hk.nn``, ``hk.margin_softmax_loss``, ``hk.sface_loss``, ...) then compute the gradient
    of the weight chunk by chunk, and the optimizer applies each chunk at once: the gradient of the whole weight never
    exists, and ``weight.grad`` stays None. The steps are those of ``optimizer.step()`` after the backward.

        handle = hk.optim.update_in_backward(head.weight, optimizer)
        loss = head(backbone(images), labels)
        loss.backward()      # head.weight is updated here
        optimizer.step()     # all other parameters, as ever
        optimizer.zero_grad()

    Args:
        weight: the parameter of a head, [C * sub_centers, D] and contiguous.
        optimizer: an ``hk.optim`` optimizer that holds the weight. The options of its group are read in each backward,
            so schedulers work as usual.
        chunk_classes: classes in a chunk, at least 1, rounded down to whole tiles of the kernels; None: as many as make
            a gradient of 64 MiB.
        scaler: the ``torch.amp.GradScaler`` that scales the loss, or None. It unscales the gradients. Where one is not
            finite, its chunk and those after it are left out, and the gradient of x is made infinite, so that the
            scaler lowers its scale. Call ``scaler.step`` only with an optimizer that has other parameters too.

    Returns:
        A handle; ``handle.remove()`` ends it.

    Every backward updates: accumulation over several batches is not possible, nor is clipping by the norm of a gradient
    that never exists. A second backward after one forward (``retain_graph``), a second forward before its backward, and
    ``create_graph`` raise RuntimeError. ``torch.autograd.grad`` of other tensors updates nothing. A gradient that other
    functions add to ``weight.grad`` is applied by ``optimizer.step()``. The cosines are not kept for the backward,
    whatever ``workspace`` says.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("weight", weight, _check.FLOAT_DTYPES, dim=2)
    if not (weight.is_leaf and weight.requires_grad and weight.is_contiguous()):
        raise ValueError("weight must be a contiguous leaf that requires a gradient, such as a head's parameter")
    if not isinstance(optimizer, RowOptimizer):
        raise TypeError(f"optimizer must be one of hyperkernels.optim; got {type(optimizer).__name__}")
    if chunk_classes is not None:
        _check.integer("chunk_classes", chunk_classes, minimum=1)
    if scaler is not None and not (hasattr(scaler, "scale") and hasattr(scaler, "is_enabled")):
        raise TypeError(f"scaler must be a torch.amp.GradScaler; got {type(scaler).__name__}")
    if scaler is not None and weight.dtype == torch.float16:
        raise ValueError("weight must not be float16 with a scaler, which unscales no float16 gradients")
    if receivers.receiver_of(weight) is not None:
        raise ValueError("weight is updated in its backward already; remove() the handle of the first call")
    receiver = _Receiver(weight, optimizer, chunk_classes, scaler)
    receiver._group()
    receivers.attach(receiver)
    return UpdateHandle(weight)
