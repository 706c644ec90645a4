# mypy: ignore-errors
"""Launchers of the family's Triton kernels, for CUDA and ROCm, and the sum of segments.

Rows up to 8192 elements, 4096 in a backward pass and half of it in float64, are read once and written once: the copy
of as many bytes is the floor. It is, of 1,000,000 x 512 on an H200, which copies 4.3 TB/s, in milliseconds:

                                                        bfloat16 | float32
    slerp, log, vectors, residual     2 reads, 1 write    0.71 | 1.43
    angle                             2 reads             0.48 | 0.95
    scaled_unit_norm                  1 read, 1 write     0.48 | 0.95
    their backward                    3 reads, 2 writes   1.19 | 2.38
    that of the angle                 2 reads, 2 writes   0.95 | 1.91
    scaled_unit_norm_backward         2 reads, 1 write    0.71 | 1.43
    segment_sum, 10,000 segments      1 read              0.24 | 0.48
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...._dtypes import accumulate_dtype
from ...triton.launch import launch
from ...triton.math import load
from .. import problem
from . import points, vectors
from . import residual as residuals
from .rows import BACKWARD, FORWARD, RowPair, SphereConfiguration, configuration

# Rows of partial sums that a backward pass leaves for alpha or scale: the GPU's multiprocessors several times over.
PROGRAMS = 4096
WIDE_SUMS = 2**24  # elements of them where rows are wide


def _rows(x: torch.Tensor) -> torch.Tensor:
    """With unit stride in the last dimension."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _pair(x: torch.Tensor, y: torch.Tensor) -> RowPair:
    x, y = _rows(x), _rows(y)
    return RowPair(x, y, x.stride(0), y.stride(0))


def _check(x: torch.Tensor, **same: torch.Tensor | None) -> None:
    if x.dim() != 2 or x.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"rows must be [N, D] in float64, float32, bfloat16 or float16; got {x.dtype}, {x.shape}")
    for name, other in same.items():
        if other is not None and (other.shape != x.shape or other.dtype != x.dtype):
            raise ValueError(f"{name} must be {x.dtype} of shape {tuple(x.shape)}; got {other.dtype}, {other.shape}")


def _numbers(name: str, value: torch.Tensor | None, shape: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """t, alpha, scale, or the gradient of an angle."""
    if value is None or value.shape != torch.Size(shape) or value.dtype != accumulate_dtype(x.dtype):
        got = "None" if value is None else f"{value.dtype}, {tuple(value.shape)}"
        raise ValueError(f"{name} must be {accumulate_dtype(x.dtype)} of shape {shape}; got {got}")
    return value.contiguous()


def _kind(kind: str, kinds: dict[str, int]) -> int:
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r}")
    return kinds[kind]


def _launch(
    module: Any, name: str, config: SphereConfiguration, x: torch.Tensor, programs: int, *args: Any, **kw: int
) -> None:
    """Run `name`_kernel, or `name`_wide_kernel, over the rows of x."""
    kernel = getattr(module, f"{name}_wide_kernel" if config.wide else f"{name}_kernel")
    launch(
        kernel, programs,
        *args, x.shape[0], **kw, blocks=config.blocks(x.shape[1]), num_warps=config.warps,
    )  # fmt: skip


def _over_rows(module: Any, name: str, tile: int, x: torch.Tensor, *args: Any, **kw: int) -> None:
    config = configuration(x.shape[1], x.element_size(), tile)
    _launch(module, name, config, x, triton.cdiv(x.shape[0], config.block_rows), *args, **kw)


def _gradients(tensors: list[torch.Tensor | None], needed: list[bool]) -> list[torch.Tensor | None]:
    given = zip(tensors, needed, strict=True)
    return [x.new_empty(x.shape) if need and x is not None else None for x, need in given]


def _filled(results: list[torch.Tensor | None], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Nothing, where nothing was asked for, is an empty tensor."""
    return tuple(like.new_empty(0) if result is None else result for result in results)


def sphere_points(call: problem.PointsCall) -> torch.Tensor:
    """The op `sphere_points_triton`. Floor: 2 reads and, but for the angle, 1 write of the rows."""
    x, y, t, kind = call
    code = _kind(kind, points.KINDS)
    _check(x, y=y)
    t = _numbers("t", t, x.shape[:1], x) if kind == "slerp" else None
    pair = _pair(x, y)
    out = x.new_empty(x.shape[0], dtype=accumulate_dtype(x.dtype)) if kind == "angle" else x.new_empty(x.shape)
    if x.numel() > 0:
        _over_rows(points, "points", FORWARD, x, pair, t, out, KIND=code)
    elif kind == "angle":
        out.fill_(torch.pi)  # without a dimension all points are opposite
    return out


def sphere_points_backward(call: problem.PointsBackwardCall) -> problem.PointsGradients:
    """The op `sphere_points_backward_triton`. Floor: 3 reads (the angle: 2) and a write of each gradient of rows."""
    grad, (x, y, t, kind), *needs = call
    code = _kind(kind, points.KINDS)
    _check(x, y=y, grad=None if kind == "angle" else grad)
    grad = _numbers("grad", grad, x.shape[:1], x) if kind == "angle" else grad.contiguous()
    t = _numbers("t", t, x.shape[:1], x) if kind == "slerp" else None
    pair = _pair(x, y)
    results = _gradients([x, y, t], needs)
    if x.numel() > 0:
        _over_rows(points, "points_backward", BACKWARD, x, pair, t, grad, *results, KIND=code)
    elif results[2] is not None:
        results[2].zero_()
    return problem.PointsGradients(*_filled(results, grad))


def sphere_vectors(call: problem.VectorsCall) -> torch.Tensor:
    """The op `sphere_vectors_triton`. Floor: 2 reads and 1 write of the rows."""
    x, v, kind = call
    code = _kind(kind, vectors.KINDS)
    _check(x, v=v)
    pair = _pair(x, v)
    out = x.new_empty(x.shape)
    if x.numel() > 0:
        _over_rows(vectors, "vectors", FORWARD, x, pair, out, KIND=code)
    return out


def sphere_vectors_backward(call: problem.VectorsBackwardCall) -> problem.VectorsGradients:
    """The op `sphere_vectors_backward_triton`. Floor: 3 reads and 2 writes of the rows."""
    grad, (x, v, kind), *needs = call
    code = _kind(kind, vectors.KINDS)
    _check(x, v=v, grad=grad)
    pair = _pair(x, v)
    results = _gradients([x, v], needs)
    if x.numel() > 0:
        _over_rows(vectors, "vectors_backward", BACKWARD, x, pair, grad.contiguous(), *results, KIND=code)
    return problem.VectorsGradients(*_filled(results, grad))


def sphere_residual(call: problem.ResidualCall) -> torch.Tensor:
    """The op `sphere_residual_triton`. Floor: 2 reads and 1 write of the rows."""
    h, block, alpha = call
    _check(h, block=block)
    alpha = _numbers("alpha", alpha, h.shape[1:], h)
    pair = _pair(h, block)
    out = h.new_empty(h.shape)
    if h.numel() > 0:
        _over_rows(residuals, "residual", FORWARD, h, pair, alpha, out)
    return out


def _shares(dim: int, groups: int, scale_rows: int, config: SphereConfiguration) -> int:
    """How many rows of partial sums each row of the scale has; each belongs to one program."""
    most = max(1, WIDE_SUMS // dim) if config.wide else PROGRAMS
    return min(groups, max(1, most // scale_rows))


def _partial_sums(x: torch.Tensor, shares: int, scale_rows: int, config: SphereConfiguration) -> torch.Tensor:
    new = torch.zeros if config.wide else torch.empty
    return new(shares, scale_rows, x.shape[1], dtype=accumulate_dtype(x.dtype), device=x.device)


def sphere_residual_backward(call: problem.ResidualBackwardCall) -> problem.ResidualGradients:
    """The op `sphere_residual_backward_triton`. Floor: 3 reads and 2 writes of the rows."""
    grad, (h, block, alpha), need_h, need_block, need_alpha = call
    _check(h, block=block, grad=grad)
    alpha = _numbers("alpha", alpha, h.shape[1:], h)
    pair = _pair(h, block)
    results = _gradients([h, block], [need_h, need_block])
    if h.numel() == 0:
        return problem.ResidualGradients(*_filled([*results, torch.zeros_like(alpha) if need_alpha else None], grad))
    config = configuration(h.shape[1], h.element_size(), BACKWARD)
    shares = _shares(h.shape[1], triton.cdiv(h.shape[0], config.block_rows), 1, config)
    sums = _partial_sums(h, shares, 1, config) if need_alpha else None
    _launch(residuals, "residual_backward", config, h, shares, pair, alpha, grad.contiguous(), *results, sums)
    return problem.ResidualGradients(*_filled([*results, None if sums is None else sums.sum((0, 1))], grad))


def scaled_unit_norm(call: problem.ScaledCall) -> torch.Tensor:
    """The op `scaled_unit_norm_triton`. Floor: 1 read and 1 write of the rows."""
    x, scale = call
    _check(x)
    scale = _scale(x, scale)
    x = _rows(x)
    out = x.new_empty(x.shape)
    if x.numel() > 0:
        _over_rows(residuals, "scaled_unit_norm", FORWARD, x, x, scale, out, x.stride(0), scale.shape[0])
    return out


def _scale(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.dim() != 2 or x.shape[0] % max(1, scale.shape[0]) != 0:
        raise ValueError(f"scale must be [S, D] with S a divisor of {x.shape[0]}; got shape {tuple(scale.shape)}")
    return _numbers("scale", scale, (scale.shape[0], x.shape[1]), x)


def scaled_unit_norm_backward(call: problem.ScaledBackwardCall) -> problem.ScaledGradients:
    """The op `scaled_unit_norm_backward_triton`. Floor: 2 reads and 1 write of the rows."""
    grad, (x, scale), need_x, need_scale = call
    _check(x, grad=grad)
    scale = _scale(x, scale)
    x = _rows(x)
    results = _gradients([x], [need_x])
    if x.numel() == 0:
        return problem.ScaledGradients(*_filled([*results, torch.zeros_like(scale) if need_scale else None], grad))
    config = configuration(x.shape[1], x.element_size(), BACKWARD)
    groups = triton.cdiv(x.shape[0] // scale.shape[0], config.block_rows)
    shares = _shares(x.shape[1], groups, scale.shape[0], config)
    sums = _partial_sums(x, shares, scale.shape[0], config) if need_scale else None
    args = (x, scale, grad.contiguous(), *results, sums, x.stride(0), scale.shape[0])
    _launch(residuals, "scaled_unit_norm_backward", config, x, shares * scale.shape[0], *args)
    return problem.ScaledGradients(*_filled([*results, None if sums is None else sums.sum(0)], grad))


@triton.jit(do_not_specialize=["segments", "splits"])
def segment_sum_kernel(
    x_ptr,  # [rows, D]
    order_ptr,  # [rows]
    offsets_ptr,  # [segments + 1]
    out_ptr,  # [splits, segments, D]
    x_stride,
    segments,
    splits,
    rows,
    blocks,
):
    """Owns BLOCK_D columns of one of the parts, alike long, of a segment. Reads each row once, where it lies."""
    cells_of_row: tl.constexpr = (blocks.D + blocks.BLOCK_D - 1) // blocks.BLOCK_D
    program = tl.program_id(0).to(tl.int64)
    cell = program // cells_of_row  # split * segments + segment
    segment = cell % segments
    column = (program % cells_of_row).to(tl.int32) * blocks.BLOCK_D + tl.arange(0, blocks.BLOCK_D)[None, :]
    # Whatever the offsets say, a segment lies within the rows.
    first = tl.minimum(tl.maximum(tl.load(offsets_ptr + segment), 0), rows)
    last = tl.minimum(tl.maximum(tl.load(offsets_ptr + segment + 1), first), rows)
    part = tl.cdiv(last - first, splits)
    first = first + part * (cell // segments)
    last = tl.minimum(last, first + part)
    total = tl.zeros([blocks.BLOCK_ROWS, blocks.BLOCK_D], out_ptr.dtype.element_ty)
    for start in range(first, last, blocks.BLOCK_ROWS):
        entry = start + tl.arange(0, blocks.BLOCK_ROWS)
        row = tl.load(order_ptr + entry, mask=entry < last, other=-1)
        there = (row >= 0) & (row < rows)
        total += load(x_ptr + (row * x_stride)[:, None] + column, there[:, None] & (column < blocks.D))
    column = (program % cells_of_row).to(tl.int32) * blocks.BLOCK_D + tl.arange(0, blocks.BLOCK_D)
    tl.store(out_ptr + cell * blocks.D + column, tl.sum(total, axis=0), mask=column < blocks.D)


def segment_configuration(dim: int, itemsize: int) -> SphereConfiguration:
    """16 elements a thread (float64: 8), 256 columns at most."""
    block_d = min(256, triton.next_power_of_2(dim))
    return SphereConfiguration(min(128, (1024 if itemsize == 8 else 2048) // block_d), block_d, 4)


def segment_sum(call: problem.SegmentSumCall) -> torch.Tensor:
    """The op `segment_sum_triton`: [K, D], row k the sum of the rows x[order[offsets[k] : offsets[k + 1]]].

    Where the segments are few, each is summed in parts alike long and the parts in their order: the sums depend on the
    sizes alone. Floor: 1 read of the rows.
    """
    x, _, order, offsets = call
    _check(x)
    if order.shape != x.shape[:1] or order.dtype != torch.int64:
        raise ValueError(f"order must be int64 [{x.shape[0]}]; got {order.dtype}, {tuple(order.shape)}")
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 [K + 1]; got {offsets.dtype}, {tuple(offsets.shape)}")
    x, segments, dim = _rows(x), offsets.shape[0] - 1, x.shape[1]
    if x.numel() == 0 or segments == 0:
        return x.new_zeros(segments, dim, dtype=accumulate_dtype(x.dtype))
    config = segment_configuration(dim, x.element_size())
    cells = segments * triton.cdiv(dim, config.block_d)
    splits = max(1, min(PROGRAMS // cells, triton.cdiv(x.shape[0], segments * config.block_rows)))
    out = x.new_empty(splits, segments, dim, dtype=accumulate_dtype(x.dtype))
    launch(
        segment_sum_kernel, splits * cells,
        x, order.contiguous(), offsets.contiguous(), out, x.stride(0), segments, splits, x.shape[0],
        blocks=config.blocks(dim), num_warps=config.warps,
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0)
