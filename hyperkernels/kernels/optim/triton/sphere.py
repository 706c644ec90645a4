# mypy: ignore-errors
"""Triton kernels of the optimisers on the sphere, for CUDA and ROCm, and their launchers: one launch a parameter.

A program owns whole vectors and passes over them three times: for the products with the point, for the length of the
change and of its end, and to write. A vector of one block is loaded once, since the compiler sees that the loads of the
passes are the same; a longer one comes from the caches again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...sphere.problem import EPS as _EPS
from ...triton.math import exponent_of, grow, load, power_of_two, quotient, root
from ...triton.rows import program_rows, row_blocks, row_tile
from ..problem import PointGradients, SphereAdamCall, SphereSgdCall
from .kernels import (
    _correction,
    _is_left_out,
    _next,
    _number,
    _rate,
    _unscale,
    adam_numbers,
    check_numbers,
    launch_update,
)

EPS = tl.constexpr(_EPS)
SHORT = tl.constexpr(_EPS**2)  # the squared length below which a vector has no direction
LONG = tl.constexpr(1e15)  # squares of larger numbers are taken in another unit


@triton.jit
def _total(x):
    return tl.sum(x, axis=1)[:, None]


@triton.jit
def _reciprocal(x):
    return quotient(tl.full(x.shape, 1.0, x.dtype), x)


@triton.jit
def _start(point_ptr, gradient_ptr, unscale, rows, blocks):
    """(1 / |p|, the part of the gradient along p), [BLOCK_ROWS, 1]; both 0 where p has no direction."""
    squares = tl.zeros([blocks.BLOCK_ROWS, 1], unscale.dtype)
    product = squares
    exponent = exponent_of(squares)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        base, offsets, mask = row_tile(tl.program_id(0), start, rows, blocks)
        point, gradient = load(point_ptr + base + offsets, mask), load(gradient_ptr + base + offsets, mask)
        exponent, factor = grow(exponent, tl.max(tl.abs(point), axis=1)[:, None])
        point = point * power_of_two(-exponent, point.dtype)
        squares = squares * factor * factor + _total(point * point)
        product = product * factor + _total(point * gradient)
    norm, unit = root(squares), power_of_two(-exponent, squares.dtype)
    short = norm < unit * EPS
    inverse = tl.where(short, 0.0, _reciprocal(tl.where(short, 1.0, norm)))
    return inverse * unit, product * inverse * unscale


@triton.jit
def _moved(start, rows, motion, NESTEROV: tl.constexpr, blocks):
    """(the three of `row_tile`; points, their change, the new momentum, [BLOCK_ROWS, BLOCK_D])."""
    point_ptr, gradient_ptr, buffer_ptr, inverse, radial, unscale, first, kept, taken = motion
    base, offsets, mask = row_tile(tl.program_id(0), start, rows, blocks)
    point = load(point_ptr + base + offsets, mask) * inverse
    slope = load(gradient_ptr + base + offsets, mask) * unscale
    tangent = slope - radial * point
    moved = tangent
    if buffer_ptr is not None:
        moved = kept * tl.where(first, slope, load(buffer_ptr + base + offsets, mask)) + taken * tangent
    change = tangent + kept * moved if NESTEROV else moved
    return base, offsets, mask, point, change, moved


@triton.jit
def _travel(motion, rate, rows, NESTEROV: tl.constexpr, blocks):
    """Write the points at the ends of their ways, and the momenta projected to the tangents there. A motion is what
    `_moved` takes apart; of its numbers those per row, and the rate, are [BLOCK_ROWS, 1]."""
    point_ptr, buffer_ptr, inverse = motion[0], motion[2], motion[3]
    squares = tl.zeros_like(inverse)
    along = squares  # of the momentum with the end
    unit = squares + 1.0  # of lengths, where squares would overflow
    for start in range(0, blocks.D, blocks.BLOCK_D):
        _, _, _, point, change, moved = _moved(start, rows, motion, NESTEROV, blocks)
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
    for start in range(0, blocks.D, blocks.BLOCK_D):
        base, offsets, mask, point, change, moved = _moved(start, rows, motion, NESTEROV, blocks)
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
    given,  # DeviceGradient
    rows,
    lr: tl.float64, momentum: tl.float64, taken: tl.float64,
    NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, blocks,
):  # fmt: skip
    if _is_left_out(given):
        return
    dtype: tl.constexpr = tl.float64 if point_ptr.dtype.element_ty == tl.float64 else tl.float32
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    step = tl.load(step_ptr + row, mask=there, other=0)
    unscale = _unscale(given, MAXIMIZE, dtype)
    rate = _rate(lr, given, dtype)
    inverse, radial = _start(point_ptr, given.gradient, unscale, rows, blocks)
    motion = (
        point_ptr, given.gradient, buffer_ptr, inverse, radial, unscale, (step == 0)[:, None],
        _number(momentum, dtype), _number(taken, dtype),
    )  # fmt: skip
    _travel(motion, rate, rows, NESTEROV, blocks)
    tl.store(step_ptr + row, _next(step), mask=there)


@triton.jit(do_not_specialize=["rows"])
def sphere_adam_kernel(
    point_ptr,  # [rows, D]
    mean_ptr,  # [rows, D]
    square_ptr,  # [rows]
    largest_ptr,  # [rows] or None
    step_ptr,  # [rows]
    given,  # DeviceGradient
    rows,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, rest1: tl.float64, rest2: tl.float64,  # rest: 1 - beta
    log_beta1: tl.float64, log_beta2: tl.float64, eps: tl.float64,
    MAXIMIZE: tl.constexpr, blocks,
):  # fmt: skip
    if _is_left_out(given):
        return
    dtype: tl.constexpr = tl.float64 if point_ptr.dtype.element_ty == tl.float64 else tl.float32
    row, there = program_rows(tl.program_id(0), rows, blocks.BLOCK_ROWS)
    step = _next(tl.load(step_ptr + row, mask=there, other=0))
    unscale = _unscale(given, MAXIMIZE, dtype)
    rate = _rate(lr, given, tl.float64)
    inverse, radial = _start(point_ptr, given.gradient, unscale, rows, blocks)
    squares = tl.zeros([blocks.BLOCK_ROWS], dtype)
    for start in range(0, blocks.D, blocks.BLOCK_D):
        base, offsets, mask = row_tile(tl.program_id(0), start, rows, blocks)
        point = load(point_ptr + base + offsets, mask) * inverse
        tangent = load(given.gradient + base + offsets, mask) * unscale - radial * point
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
    motion = (
        point_ptr, given.gradient, mean_ptr, inverse, radial, unscale, (step < 1)[:, None], _number(beta1, dtype),
        _number(rest1, dtype),
    )  # fmt: skip
    _travel(motion, size[:, None], rows, False, blocks)
    # Last: a store in between would have the vectors loaded again.
    tl.store(square_ptr + row, square, mask=there)
    if largest_ptr is not None:
        tl.store(largest_ptr + row, largest, mask=there)
    tl.store(step_ptr + row, step, mask=there)


def configuration(dim: int, itemsize: int) -> dict[str, Any]:
    """A vector of one block stays in registers, 16 numbers a lane (8 in float64) of each of its three arrays; a short
    one within a warp, so that its sums need no barrier. A longer one goes round a loop."""
    tile = 256 if itemsize == 8 else 512
    block_d = triton.next_power_of_2(max(dim, 1))
    if block_d <= 64:  # the numbers kept per row cost registers too: at most one row a lane
        block_rows, warps = min(128, 4 * tile // block_d), 4
    elif block_d <= tile:
        block_rows, warps = tile // block_d, 1
    elif block_d <= 16 * tile:
        block_rows, warps = 1, block_d // tile
    else:
        block_rows, block_d, warps = 1, 4 * tile, 8
    return {"blocks": row_blocks(dim, block_rows, block_d), "num_warps": warps}


LEFT_OUT = ("momentum_buffers", "max_exp_avg_sqs")  # lists that are empty where the update has no such state


def _check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Any) -> None:
    if tensor.dtype != dtype or tensor.shape != torch.Size(shape) or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {dtype} of shape {tuple(shape)}; got {tensor.dtype}, {tuple(tensor.shape)}"
        )


def _check(points: list[torch.Tensor], lists: dict[str, list[torch.Tensor]]) -> None:
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


def _launch(
    kernel: Any, points: list[torch.Tensor], lists: dict[str, list[torch.Tensor]], given: PointGradients,
    numbers: tuple[float, ...], **constants: bool,
) -> None:  # fmt: skip
    """`lists` are in the order of the kernel's arguments."""
    gradients = [gradient.contiguous() for gradient in given.gradients]
    given_lists = {name: tensors for name, tensors in lists.items() if tensors or name not in LEFT_OUT}
    _check(points, given_lists | {"gradients": gradients})
    check_numbers(given)
    for i, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        if len(point):
            tensors = (point, *(tensors[i] if tensors else None for tensors in lists.values()))
            own = constants | configuration(point.shape[1], point.element_size())
            launch_update(kernel, tensors, gradient, None, given, (len(point),), numbers, **own)


def sphere_sgd_(call: SphereSgdCall) -> None:
    """The op `sphere_sgd__triton`."""
    lists = {"momentum_buffers": call.momentum_buffers, "steps": call.steps}
    numbers = (call.momentum, 1 - call.dampening)
    _launch(sphere_sgd_kernel, call.points, lists, call.given, numbers, NESTEROV=call.nesterov, MAXIMIZE=call.maximize)


def sphere_adam_(call: SphereAdamCall) -> None:
    """The op `sphere_adam__triton`."""
    lists = {"exp_avgs": call.exp_avgs, "exp_avg_sqs": call.exp_avg_sqs, "max_exp_avg_sqs": call.max_exp_avg_sqs}
    lists |= {"steps": call.steps}
    _launch(sphere_adam_kernel, call.points, lists, call.given, adam_numbers(call), MAXIMIZE=call.maximize)
