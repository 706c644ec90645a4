"""The head under test: which margin, which implementation, and what its step costs in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

import hyperkernels as hk
from bench.memory import peak_bytes

HEADS = ("fused", "reference", "compile")
MARGINS: dict[str, tuple[Callable[[float], hk.margins.Margin], float]] = {
    "arcface": (hk.margins.ArcFace, 0.3),
    "cosface": (hk.margins.CosFace, 0.2),
    "normface": (lambda m: hk.margins.NormFace(), 0.0),
}

Head = hk.nn.MarginSoftmax | hk.nn.PartialFC
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_margin(name: str, size: float | None) -> hk.margins.Margin:
    make, default = MARGINS[name]
    return make(default if size is None else size)


def backend_of(head: str) -> contextlib.AbstractContextManager[None]:
    """The context in which the head's forward and backward must run."""
    return contextlib.nullcontext() if head == "fused" else hk.backend("reference")


def loss_of(head: str, module: Head) -> Loss:
    """The callable to train with; it shares the module's weight."""
    compiled: Loss = torch.compile(module) if head == "compile" else module
    return compiled


def head_peak_bytes(head: str, module: Head, rows: int) -> int | None:
    """Most memory one forward and backward of the fresh ``module`` hold at a time for so many rows of this process, in
    bytes, the gradients they return included.

    None where the system cannot tell.
    """
    loss, device = loss_of(head, module), module.weight.device
    x = torch.randn(rows, module.embedding_size, device=device, requires_grad=True)
    target = torch.randint(0, module.num_classes, (rows,), device=device)

    def step() -> None:
        torch.autograd.grad(loss(x, target), [x, module.weight])

    with backend_of(head):
        step()  # compiles, and creates what lives for ever
        try:
            return peak_bytes(step, device.type)
        except OSError:
            return None
