# mypy: ignore-errors
"""Device functions of several families."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load(pointers, mask):
    """Elements in the dtype of the arithmetic, 0 outside the mask."""
    value = tl.load(pointers, mask=mask, other=0.0)
    return value if value.dtype == tl.float64 else value.to(tl.float32)


@triton.jit
def mask_if(condition, mask):
    """The mask where a scalar condition holds, else nothing. Some interpreters take no scalar for a mask or for a part
    of one."""
    return tl.where(condition, mask, False)


@triton.jit
def root(x):
    """Rounded correctly."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.math.sqrt_rn(x)


@triton.jit
def softplus(z):
    """max(z, 0) + log(1 + y), y = exp(-|z|), with full relative precision: log(1 + y) = 2 artanh(y / (2 + y))."""
    terms: tl.constexpr = 17 if z.dtype == tl.float64 else 8
    y = tl.exp(-tl.abs(z))
    t = y / (2.0 + y)
    square = t * t
    series = tl.full(z.shape, 1.0 / (2 * terms + 1), z.dtype)
    for i in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - i) - 1)
    return tl.maximum(z, 0.0) + 2.0 * t * series


@triton.jit
def sigmoid(z):
    y = tl.exp(-tl.abs(z))
    return tl.where(z < 0, y, 1.0) / (1.0 + y)
