"""Launchers of the Triton kernels of the class softmax.

Nothing here waits for the device, and every sum is taken in a fixed order. Classes go by in chunks, so that partial
sums and the gradient of the cosines stay within `WORKSPACE` bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ...triton.gpu import architecture
from ...triton.launch import launch
from ..negatives import KINDS, LARGEST_POWER, SUMS
from ..problem import (
    IGNORED,
    ClassBackwardCall,
    ClassGradients,
    ClassProblem,
    ClassStatisticsCall,
    ClassStatisticsResult,
    Options,
    gradients,
    results,
)
from ..problem import SKIP_ROWS as ROWS_OF_SKIPS
from .backward import finish_kernel, gradient_kernel, input_kernel, weight_kernel
from .forward import TiledClasses, forward_kernel, merge_kernel
from .plans import Tile, configuration, precision, tile_classes
from .rows import center_kernel, row_kernel

__all__ = ["class_statistics", "class_statistics_backward", "tile_classes"]

WORKSPACE = 128 * 2**20
SKIP_ROWS = ROWS_OF_SKIPS["triton"]
LARGEST_SUB_CENTERS = 127  # what an int8 counts
PROGRAMS = 132  # that the split product aims at: one for each multiprocessor of an H200
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Launches:
    """What the launches of one call share: contiguous inputs, sizes, tiles, and the rows made ready."""

    def __init__(self, problem: ClassProblem, options: Options, block: int) -> None:
        x, weight, target, scale, class_scale, bias, transform, sampled = problem
        negatives, sub_centers, normalize_x, normalize_weight, eps, ignore_index, absent_index = options
        if negatives not in KINDS:
            raise ValueError(f"negatives must be one of {', '.join(map(repr, KINDS))}; got {negatives!r}")
        if x.dtype not in _DTYPES or weight.dtype != x.dtype:
            raise TypeError(f"x and weight must have one dtype of {_DTYPES}; got {x.dtype} and {weight.dtype}")
        if sub_centers > LARGEST_SUB_CENTERS:
            raise ValueError(f"sub_centers must be at most {LARGEST_SUB_CENTERS} on a GPU; got {sub_centers}")
        if x.dim() != 2 or weight.dim() != 2 or weight.shape[1] != x.shape[1] or weight.shape[0] % sub_centers:
            raise ValueError(f"x and weight must be [N, D] and [C * sub_centers, D]; got {x.shape} and {weight.shape}")
        if sampled is not None and (sampled.dtype != torch.int64 or sampled.dim() != 1 or not len(sampled)):
            raise ValueError(f"classes must be int64 [R] with R > 0; got {sampled.dtype} {tuple(sampled.shape)}")
        all_classes = weight.shape[0] // sub_centers
        classes = all_classes if sampled is None else len(sampled)
        for name, tensor, size in (
            ("target", target, x.shape[:1]),
            ("scale", scale, x.shape[:1]),
            ("class_scale", class_scale, (classes,)),
            ("bias", bias, (classes,)),
            ("transform", transform, (x.shape[0], len(KINDS[negatives]))),
        ):
            if tensor is not None and tensor.shape != torch.Size(size):
                raise ValueError(f"{name} must have shape {tuple(size)}; got {tuple(tensor.shape)}")
        if not classes:
            raise ValueError("weight must have at least one row (class); got none")
        if block < 16 or block & (block - 1):
            raise ValueError(f"block must be a power of two of at least 16; got {block}")
        self.x, self.weight, self.target = x.contiguous(), weight.contiguous(), target.contiguous()
        self.heads = [None if t is None else t.contiguous() for t in (scale, class_scale, bias, transform)]
        self.rows, self.d = x.shape
        # Held in range: whatever they are, nothing is read outside of the weight.
        self.index = None if sampled is None else sampled.clamp(0, all_classes - 1).contiguous()
        self.classes, self.block, self.sub_centers = classes, block, sub_centers
        self.tiles = triton.cdiv(self.classes, block)
        self.indices = (ignore_index, absent_index)
        burden = (sub_centers > 1 or negatives != "cosine") + (class_scale is not None or bias is not None)
        config = configuration(x.dtype, self.d, self.rows, block, burden, architecture(x.device))
        if self.index is not None and x.dtype == torch.float64:  # more rows spill, on sm_100
            config = config._replace(cosines=config.cosines._replace(rows=16))
        self.config = config
        # A group shares one entry of the skip plan; a batch of fewer rows is one group.
        self.group = min(SKIP_ROWS, max(16, triton.next_power_of_2(self.rows)))
        self.padded = triton.cdiv(self.rows, self.group) * self.group
        self.stride = max(1, triton.cdiv(self.d, config.input.columns)) * config.input.columns
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.kind = {"KIND": negatives, "SUMMED": negatives in SUMS}
        self.normalize_x = {"NORMALIZE_X": normalize_x}
        self.normalize_weight = {"NORMALIZE_WEIGHT": normalize_weight}
        self.shape = {"D": self.d, "STRIDE": self.stride}
        # Below the smallest normal number a floor has no inverse.
        self.eps = {"EPS": max(eps, torch.finfo(self.dtype).tiny)}
        self.centers = {"SUB_CENTERS": sub_centers, **self.eps}
        self.precision = {"PRECISION": precision(x.dtype)}
        self.copy = x.new_empty(self.padded, self.stride)
        self.multiplier = x.new_empty(self.padded, dtype=self.dtype)
        self.own = target.new_empty(self.padded)

    def chunks(self, bytes_of_a_tile: int) -> list[tuple[int, int]]:
        """(first tile, tiles) of pieces that fit the workspace."""
        size = min(self.tiles, max(1, WORKSPACE // bytes_of_a_tile))
        return [(first, min(size, self.tiles - first)) for first in range(0, self.tiles, size)]

    def center_norms(self, norms: torch.Tensor) -> None:
        """[C * K], also where the weight is taken as it is and the kernels do not read them: they are a result."""
        block_d = max(16, min(1024, triton.next_power_of_2(self.d)))
        block_rows = 4096 // block_d
        launch(
            center_kernel, triton.cdiv(len(norms), block_rows),
            self.weight, self.index, norms, len(norms), SUB_CENTERS=self.sub_centers, D=self.d,
            BLOCK_ROWS=block_rows, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip

    def prepare_rows(
        self,
        w_norm: torch.Tensor,
        outputs: Sequence[torch.Tensor | None] = (),
        incoming: Sequence[torch.Tensor | None] = (),
    ) -> None:
        """The copy of x, its multipliers and own classes; in the forward its three outputs, in the backward as if the
        rows that the four incoming gradients leave out were ignored."""
        block_d = min(1024, triton.next_power_of_2(self.stride))
        launch(
            row_kernel, self.padded // 4,
            self.x, self.weight, self.index, w_norm, self.target, *(incoming or (None,) * 4), self.copy,
            self.multiplier, self.own, *(outputs or (None,) * 3), self.rows, self.classes, *self.indices,
            **self.centers, **self.normalize_x, **self.normalize_weight, **self.shape, BLOCK_ROWS=4, BLOCK_D=block_d,
            num_warps=4,
        )  # fmt: skip

    def classes_in(self, tile: Tile, w_norm: torch.Tensor) -> tuple[TiledClasses, dict[str, int]]:
        """The first argument of a kernel of cosines, and its options."""
        constants = (
            *self.kind.values(), self.sub_centers, *self.eps.values(), *self.normalize_weight.values(),
            self.classes % self.block == 0, *self.shape.values(), *self.precision.values(), tile.rows, tile.columns,
            tile.depth,
        )  # fmt: skip
        tensors: tuple[Any, ...] = (self.copy, self.weight, self.index, self.multiplier, w_norm, self.own, *self.heads)
        tiled = TiledClasses(*tensors, *map(tl.constexpr, constants))
        return tiled, {"num_warps": tile.warps, "num_stages": tile.stages}


def class_statistics(call: ClassStatisticsCall) -> ClassStatisticsResult:
    """The op `class_statistics_triton`. No cosines are kept."""
    p = Launches(call.problem, call.options, int(call.tiles.block))
    out = results(call)
    of_rows, negatives = out.statistics, call.options.negatives
    arrays = 3 if p.kind["SUMMED"] else {"cosine": 5, "quadratic": 8}.get(negatives, 6)
    p.center_norms(out.w_norm)
    if not p.rows:
        return out
    p.prepare_rows(out.w_norm, (of_rows.x_norm, of_rows.target_cos, of_rows.target_center))
    merged = (
        of_rows.neg_lse, of_rows.hardest_cos, of_rows.hardest_class, of_rows.neg_cos_sum, of_rows.hard_cos_sum,
        of_rows.hard_count, out.top, out.log_sum, out.scale_slope,
    )  # fmt: skip
    chunks = p.chunks(arrays * p.rows * p.dtype.itemsize)
    partial = p.x.new_empty(arrays * p.rows * chunks[0][1], dtype=p.dtype)
    row_tiles = p.padded // p.config.cosines.rows
    tiled, options = p.classes_in(p.config.cosines, out.w_norm)
    for first, tiles in chunks:
        launch(
            forward_kernel, row_tiles * tiles, tiled, partial, p.rows, row_tiles, tiles, p.classes, first, **options
        )  # fmt: skip
        launch(
            merge_kernel, triton.cdiv(p.rows, 8),
            partial, p.own, p.heads[0], *merged,
            out.block_lse if call.skip_budget > 0 and not p.kind["SUMMED"] else None,
            p.rows, tiles, first, p.tiles, int(first == chunks[0][0]), int(first == chunks[-1][0]), **p.kind,
            BLOCK_CLASSES=p.block, BLOCK_TILES=min(64, triton.next_power_of_2(chunks[0][1])), BLOCK_ROWS=8, num_warps=4,
        )  # fmt: skip
    return out


def _unit(p: Launches, incoming: list[torch.Tensor], w_norm: torch.Tensor) -> torch.Tensor:
    """A power of two, on the device, that brings the largest entry H can have to about 2^14: float16 ends at 65504 and
    the smallest gradients are a billion times below the largest."""
    d_neg_lse, d_target_cos, d_neg_sum = incoming
    scale, class_scale, _, transform = p.heads
    assert scale is not None
    columns = [] if transform is None else list(transform.unbind(1))
    slope = {
        "quadratic": lambda: torch.maximum(columns[4].abs() + columns[5].abs(), columns[6].abs()),
        "gaussian": lambda: columns[1].abs(),
        "angle": lambda: (1 / columns[0] ** 2).clamp_min(1),
        "sface": lambda: scale,
        "sphereface2": lambda: LARGEST_POWER * scale,
        "uniface": lambda: scale,
    }.get(str(p.kind["KIND"]), lambda: torch.ones_like(scale))()
    active = p.own[: p.rows] != IGNORED
    share = d_neg_sum.abs() if p.kind["SUMMED"] else d_neg_sum.abs() + d_neg_lse.abs() * scale
    if class_scale is not None:
        share = share * class_scale.abs().max()
    largest = torch.where(active, share * slope + d_target_cos.abs(), 0).max() * p.multiplier.max()
    if p.normalize_weight["NORMALIZE_WEIGHT"]:
        largest = largest / torch.where(w_norm < p.eps["EPS"], torch.inf, w_norm).min()
    exponent = (14 - largest.log2().floor()).clamp(-126, 126)
    return torch.where((largest > 0) & largest.isfinite(), exponent, 0).exp2()


def _skipped(p: Launches, skip: torch.Tensor) -> torch.Tensor:
    """The plan without the tiles that hold a target of their rows: those are computed whole."""
    own = p.own[: p.rows]
    entry = torch.arange(p.rows, device=own.device) // SKIP_ROWS * p.tiles + own // p.block
    held = skip.new_zeros(skip.numel() + 1)  # the last entry takes the rows without a target
    held.scatter_(0, torch.where(own >= 0, entry, skip.numel()), 1)
    return skip * (1 - held[:-1].view(skip.shape))


def _lists(skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of the plan the columns that count, first and in order, and how many they are."""
    order = skip.argsort(dim=1, stable=True).to(torch.int32).contiguous()
    return order, (skip == 0).sum(1, dtype=torch.int32)


def _check_backward(p: Launches, call: ClassBackwardCall) -> None:
    for name, tensor in (call.incoming._asdict() | call.forward._asdict()).items():
        if name not in ("w_norm", "kept") and tensor.shape != p.x.shape[:1]:
            raise ValueError(f"{name} must have one entry per row of x ({p.rows}); got {tuple(tensor.shape)}")
    centers = p.classes * p.sub_centers
    if call.forward.w_norm.shape != (centers,):
        raise ValueError(f"w_norm must have one entry per centre ({centers}); got {tuple(call.forward.w_norm.shape)}")
    plan_shape = (triton.cdiv(p.rows, SKIP_ROWS), p.tiles)
    if call.skip.numel() and call.skip.shape != torch.Size(plan_shape):
        raise ValueError(f"skip must be empty or have shape {plan_shape}; got {tuple(call.skip.shape)}")


def class_statistics_backward(call: ClassBackwardCall) -> ClassGradients:
    """The op `class_statistics_backward_triton`."""
    p = Launches(call.problem, call.options, int(call.tiles.block))
    _check_backward(p, call)
    out = gradients(call)
    if p.rows == 0:
        return ClassGradients(*(t.zero_() for t in out))
    x, w_norm, skip, block, sub_centers = p.x, call.forward.w_norm, call.skip, p.block, p.sub_centers
    d_neg_lse, d_target_cos, d_x_norm, d_neg_cos_sum = call.incoming
    need_x, need_weight, need_class_scale, need_bias = call.needs
    incoming = [t.contiguous() for t in (d_neg_lse, d_target_cos, d_neg_cos_sum)]
    d_x_norm = d_x_norm.contiguous()
    rows_saved = [t.contiguous() for t in (call.forward.target_center, call.forward.top, call.forward.log_sum)]
    p.prepare_rows(w_norm, incoming=[*incoming, d_x_norm])
    unit = _unit(p, incoming, w_norm) if x.dtype == torch.float16 else None
    plan = _skipped(p, skip) if skip.numel() and not p.kind["SUMMED"] else None
    chunks = p.chunks(p.padded * block * sub_centers * x.dtype.itemsize)
    widest = chunks[0][1] * block
    h = x.new_empty(p.padded * sub_centers * widest)
    # A tile that is left out writes none of its partial sums.
    new = x.new_empty if plan is None else x.new_zeros
    row_tiles = p.padded // p.config.gradient.rows
    tiled, options = p.classes_in(p.config.gradient, w_norm)
    product, transposed = p.config.input, p.config.weight
    programs = p.padded // product.rows * (p.stride // product.columns)
    splits = max(1, min(PROGRAMS // programs, chunks[0][1]))
    total = x.new_empty(splits if need_x else 0, p.padded, p.stride, dtype=p.dtype)
    for first, tiles in chunks:
        chunk, first_class = tiles * block, first * block
        last_class = min(p.classes, first_class + chunk)
        sums = [
            new(row_tiles, width if need else 0, dtype=p.dtype)
            for width, need in (
                (sub_centers * chunk, need_weight and call.options.normalize_weight),
                (chunk, need_class_scale),
                (chunk, need_bias),
            )
        ]
        launch(
            gradient_kernel, row_tiles * (chunk // p.config.gradient.columns),
            tiled, *rows_saved, *incoming, unit, plan, h, *(t if t.numel() else None for t in sums), row_tiles, chunk,
            p.classes, first, p.tiles, SKIP_ROWS=SKIP_ROWS, TILE=block, **options,
        )  # fmt: skip
        radial, *of_classes = sums
        for result, partial in zip((out.dclass_scale, out.dbias), of_classes, strict=True):
            if result.numel():
                torch.sum(partial[:, : last_class - first_class], dim=0, out=result[first_class:last_class])
        lists: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        constants = {**p.shape, **p.precision, "SUB_CENTERS": sub_centers, "GROUP": p.group, "TILE": block}
        if need_weight:
            if plan is not None:
                lists = _lists(plan[:, first : first + tiles].t())
            launch(
                weight_kernel, chunk // transposed.rows * sub_centers * (p.stride // transposed.columns),
                p.copy, h, p.weight, p.index, w_norm, radial.sum(0) if radial.numel() else None, unit, *lists,
                out.dweight, p.padded // p.group, chunk, p.classes, first_class, **p.eps, **constants,
                BLOCK_CLASSES=transposed.rows, BLOCK_D=transposed.columns, BLOCK_ROWS=transposed.depth,
                num_warps=transposed.warps, num_stages=transposed.stages,
            )  # fmt: skip
        if need_x:
            if plan is not None:
                lists = _lists(plan[:, first : first + tiles])
            launch(
                input_kernel, programs * splits,
                h, p.weight, p.index, *lists, total, p.padded // product.rows, splits, tiles, chunk, p.classes,
                first_class, int(first == chunks[0][0]), **constants, BLOCK_ROWS=product.rows,
                BLOCK_D=product.columns, BLOCK_CLASSES=product.depth, num_warps=product.warps,
                num_stages=product.stages,
            )  # fmt: skip
    if need_x:
        launch(
            finish_kernel, p.padded // 4,
            total.sum(0), p.copy, p.multiplier, p.own, call.forward.x_norm.contiguous(), d_x_norm, unit, out.dx,
            p.rows, **p.eps, **p.normalize_x, **p.shape, BLOCK_ROWS=4,
            BLOCK_D=min(1024, triton.next_power_of_2(p.stride)), num_warps=4,
        )  # fmt: skip
    return out
