"""Rows for the functions on the sphere: scattered, and at the edges."""

import torch
import torch.nn.functional as F

NARROW = [torch.float32, torch.bfloat16, torch.float16]


def near(n, d, spread, dtype=torch.float64):
    """Rows of any length within some angle of one direction."""
    center = F.normalize(torch.randn(d, dtype=torch.float64), dim=0)
    rows = center + spread * F.normalize(torch.randn(n, d, dtype=torch.float64)) * torch.rand(n, 1)
    return (rows * (torch.rand(n, 1) + 0.5)).to(dtype)


def special(dtype, d=5):
    """Pairs of rows that coincide, are opposite, zero, nearly each of these; and their gradient's leaves."""
    a = torch.randn(9, d, dtype=torch.float64)
    b = torch.randn(9, d, dtype=torch.float64)
    b[0], b[1], b[2], a[3], a[4], b[4] = a[0], -a[1], 0, 0, 0, 0
    b[5], b[6] = 3 * a[5] + 1e-7 * b[5], -a[6] + 1e-4 * b[6]
    a[7], b[7] = 0.0, 0.0
    a[7, 0], b[7, 0] = 1, -1
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


def finite(value, *leaves):
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), leaves, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
