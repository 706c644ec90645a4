"""A forced backend under torch.compile: one graph, the eager numbers, and nothing of the machine traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _backend

N, C, D = 6, 9, 8
FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "unit_norm": lambda x, w, target: (hk.unit_norm(x) * hk.unit_norm(w[:N]).exp()).sum(),
    "margin_softmax": lambda x, w, target: hk.margin_softmax_loss(x, w, target),
    "pair_mining": lambda x, w, target: hk.losses.info_nce(x, ref=w[:N]),
    "sphere": lambda x, w, target: hk.sphere.slerp(x, w[:N], 0.3).exp().sum(),
}


def untraceable() -> bool:
    """True, and the end of the graph for a compiler that looks inside."""
    torch._dynamo.graph_break()
    return True


def check(family: str, backend: str, forced_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forced_by`: block or environment."""
    for fact in ("has_triton", "has_cuda_kernels", "_built_for_these_gpus", "_interpreting"):
        if getattr(_backend, fact)():
            monkeypatch.setattr(_backend, fact, untraceable)
    x, w = torch.randn(N, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    target = torch.randint(C, (N,))
    function = FUNCTIONS[family]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    if forced_by == "environment":
        monkeypatch.setenv(_backend.ENV_VARIABLE, backend)
    with hk.backend(backend) if forced_by == "block" else contextlib.nullcontext():
        found = [f(x, w, target) for f in (compiled, function)]
        gradients = [torch.autograd.grad(value, (x, w), allow_unused=True) for value in found]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)
