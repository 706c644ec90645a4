"""Triton kernels of the family, for CUDA and ROCm, and their launchers.

Arithmetic is float32 (float64 for float64). Every row is first brought near 1 by an exact power of two, as is its
gradient: squares then neither overflow nor underflow, whatever the row holds, and one formula serves rows of 1e-45 and
of 1e38 (float64: 1e-323 and 1e308). The floor `eps` reaches a kernel as mantissa * 2^exponent, so that a floor below
the smallest float32 keeps its value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .... import _check
from ...triton.launch import launch
from ...triton.math import exponent_of, grow, held, load, no_sums, power_of_two, quotient, root
from ...triton.rows import row_blocks, row_tile
from ..op import UnitNormBackwardCall, UnitNormCall, UnitNormInPlaceCall


@triton.jit
def _inverse_length(sum_of_squares, exponent, FLOOR: tl.constexpr, FLOOR_EXPONENT: tl.constexpr):
    """(norm, floor, 1 / max(norm, floor)), all in units of 2^exponent. A NaN norm stays NaN."""
    floor = FLOOR * power_of_two(held(FLOOR_EXPONENT - exponent, sum_of_squares.dtype), sum_of_squares.dtype)
    norm = root(sum_of_squares)
    return norm, floor, quotient(1.0, tl.where(norm < floor, floor, norm))


@triton.jit
def _row_exponent(largest, FLOOR_EXPONENT: tl.constexpr):
    """The power of two that brings max(largest, eps) near 1."""
    return held(tl.maximum(exponent_of(largest), FLOOR_EXPONENT), largest.dtype)


@triton.jit
def _radial(dot, sum_of_squares, norm, floor):
    """What times the row is the radial part of its gradient; 0 where the floor holds. The rounding of the square root
    stays out of it."""
    return tl.where(norm >= floor, quotient(dot, sum_of_squares), 0.0)


@triton.jit
def _tangent(grad, unit, radial, inverse, exponent):
    """((grad - unit * radial) * inverse) * 2^exponent; two factors, since |exponent| reaches twice what is held."""
    half = exponent >> 1
    change = (grad - unit * radial) * inverse
    return change * power_of_two(half, change.dtype) * power_of_two(exponent - half, change.dtype)


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(x_ptr, y_ptr, rows, FLOOR: tl.constexpr, FLOOR_EXPONENT: tl.constexpr, blocks):
    """Owns BLOCK_ROWS whole rows. Reads x once, writes y, which may be x, once; rows and norms stay in registers."""
    base, offsets, mask = row_tile(tl.program_id(0), 0, rows, blocks)
    x = load(x_ptr + base + offsets, mask)
    exponent = _row_exponent(tl.max(tl.abs(x), axis=1), FLOOR_EXPONENT)
    x = x * power_of_two(-exponent, x.dtype)[:, None]
    _, _, inverse = _inverse_length(tl.sum(x * x, axis=1), exponent, FLOOR, FLOOR_EXPONENT)
    tl.store(y_ptr + base + offsets, x * inverse[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(grad_ptr, x_ptr, dx_ptr, rows, FLOOR: tl.constexpr, FLOOR_EXPONENT: tl.constexpr, blocks):
    """Owns BLOCK_ROWS whole rows. Reads grad, that of y, and x once, writes dx once; y and norms are never stored."""
    base, offsets, mask = row_tile(tl.program_id(0), 0, rows, blocks)
    x = load(x_ptr + base + offsets, mask)
    grad = load(grad_ptr + base + offsets, mask)
    exponent = _row_exponent(tl.max(tl.abs(x), axis=1), FLOOR_EXPONENT)
    grad_exponent = exponent_of(tl.max(tl.abs(grad), axis=1))
    x = x * power_of_two(-exponent, x.dtype)[:, None]
    grad = grad * power_of_two(-grad_exponent, x.dtype)[:, None]
    total = tl.sum(x * x, axis=1)
    norm, floor, inverse = _inverse_length(total, exponent, FLOOR, FLOOR_EXPONENT)
    radial = _radial(tl.sum(x * grad, axis=1), total, norm, floor)
    dx = _tangent(grad, x, radial[:, None], inverse[:, None], (grad_exponent - exponent)[:, None])
    tl.store(dx_ptr + base + offsets, dx, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def forward_wide_kernel(x_ptr, y_ptr, rows, FLOOR: tl.constexpr, FLOOR_EXPONENT: tl.constexpr, blocks):
    """Owns one row, in blocks of BLOCK_D. Reads x twice (the second time from the caches), writes y once; the norm is
    never stored. The sum of squares moves to a larger unit whenever a block holds a larger element."""
    base, offsets, _ = row_tile(tl.program_id(0), 0, rows, blocks)
    total = no_sums(x_ptr, blocks.BLOCK_ROWS)
    exponent = _row_exponent(total, FLOOR_EXPONENT)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        x = load(x_ptr + base + start + offsets, offsets < blocks.D - start)
        exponent, factor = grow(exponent, tl.max(tl.abs(x), axis=1))
        x = x * power_of_two(-exponent, x.dtype)[:, None]
        total = total * factor * factor + tl.sum(x * x, axis=1)
    _, _, inverse = _inverse_length(total, exponent, FLOOR, FLOOR_EXPONENT)
    scale = power_of_two(-exponent, total.dtype)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        mask = offsets < blocks.D - start
        x = load(x_ptr + base + start + offsets, mask)
        tl.store(y_ptr + base + start + offsets, x * scale[:, None] * inverse[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows"])
def backward_wide_kernel(grad_ptr, x_ptr, dx_ptr, rows, FLOOR: tl.constexpr, FLOOR_EXPONENT: tl.constexpr, blocks):
    """Owns one row, in blocks of BLOCK_D. Reads grad and x twice (the second time from the caches), writes dx once; y
    and the norm are never stored."""
    base, offsets, _ = row_tile(tl.program_id(0), 0, rows, blocks)
    total = no_sums(x_ptr, blocks.BLOCK_ROWS)
    dot = total
    exponent = _row_exponent(total, FLOOR_EXPONENT)
    grad_exponent = exponent_of(total)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        mask = offsets < blocks.D - start
        x = load(x_ptr + base + start + offsets, mask)
        grad = load(grad_ptr + base + start + offsets, mask)
        exponent, factor = grow(exponent, tl.max(tl.abs(x), axis=1))
        grad_exponent, grad_factor = grow(grad_exponent, tl.max(tl.abs(grad), axis=1))
        x = x * power_of_two(-exponent, x.dtype)[:, None]
        grad = grad * power_of_two(-grad_exponent, x.dtype)[:, None]
        total = total * factor * factor + tl.sum(x * x, axis=1)
        dot = dot * factor * grad_factor + tl.sum(x * grad, axis=1)
    norm, floor, inverse = _inverse_length(total, exponent, FLOOR, FLOOR_EXPONENT)
    radial = _radial(dot, total, norm, floor)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        mask = offsets < blocks.D - start
        x = load(x_ptr + base + start + offsets, mask)
        grad = load(grad_ptr + base + start + offsets, mask)
        x = x * power_of_two(-exponent, x.dtype)[:, None]
        grad = grad * power_of_two(-grad_exponent, x.dtype)[:, None]
        dx = _tangent(grad, x, radial[:, None], inverse[:, None], (grad_exponent - exponent)[:, None])
        tl.store(dx_ptr + base + start + offsets, dx, mask=mask)


class UnitNormConfiguration(NamedTuple):
    """How rows of one width are cut into programs."""

    block_rows: int
    block_d: int
    warps: int
    wide: bool = False


TILE = 1024  # elements held by one warp: 32 a lane
WIDE_BLOCK = 4096


def configuration(dim: int, itemsize: int) -> UnitNormConfiguration:
    """A row of up to TILE elements stays within one warp, so that its sums need neither shared memory nor a barrier.
    Longer rows take more warps at about the same number of elements a lane, and rows past 16,384 elements (float64:
    8,192) a loop."""
    block_d = triton.next_power_of_2(dim)
    if block_d <= 64:  # the numbers kept per row cost registers too: at most one row a lane
        return UnitNormConfiguration(min(128, 2 * TILE // block_d), block_d, 4)
    if block_d <= TILE:
        return UnitNormConfiguration(TILE // block_d, block_d, 1)
    if block_d <= (8192 if itemsize == 8 else 16384):
        return UnitNormConfiguration(1, block_d, min(16, block_d // 512))
    return UnitNormConfiguration(1, WIDE_BLOCK, 8, wide=True)


def floor_constants(eps: float, dtype: torch.dtype) -> dict[str, float | int]:
    """eps as the kernels take it. Past the square of the largest power that is held, and below that of the smallest, no
    row can tell the difference."""
    limit = 2 * (1022 if dtype == torch.float64 else 126)
    mantissa, exponent = math.frexp(eps)
    return {"FLOOR": 2 * mantissa, "FLOOR_EXPONENT": max(-limit, min(limit, exponent - 1)) if eps > 0 else -limit}


def _launch(
    narrow: triton.JITFunction, wide: triton.JITFunction, tensors: tuple[torch.Tensor, ...], eps: float
) -> None:
    x = tensors[0]
    if x.numel() == 0:
        return
    dim = x.shape[-1]
    rows = x.numel() // dim
    config = configuration(dim, x.element_size())
    kernel = wide if config.wide else narrow
    launch(
        kernel,
        triton.cdiv(rows, config.block_rows),
        *tensors,
        rows,
        **floor_constants(eps, x.dtype),
        blocks=row_blocks(dim, config.block_rows, config.block_d),
        num_warps=config.warps,
    )


def _check_rows(x: torch.Tensor) -> None:
    _check.tensor("x", x, _check.FLOAT_DTYPES)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension; got a scalar")


def unit_norm(call: UnitNormCall) -> torch.Tensor:
    """x / max(|x|, eps) over the last dimension; contiguous."""
    x, eps = call
    _check_rows(x)
    x = x.contiguous()
    y = torch.empty_like(x)
    _launch(forward_kernel, forward_wide_kernel, (x, y), eps)
    return y


def unit_norm_(call: UnitNormInPlaceCall) -> None:
    """The same, written over x."""
    x, eps = call
    _check_rows(x)
    y = x.contiguous()
    _launch(forward_kernel, forward_wide_kernel, (y, y), eps)
    if y is not x:
        x.copy_(y)


def unit_norm_backward(call: UnitNormBackwardCall) -> torch.Tensor:
    """The gradient of `unit_norm` with respect to x; contiguous."""
    grad, x, eps = call
    _check_rows(x)
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise ValueError(
            f"grad must have the shape and dtype of x, {tuple(x.shape)} {x.dtype}; got {tuple(grad.shape)} {grad.dtype}"
        )
    grad, x = grad.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    _launch(backward_kernel, backward_wide_kernel, (grad, x, dx), eps)
    return dx
