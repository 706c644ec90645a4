# mypy: ignore-errors
"""Triton kernels of the optimisers, for CUDA and ROCm, and their launchers.

A program owns whole rows: it reads each row, its state and its gradient once, and writes them once. Numbers of the
host come as float64, so that float64 weights lose nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ...triton.math import load, quotient, root
from ...triton.rows import row_blocks
from ..problem import AdamWRowsCall, PointGradients, RowGradient, SgdRowsCall, SphereAdamCall


class DeviceGradient(NamedTuple):
    """The gradient, and the numbers that come with it on the device: one each, or None."""

    gradient: torch.Tensor  # [count, D]
    index: torch.Tensor | None  # [count], the rows that it belongs to; None: all of them
    lr: torch.Tensor | None
    grad_scale: torch.Tensor | None
    found_inf: torch.Tensor | None


@triton.jit
def _number(value, dtype: tl.constexpr):
    """A number of the host; the interpreter brings it as Python's own."""
    return tl.full([], value, dtype)


@triton.jit
def _rows(given, count, rows, BLOCK_ROWS: tl.constexpr):
    """(the program's entries of the gradient, their rows, which of them there are), [BLOCK_ROWS]."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = entry < count
    row = entry
    if given.index is not None:
        row = tl.load(given.index + entry, mask=there, other=-1)
        there = there & (row >= 0) & (row < rows)
    return entry, row, there


@triton.jit
def _is_left_out(given):
    """Whether nothing changes, since some gradient is not finite."""
    left_out = False
    if given.found_inf is not None:
        left_out = tl.load(given.found_inf) != 0
    return left_out


@triton.jit
def _rate(lr, given, dtype: tl.constexpr):
    """The learning rate, from the host or from the device."""
    return _number(lr, dtype) if given.lr is None else tl.load(given.lr).to(dtype)


@triton.jit
def _unscale(given, MAXIMIZE: tl.constexpr, dtype: tl.constexpr):
    """The factor of the gradient."""
    sign: tl.constexpr = -1.0 if MAXIMIZE else 1.0
    factor = tl.full([], sign, dtype)
    if given.grad_scale is not None:
        factor = quotient(factor, tl.load(given.grad_scale).to(dtype))
    return factor


@triton.jit
def _next(step):
    """The count after one more update. It stays at its maximum, where the corrections of the moments are long 1."""
    return step + (step < 2**31 - 1).to(tl.int32)


@triton.jit
def _correction(log_beta, step):
    """1 - beta^step, float64. It loses 1 / (1 - beta) units in the last place."""
    return 1.0 - tl.exp(step.to(tl.float64) * log_beta)


@triton.jit(do_not_specialize=["count", "rows"])
def sgd_kernel(
    weight_ptr,  # [rows, D]
    buffer_ptr,  # [rows, D] or None
    step_ptr,  # [rows]
    given,  # DeviceGradient
    count, rows,
    lr: tl.float64, momentum: tl.float64, taken: tl.float64, weight_decay: tl.float64,
    NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, blocks,
):  # fmt: skip
    if _is_left_out(given):
        return
    dtype: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    entry, row, there = _rows(given, count, rows, blocks.BLOCK_ROWS)
    step = tl.load(step_ptr + row, mask=there, other=0)
    unscale = _unscale(given, MAXIMIZE, dtype)
    rate = _rate(lr, given, dtype)
    momentum, weight_decay = _number(momentum, dtype), _number(weight_decay, dtype)
    kept = tl.where(step == 0, 0.0, momentum)[:, None]
    share = tl.where(step == 0, 1.0, _number(taken, dtype))[:, None]
    weight_rows, gradient_rows = weight_ptr + (row * blocks.D)[:, None], given.gradient + (entry * blocks.D)[:, None]
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column = start + tl.arange(0, blocks.BLOCK_D)[None, :]
        mask = there[:, None] & (column < blocks.D)
        weight = load(weight_rows + column, mask)
        change = load(gradient_rows + column, mask) * unscale + weight_decay * weight
        if buffer_ptr is not None:
            buffer_rows = buffer_ptr + (row * blocks.D)[:, None]
            moved = kept * load(buffer_rows + column, mask) + share * change
            tl.store(buffer_rows + column, moved, mask=mask)
            change = change + momentum * moved if NESTEROV else moved
        tl.store(weight_rows + column, weight - rate * change, mask=mask)
    tl.store(step_ptr + row, _next(step), mask=there)


@triton.jit(do_not_specialize=["count", "rows"])
def adamw_kernel(
    weight_ptr,  # [rows, D]
    mean_ptr,  # [rows, D]
    square_ptr,  # [rows, D]
    step_ptr,  # [rows]
    given,  # DeviceGradient
    count, rows,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, rest1: tl.float64, rest2: tl.float64,  # rest: 1 - beta
    log_beta1: tl.float64, log_beta2: tl.float64, eps: tl.float64, weight_decay: tl.float64,
    MAXIMIZE: tl.constexpr, blocks,
):  # fmt: skip
    if _is_left_out(given):
        return
    dtype: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    entry, row, there = _rows(given, count, rows, blocks.BLOCK_ROWS)
    step = _next(tl.load(step_ptr + row, mask=there, other=0))
    unscale = _unscale(given, MAXIMIZE, dtype)
    rate = _rate(lr, given, tl.float64)
    # In this order what is known of a row stays in registers.
    inverse_root = (1.0 / tl.sqrt(_correction(log_beta2, step))).to(dtype)[:, None]
    size = (rate / _correction(log_beta1, step)).to(dtype)[:, None]
    kept = (1.0 - rate * weight_decay).to(dtype)
    beta1, beta2, eps = _number(beta1, dtype), _number(beta2, dtype), _number(eps, dtype)
    rest1, rest2 = _number(rest1, dtype), _number(rest2, dtype)
    weight_rows, gradient_rows = weight_ptr + (row * blocks.D)[:, None], given.gradient + (entry * blocks.D)[:, None]
    mean_rows, square_rows = mean_ptr + (row * blocks.D)[:, None], square_ptr + (row * blocks.D)[:, None]
    for start in range(0, blocks.D, blocks.BLOCK_D):
        column = start + tl.arange(0, blocks.BLOCK_D)[None, :]
        mask = there[:, None] & (column < blocks.D)
        weight = load(weight_rows + column, mask)
        change = load(gradient_rows + column, mask) * unscale
        mean = beta1 * load(mean_rows + column, mask) + rest1 * change
        square = beta2 * load(square_rows + column, mask) + rest2 * change * change
        tl.store(mean_rows + column, mean, mask=mask)
        tl.store(square_rows + column, square, mask=mask)
        # A column past the last divides by 1.
        divisor = tl.where(mask, root(square) * inverse_root + eps, 1.0)
        tl.store(weight_rows + column, weight * kept - size * quotient(mean, divisor), mask=mask)
    tl.store(step_ptr + row, step, mask=there)


def configuration(dim: int, itemsize: int) -> dict[str, Any]:
    """8 elements a thread, 16 bytes of a half-precision weight, or 4 in float64. A longer row goes round a loop."""
    tile = 512 if itemsize == 8 else 1024
    block_d = min(tile, triton.next_power_of_2(max(dim, 1)))
    return {"blocks": row_blocks(dim, min(128, tile // block_d), block_d), "num_warps": 4}


def _check(weight: torch.Tensor, states: list[torch.Tensor | None], step: torch.Tensor, given: RowGradient) -> None:
    gradient, rows = given.gradient, given.rows
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"weight must have dtype float64, float32, bfloat16 or float16; got {weight.dtype}")
    if weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [R, D]; got shape {weight.shape}, strides {weight.stride()}")
    for state in states:
        if state is not None and (state.shape != weight.shape or state.dtype != dtype or not state.is_contiguous()):
            raise ValueError(
                f"state must be contiguous {dtype} of shape {tuple(weight.shape)}; got {state.dtype}, {state.shape}"
            )
    if step.shape != weight.shape[:1] or step.dtype != torch.int32 or not step.is_contiguous():
        raise ValueError(f"step must be contiguous int32 [{weight.shape[0]}]; got {step.dtype}, {tuple(step.shape)}")
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise ValueError(f"rows must be int64 [n]; got {rows.dtype}, {tuple(rows.shape)}")
    shape = (weight.shape[0] if rows is None else len(rows), weight.shape[1])
    if gradient.shape != torch.Size(shape) or gradient.dtype != weight.dtype:
        raise ValueError(f"gradient must be {weight.dtype} of shape {shape}; got {gradient.dtype}, {gradient.shape}")
    check_numbers(given)


def check_numbers(given: RowGradient | PointGradients) -> None:
    for name in ("lr_tensor", "grad_scale", "found_inf"):
        number = getattr(given, name)
        if number is not None and number.numel() != 1:
            raise ValueError(f"{name} must hold one number; got shape {tuple(number.shape)}")


def launch_update(
    kernel: Any, tensors: Iterable[torch.Tensor | None], gradient: torch.Tensor, index: torch.Tensor | None,
    given: RowGradient | PointGradients, sizes: tuple[int, ...], numbers: tuple[float, ...], **constants: Any,
) -> None:  # fmt: skip
    """Run a kernel over the rows of the gradient; its first arguments are what it writes."""
    on_device = DeviceGradient(gradient, index, given.lr_tensor, given.grad_scale, given.found_inf)
    programs = triton.cdiv(len(gradient), constants["blocks"].BLOCK_ROWS.value)
    launch(kernel, programs, *tensors, on_device, *sizes, given.lr, *numbers, **constants)


def adam_numbers(call: AdamWRowsCall | SphereAdamCall) -> tuple[float, ...]:
    """Those that the kernels of both take after the learning rate."""
    beta1, beta2 = call.beta1, call.beta2
    logs = (math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2))
    return (beta1, beta2, 1 - beta1, 1 - beta2, *logs, call.eps)


def _launch(
    kernel: Any, weight: torch.Tensor, states: list[torch.Tensor | None], step: torch.Tensor, given: RowGradient,
    numbers: tuple[float, ...], **constants: bool,
) -> None:  # fmt: skip
    _check(weight, states, step, given)
    gradient, rows = given.gradient.contiguous(), None if given.rows is None else given.rows.contiguous()
    if len(gradient):
        constants |= configuration(weight.shape[1], weight.element_size())
        sizes = (len(gradient), len(weight))
        launch_update(kernel, (weight, *states, step), gradient, rows, given, sizes, numbers, **constants)


def sgd_rows_(call: SgdRowsCall) -> None:
    """The op `sgd_rows__triton`."""
    numbers = (call.momentum, 1 - call.dampening, call.weight_decay)
    _launch(
        sgd_kernel, call.weight, [call.momentum_buffer], call.step, call.given, numbers,
        NESTEROV=call.nesterov, MAXIMIZE=call.maximize,
    )  # fmt: skip


def adamw_rows_(call: AdamWRowsCall) -> None:
    """The op `adamw_rows__triton`."""
    numbers = (*adam_numbers(call), call.weight_decay)
    _launch(
        adamw_kernel, call.weight, [call.exp_avg, call.exp_avg_sq], call.step, call.given, numbers,
        MAXIMIZE=call.maximize,
    )  # fmt: skip
