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
def quotient(a, b):
    """Rounded correctly."""
    return a / b if b.dtype == tl.float64 else tl.math.div_rn(a, b)


@triton.jit
def held(exponent, dtype: tl.constexpr):
    """The exponent, clamped so that its power of two and the inverse of that are normal numbers."""
    limit: tl.constexpr = 1022 if dtype == tl.float64 else 126
    return tl.minimum(tl.maximum(exponent, -limit), limit)


@triton.jit
def exponent_of(largest):
    """floor(log2(largest)), clamped by `held`: int32. The limit for inf and NaN."""
    if largest.dtype == tl.float64:
        exponent = (largest.to(tl.int64, bitcast=True) >> 52).to(tl.int32) - 1023
    else:
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 127
    return held(exponent, largest.dtype)


@triton.jit
def power_of_two(exponent, dtype: tl.constexpr):
    """2^exponent, exactly, of an exponent that `held` has clamped."""
    if dtype == tl.float64:
        power = ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def grow(exponent, largest):
    """(new running exponent, factor that moves a sum from the old unit to the new one)."""
    grown = tl.maximum(exponent, exponent_of(largest))
    return grown, power_of_two(held(exponent - grown, largest.dtype), largest.dtype)


@triton.jit
def no_sums(pointer, BLOCK_ROWS: tl.constexpr):
    """Zeros in the dtype of the arithmetic on what the pointer points to."""
    dtype: tl.constexpr = tl.float64 if pointer.dtype.element_ty == tl.float64 else tl.float32
    return tl.zeros([BLOCK_ROWS], dtype)


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
