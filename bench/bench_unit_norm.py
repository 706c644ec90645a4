"""unit_norm against F.normalize and the copy of the same array."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import hyperkernels as hk

from .harness import Contender, Row, measure

OURS = "hyperkernels"


def rows(device: str = "cpu", quick: bool = False) -> list[list[Row]]:
    """One list of rows a shape, dtype and direction."""
    shapes = [(4_000, 512)] if quick else [(256, 512), (100_000, 512)]
    if device == "cuda":
        shapes = [(1_000_000, 512), (1_000_000, 129)] if not quick else [(100_000, 512)]
    dtypes = [torch.float32, torch.bfloat16] if device == "cuda" else [torch.float32]
    samples = 7 if quick else 21
    return [f(*s, dtype, device, samples) for s in shapes for dtype in dtypes for f in (_forward, _backward)]


def _backends(device: str) -> dict[str, str | None]:
    """Display name -> backend to force; None for the device's own, which carries our name."""
    return {OURS: None, "  Triton": "triton"} if device == "cuda" else {OURS: None}


def _forced(backend: str | None, f):
    if backend is None:
        return f

    def run(i: int):
        with hk.backend(backend):
            return f(i)

    return run


def _forward(n: int, d: int, dtype: torch.dtype, device: str, samples: int) -> list[Row]:
    xs = [torch.randn(n, d, device=device).to(dtype) for _ in range(3)]
    contenders = [Contender(name, _forced(b, lambda i: hk.unit_norm(xs[i]))) for name, b in _backends(device).items()]
    contenders += [
        Contender("F.normalize", lambda i: F.normalize(xs[i])),
        Contender("F.normalize, torch.compile", lambda i, f=torch.compile(F.normalize): f(xs[i])),
        Contender("floor: copy", lambda i: xs[i].clone(), is_floor=True),
    ]
    return _measure("unit_norm forward", contenders, n, d, dtype, device, samples, passes=2)


def _backward(n: int, d: int, dtype: torch.dtype, device: str, samples: int) -> list[Row]:
    xs = [torch.randn(n, d, device=device).to(dtype).requires_grad_() for _ in range(3)]
    gradients = [torch.randn(n, d, device=device).to(dtype) for _ in range(3)]

    def step(f, i: int):
        return torch.autograd.grad(f(xs[i]), xs[i], gradients[i])

    compiled = torch.compile(F.normalize)
    contenders = [Contender(name, _forced(b, lambda i: step(hk.unit_norm, i))) for name, b in _backends(device).items()]
    contenders += [
        Contender("F.normalize", lambda i: step(F.normalize, i)),
        Contender("F.normalize, torch.compile", lambda i: step(compiled, i)),
        Contender("floor: copy and add", lambda i: (xs[i].clone(), xs[i] + gradients[i]), is_floor=True),
    ]
    return _measure("unit_norm forward+backward", contenders, n, d, dtype, device, samples, passes=5)


def _measure(op, contenders, n, d, dtype, device, samples, passes) -> list[Row]:
    return measure(
        contenders,
        op=op,
        shape=f"{n} x {d}",
        dtype=str(dtype).removeprefix("torch."),
        work=float(passes * n * d * dtype.itemsize),
        unit="GB/s",
        device=device,
        samples=samples,
    )
