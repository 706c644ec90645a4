# mypy: ignore-errors
"""Triton kernels of the optimisers on the sphere, for CUDA and ROCm, and their launchers: one launch a parameter.

A program owns whole vectors and passes over them three times: for the products with the point, for the length of the
change and of its end, and to write. A vector of one block is loaded once, since the compiler sees that the loads of the
passes are the same; a longer one comes from the caches again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ...triton.launch import launch
from ...triton.math import exponent_of, grow, load, power_of_two, quotient, root
from .. import reference
from ..problem import PointGradients, SphereAdamCall, SphereSgdCall
from .kernels import _correction, _next, _number, _unscale

EPS = tl.constexpr(reference.EPS)
SHORT = tl.constexpr(reference.EPS**2)  # the squared length below which a vector has no direction
LONG = tl.constexpr(1e15)  # squares of larger numbers are taken in another unit


@triton.jit
def _total(x):
    return tl.sum(x, axis=1)[:, None]


@triton.jit
def _reciprocal(x):
    return quotient(tl.full(x.shape, 1.0, x.dtype), x)


@triton.jit
def _tile(start, rows, D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(offset of the program's first row: int64, offsets from it: int32 [BLOCK_ROWS, BLOCK_D], mask)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    column = start + tl.arange(0, BLOCK_D)[None, :]
    mask = row < tl.minimum(rows - first, BLOCK_ROWS).to(tl.int32)
    if D % BLOCK_D != 0:
        mask = mask & (column < D)
    return first * D, row * D + column, mask


@triton.jit
def _start(
    point_ptr, gradient_ptr, unscale, rows, D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """(1 / |p|, the part of the gradient along p), [BLOCK_ROWS, 1]; both 0 where p has no direction."""
    squares = tl.zeros([BLOCK_ROWS, 1], unscale.dtype)
    product = squares
    exponent = exponent_of(squares)
    for start in range(0, D, BLOCK_D):
        base, offsets, mask = _tile(start, rows, D, BLOCK_ROWS, BLOCK_D)
        point, gradient = load(point_ptr + base + offsets, mask), load(gradient_ptr + base + offsets, mask)
        exponent, factor = grow(exponent, tl.max(tl.abs(point), axis=1)[:, None])
        point = point * power_of_two(-exponent, point.dtype)
        squares = squares * factor * factor + _total(point * point)
        product = product * factor + _total(point * gradient)
    norm, unit = root(squares), power_of_two(-exponent, squares.dtype)
    short = norm < EPS * unit
    inverse = tl.where(short, 0.0, _reciprocal(tl.where(short, 1.0, norm)))
    return inverse * unit, product * inverse * unscale


@triton.jit
def _moved(
    base, offsets, mask, point_ptr, gradient_ptr, buffer_ptr, inverse, radial, unscale, first, kept, taken,
    NESTEROV: tl.constexpr,
):  # fmt: skip
    """(points, their change, the new momentum), [BLOCK_ROWS, BLOCK_D]."""
    point = load(point_ptr + base + offsets, mask) * inverse
    slope = load(gradient_ptr + base + offsets, mask) * unscale
    tangent = slope - radial * point
    moved = tangent
    if buffer_ptr is not None:
        moved = kept * tl.where(first, slope, load(buffer_ptr + base + offsets, mask)) + taken * tangent
    change = tangent + kept * moved if NESTEROV else moved
    return point, change, moved


@triton.jit
def _travel(
    point_ptr, gradient_ptr, buffer_ptr, inverse, radial, unscale, rate, first, kept, taken, rows,
    NESTEROV: tl.constexpr, D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the points at the ends of their ways, and the momenta projected to the tangents there. first and rate are
    [BLOCK_ROWS, 1]."""
    squares = tl.zeros_like(inverse)
    along = squares  # of the momentum with the end
    unit = squares + 1.0  # of lengths, where squares would overflow
    for start in range(0, D, BLOCK_D):
        base, offsets, mask = _tile(start, rows, D, BLOCK_ROWS, BLOCK_D)
        point, change, moved = _moved(
            base, offsets, mask, point_ptr, gradient_ptr, buffer_ptr, inverse, radial, unscale, first, kept, taken,
            NESTEROV,
        )  # fmt: skip
        end = point - rate * change
        grown = tl.maximum(unit, tl.max(tl.abs(end), axis=1)[:, None])
        grown = tl.where(grown > LONG, grown, 1.0)
        shrink = 1.0 / grown  # 1 but for the longest ends: its rounding matters little
        shrunk = unit * shrink
        end = end * shrink
        squares = squares * shrunk * shrunk + _total(end * end)
        along = along * shrunk + _total(end * moved)
        unit = grown
    stays = (squares < SHORT) & (unit == 1.0)
    inverse_end = _reciprocal(tl.where(stays, 1.0, root(squares)))
    for start in range(0, D, BLOCK_D):
        base, offsets, mask = _tile(start, rows, D, BLOCK_ROWS, BLOCK_D)
        point, change, moved = _moved(
            base, offsets, mask, point_ptr, gradient_ptr, buffer_ptr, inverse, radial, unscale, first, kept, taken,
            NESTEROV,
        )  # fmt: skip
        end = tl.where(stays, point, (point - rate * change) * quotient(inverse_end, unit))
        tl.store(point_ptr + base + offsets, end, mask=mask)
        if buffer_ptr is not None:
            moved = tl.where(stays, 0.0, moved - along * inverse_end * end)
            tl.store(buffer_ptr + base + offsets, moved, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def sphere_sgd_kernel(
    point_ptr,  # [rows, D]
    buffer_ptr,  # [rows, D] or None
    step_ptr,  # [rows]
    gradient_ptr,  # [rows, D]
    lr_ptr,  # one number, or None
    grad_scale_ptr,  # one number, or None
    found_inf_ptr,  # one number, or None
    rows,
    lr: tl.float64,
    momentum: tl.float64,
    taken: tl.float64,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            return
    dtype: tl.constexpr = tl.float64 if point_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    step = tl.load(step_ptr + row, mask=row < rows, other=0)
    unscale = _unscale(grad_scale_ptr, MAXIMIZE, dtype)
    rate = _number(lr, dtype) if lr_ptr is None else tl.load(lr_ptr).to(dtype)
    inverse, radial = _start(point_ptr, gradient_ptr, unscale, rows, D, BLOCK_ROWS, BLOCK_D)
    _travel(
        point_ptr, gradient_ptr, buffer_ptr, inverse, radial, unscale, rate, (step == 0)[:, None],
        _number(momentum, dtype), _number(taken, dtype), rows, NESTEROV, D, BLOCK_ROWS, BLOCK_D,
    )  # fmt: skip
    tl.store(step_ptr + row, _next(step), mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def sphere_adam_kernel(
    point_ptr,  # [rows, D]
    mean_ptr,  # [rows, D]
    square_ptr,  # [rows]
    largest_ptr,  # [rows] or None
    step_ptr,  # [rows]
    gradient_ptr,  # [rows, D]
    lr_ptr,  # one number, or None
    grad_scale_ptr,  # one number, or None
    found_inf_ptr,  # one number, or None
    rows,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    rest1: tl.float64,  # 1 - beta1
    rest2: tl.float64,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    eps: tl.float64,
    MAXIMIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            return
    dtype: tl.constexpr = tl.float64 if point_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < rows
    step = _next(tl.load(step_ptr + row, mask=there, other=0))
    unscale = _unscale(grad_scale_ptr, MAXIMIZE, dtype)
    rate = _number(lr, tl.float64) if lr_ptr is None else tl.load(lr_ptr).to(tl.float64)
    inverse, radial = _start(point_ptr, gradient_ptr, unscale, rows, D, BLOCK_ROWS, BLOCK_D)
    squares = tl.zeros([BLOCK_ROWS], dtype)
    for start in range(0, D, BLOCK_D):
        base, offsets, mask = _tile(start, rows, D, BLOCK_ROWS, BLOCK_D)
        point = load(point_ptr + base + offsets, mask) * inverse
        tangent = load(gradient_ptr + base + offsets, mask) * unscale - radial * point
        squares += tl.sum(tangent * tangent, axis=1)
    square = _number(beta2, dtype) * load(square_ptr + row, there) + _number(rest2, dtype) * squares
    largest = square
    if largest_ptr is not None:
        before = load(largest_ptr + row, there)
        largest = tl.where((square > before) | (square != square), square, before)
    divisor = root(largest) * (1.0 / tl.sqrt(_correction(log_beta2, step))).to(dtype) + _number(eps, dtype)
    still = divisor == 0.0
    size = (rate / _correction(log_beta1, step)).to(dtype)
    size = tl.where(still, 0.0, quotient(size, tl.where(still, 1.0, divisor)))
    _travel(
        point_ptr, gradient_ptr, mean_ptr, inverse, radial, unscale, size[:, None], (step < 1)[:, None],
        _number(beta1, dtype), _number(rest1, dtype), rows, False, D, BLOCK_ROWS, BLOCK_D,
    )  # fmt: skip
    # Last: a store in between would have the vectors loaded again.
    tl.store(square_ptr + row, square, mask=there)
    if largest_ptr is not None:
        tl.store(largest_ptr + row, largest, mask=there)
    tl.store(step_ptr + row, step, mask=there)


def configuration(dim: int, itemsize: int) -> dict[str, int]:
    """A vector of one block stays in registers, 16 numbers a lane (8 in float64) of each of its three arrays; a short
    one within a warp, so that its sums need no barrier. A longer one goes round a loop."""
    tile = 256 if itemsize == 8 else 512
    block_d = triton.next_power_of_2(dim)
    if block_d <= 64:  # the numbers kept per row cost registers too: at most one row a lane
        return {"BLOCK_ROWS": min(128, 4 * tile // block_d), "BLOCK_D": block_d, "num_warps": 4}
    if block_d <= tile:
        return {"BLOCK_ROWS": tile // block_d, "BLOCK_D": block_d, "num_warps": 1}
    if block_d <= 16 * tile:
        return {"BLOCK_ROWS": 1, "BLOCK_D": block_d, "num_warps": block_d // tile}
    return {"BLOCK_ROWS": 1, "BLOCK_D": 4 * tile, "num_warps": 8}


LEFT_OUT = ("momentum_buffers", "max_exp_avg_sqs")  # lists that are empty where the update has no such state


def _check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Any) -> None:
    if tensor.dtype != dtype or tensor.shape != torch.Size(shape) or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {dtype} of shape {tuple(shape)}; got {tensor.dtype}, {tuple(tensor.shape)}"
        )


def _check(points: list[torch.Tensor], lists: dict[str, list[torch.Tensor]], numbers: dict[str, Any]) -> None:
    for name, tensors in lists.items():
        if len(tensors) != len(points):
            raise ValueError(f"{name} must be {len(points)} tensors, one for each of points; got {len(tensors)}")
    for i, point in enumerate(points):
        if point.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"points must have dtype float64, float32, bfloat16 or float16; got {point.dtype}")
        if point.dim() != 2 or not point.is_contiguous():
            raise ValueError(f"points must be contiguous [R, D]; got shape {point.shape}, strides {point.stride()}")
        state = torch.float64 if point.dtype == torch.float64 else torch.float32
        for name, tensors in lists.items():
            dtype = {"steps": torch.int32, "gradients": point.dtype}.get(name, state)
            shape = point.shape[:1] if name in ("steps", "exp_avg_sqs", "max_exp_avg_sqs") else point.shape
            _check_tensor(name, tensors[i], dtype, shape)
    for name, number in numbers.items():
        if number is not None and number.numel() != 1:
            raise ValueError(f"{name} must hold one number; got shape {tuple(number.shape)}")


def _launch(
    kernel: Any, points: list[torch.Tensor], lists: dict[str, list[torch.Tensor]], given: PointGradients,
    numbers: tuple[float, ...], **constants: bool,
) -> None:  # fmt: skip
    """`lists` are in the order of the kernel's arguments."""
    lists["gradients"] = [gradient.contiguous() for gradient in given.gradients]
    of_device = {"lr_tensor": given.lr_tensor, "grad_scale": given.grad_scale, "found_inf": given.found_inf}
    _check(points, {name: tensors for name, tensors in lists.items() if tensors or name not in LEFT_OUT}, of_device)
    for i, point in enumerate(points):
        rows, dim = point.shape
        if rows == 0:
            continue
        config = configuration(max(dim, 1), point.element_size())
        launch(
            kernel,
            triton.cdiv(rows, config["BLOCK_ROWS"]),
            point,
            *(tensors[i] if tensors else None for tensors in lists.values()),
            *of_device.values(),
            rows,
            *numbers,
            **constants,
            D=dim,
            **config,
        )


def sphere_sgd_(call: SphereSgdCall) -> None:
    """The op `sphere_sgd__triton`."""
    lists = {"momentum_buffers": call.momentum_buffers, "steps": call.steps}
    numbers = (call.given.lr, call.momentum, 1 - call.dampening)
    _launch(sphere_sgd_kernel, call.points, lists, call.given, numbers, NESTEROV=call.nesterov, MAXIMIZE=call.maximize)


def sphere_adam_(call: SphereAdamCall) -> None:
    """The op `sphere_adam__triton`."""
    lists = {"exp_avgs": call.exp_avgs, "exp_avg_sqs": call.exp_avg_sqs, "max_exp_avg_sqs": call.max_exp_avg_sqs}
    lists |= {"steps": call.steps}
    beta1, beta2 = call.beta1, call.beta2
    logs = (math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2))
    numbers = (call.given.lr, beta1, beta2, 1 - beta1, 1 - beta2, *logs, call.eps)
    _launch(sphere_adam_kernel, call.points, lists, call.given, numbers, MAXIMIZE=call.maximize)
