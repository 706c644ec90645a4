"""What every set of GPU kernels of unit_norm must satisfy, wherever it runs: the interpreter, the host, a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tests.support.accuracy import assert_as_accurate


class Kernels(NamedTuple):
    """The three entry points, on contiguous rows along the last dimension."""

    forward: Callable[[torch.Tensor, float], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    in_place: Callable[[torch.Tensor, float], object]


MAGNITUDES = (1e-44, 1e-40, 1e-38, 1e-30, 1e-19, 1e-3, 1e19, 1e30, 3e38)
FLOORS = (0.0, 1e-45, 1e-40, 1e-12, 10.0)


def peer(x: torch.Tensor, grad: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.detach().clone().requires_grad_()
    y = F.normalize(leaf, dim=-1, eps=eps)
    return y.detach(), torch.autograd.grad(y, leaf, grad)[0]


def check(kernels: Kernels, x: torch.Tensor, eps: float = 1e-12, grad: torch.Tensor | None = None) -> None:
    """Forward, backward and in place against F.normalize in float64, row by row: none hides behind a larger one.

    PyTorch may be exact on a short row by luck: a rounding unit of y is granted on top of twice its error, and two
    units of the terms that cancel in dx.
    """
    if grad is None:
        grad = torch.randn(x.shape, dtype=torch.float64, device=x.device).to(x.dtype)
    x_before, grad_before = x.clone(), grad.clone()
    y, dx = kernels.forward(x, eps), kernels.backward(grad, x, eps)
    assert y.is_contiguous() and dx.is_contiguous()
    torch.testing.assert_close(x, x_before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(grad, grad_before, rtol=0, atol=0, equal_nan=True)
    written = x.clone(memory_format=torch.contiguous_format)
    kernels.in_place(written, eps)
    theirs, truth = peer(x, grad, eps), peer(x.double(), grad.double(), eps)
    dim = x.shape[-1]
    if x.numel() == 0:
        return
    terms = grad.double() / torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True).clamp_min(eps)
    for what, mine, other, right, size in (
        ("y", y, theirs[0], truth[0], truth[0]),
        ("y in place", written, theirs[0], truth[0], truth[0]),
        ("dx", dx, theirs[1], truth[1], 2 * terms),
    ):
        magnitudes = torch.where(size.isfinite(), size, 0.0).reshape(-1, dim).norm(dim=-1).tolist()
        rows = zip(*(t.reshape(-1, dim).cpu() for t in (mine, other, right)), magnitudes, strict=True)
        for number, (a, b, c, magnitude) in enumerate(rows):
            if x.dtype == torch.float64:  # the truth is rounded as well, the longer the row the more
                magnitude *= 1 + dim**0.5 / 16
            name = f"{what}, row {number} of {tuple(x.shape)} {x.dtype}, eps {eps}"
            assert_as_accurate(a, b, c, magnitude=magnitude, what=name)


def check_shape(
    kernels: Kernels, rows: int, dim: int, dtype: torch.dtype, eps: float = 1e-12, device: str = "cpu"
) -> None:
    check(kernels, (torch.randn(rows, dim, dtype=torch.float64, device=device) * 3).to(dtype), eps)


def check_extreme(kernels: Kernels, dim: int, dtype: torch.dtype, eps: float, device: str = "cpu") -> None:
    """Rows of every magnitude side by side, one row that spans the whole range, and gradients of every magnitude."""
    largest = torch.finfo(dtype).max
    scale = torch.tensor([min(m, largest) for m in MAGNITUDES], dtype=torch.float64, device=device)[:, None]
    # Of one sign and within a factor of two, so that a row of 3e38 keeps the size it is here for.
    x = (scale * (torch.rand(len(MAGNITUDES), dim, dtype=torch.float64, device=device) * 0.5 + 0.5)).to(dtype)
    check(kernels, x, eps)
    ladder = torch.logspace(-44, 38, dim, dtype=torch.float64, device=device).clamp_max(largest)
    check(kernels, torch.stack([ladder, ladder.flip(0)]).to(dtype), eps)
    if dtype != torch.float64:
        # The product of x and such a gradient leaves float32 on its way to a result that fits.
        for size in (1e-42, min(2e38, largest)):
            grad = (torch.randn(len(MAGNITUDES), dim, dtype=torch.float64, device=device).clamp(-1, 1) * size).to(dtype)
            check(kernels, x, eps, grad)


def check_special(kernels: Kernels, dim: int, dtype: torch.dtype, eps: float, device: str = "cpu") -> None:
    """Zero, NaN and infinite elements and rows stay within their row."""
    x = torch.randn(12, dim, dtype=torch.float64, device=device).to(dtype)
    for row, special in ((1, 0.0), (4, math.nan), (7, math.inf), (10, -math.inf)):
        x[row, dim // 3] = special
        x[row + 1] = special
    x[0, 0] = -0.0
    check(kernels, x, eps)


def check_layouts(kernels: Kernels, dtype: torch.dtype, device: str = "cpu") -> None:
    """Empty, any rank, and views that are not contiguous (for entry points that take them)."""
    for shape in ((0, 5), (5, 0), (0,), (2, 0, 3)):
        check(kernels, torch.empty(shape, dtype=dtype, device=device))
    base = torch.randn(6, 5, 14, dtype=torch.float64, device=device).to(dtype)
    for view in (base[0, 0], base[:, :, ::2], base.transpose(0, 2), base.permute(1, 2, 0)[1:], base[:1, :1, :1]):
        grad = torch.randn(view.shape[::-1], dtype=torch.float64, device=device).to(dtype)
        check(kernels, view, grad=grad.permute(*range(view.dim())[::-1]))


def check_far_doubles(kernels: Kernels, dim: int, power: int, device: str = "cpu") -> None:
    """Rows of doubles whose squares leave their range. All that a power of two changes is the exponents: to the bit."""
    near, g = (torch.randint(-3, 4, (5, dim), device=device).double() for _ in range(2))
    near[:, 0] = torch.tensor([1.0, 1e3, 1.0, 2e3, 1.5e3], device=device)
    factor = 2.0**power
    for eps in (0.0, 1e3):
        y, dx = kernels.forward(near, eps), kernels.backward(g, near, eps)
        assert torch.equal(kernels.forward(near * factor, eps * factor), y)
        written = near * factor
        kernels.in_place(written, eps * factor)
        assert torch.equal(written, y)
        assert torch.equal(kernels.backward(g * factor, near * factor, eps * factor), dx)
        if -1000 < power < 1000:  # beyond, the gradient itself leaves them
            assert torch.equal(kernels.backward(g, near * factor, eps * factor) * factor, dx)
