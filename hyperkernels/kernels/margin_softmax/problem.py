"""What the class-softmax ops are called with and return, and the plan of their tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..._dtypes import accumulate_dtype, widest_dtype
from ..._schema import Report, Size, Tensor

# As the number of a row's class within a part of the classes: the row takes no part, its class is in another part, it
# has no class at all.
IGNORED, ABSENT, OUTSIDE = -1, -2, -3
SMALL = 4 * 2**20  # bytes that nobody misses
SKIP_ROWS = {"cpp": 1, "triton": 128}  # of each kernel set: the rows that skip a tile together


class ClassProblem(NamedTuple):
    """With `classes`, these classes alone exist: C is R everywhere but in the weight, whose rows are read where they
    are, the target is a position among them, and dweight holds their rows alone, [R*K, D]."""

    x: Tensor  # [N, D]
    weight: Tensor  # [C*K, D]
    target: Tensor  # [N] int64
    scale: Tensor  # [N], of the accumulator's dtype, as the three below
    class_scale: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    transform: Tensor | None  # [N, P], the parameters of the negatives
    classes: Tensor | None  # [R] int64, increasing


class Options(NamedTuple):
    """What a problem is apart from its tensors."""

    negatives: str = "cosine"
    sub_centers: int = 1
    normalize_x: bool = True
    normalize_weight: bool = True
    eps: float = 1e-12
    ignore_index: int = -100
    absent_index: int = -100  # equal to ignore_index: no row is absent


class ClassTiles(NamedTuple):
    """How many classes a tile holds, and of how many tiles the forward keeps the cosines."""

    block: Size
    kept_blocks: Size


class ClassRowStatistics(NamedTuple):
    """The statistics of the class cosines, [N] each; `functional.ClassStatistics` says what each is."""

    neg_lse: Tensor
    target_cos: Tensor
    x_norm: Tensor
    hardest_cos: Tensor
    hardest_class: Tensor
    neg_cos_sum: Tensor
    target_center: Tensor
    hard_cos_sum: Tensor
    hard_count: Tensor

    def rounded(self) -> ClassRowStatistics:
        """The statistics with target_cos in the dtype of the others, as callers see them."""
        return self._replace(target_cos=self.target_cos.to(self.neg_lse.dtype))


class ClassStatisticsCall(NamedTuple):
    problem: ClassProblem
    options: Options
    tiles: ClassTiles
    skip_budget: float
    skip_report: Report  # [2] float64


class ClassStatisticsResult(NamedTuple):
    """The statistics, target_cos in float64, and what only the backward reads."""

    statistics: ClassRowStatistics
    top: Tensor  # [N], with neg_lse = scale * top + log_sum
    log_sum: Tensor  # [N]
    scale_slope: Tensor  # [N], the derivative of neg_lse to scale
    w_norm: Tensor  # [C*K]
    block_lse: Tensor  # [N, tiles], the log-sum-exp of each tile; empty where skip_budget is 0
    kept: Tensor  # the cosines of kept_blocks tiles, [N, block*K] each


class Incoming(NamedTuple):
    """The gradients of those statistics that have one, [N] each."""

    d_neg_lse: Tensor
    d_target_cos: Tensor
    d_x_norm: Tensor
    d_neg_cos_sum: Tensor


class ForwardSums(NamedTuple):
    """What the backward reads of the forward's results."""

    x_norm: Tensor
    target_center: Tensor
    top: Tensor
    log_sum: Tensor
    w_norm: Tensor
    kept: Tensor


class Needs(NamedTuple):
    need_x: bool
    need_weight: bool
    need_class_scale: bool
    need_bias: bool


class ClassBackwardCall(NamedTuple):
    incoming: Incoming
    problem: ClassProblem
    forward: ForwardSums
    skip: Tensor  # uint8 [ceil(N / SKIP_ROWS), tiles], or empty: nothing is skipped
    options: Options
    tiles: ClassTiles
    needs: Needs


class ClassGradients(NamedTuple):
    """Empty where they are not needed."""

    dx: Tensor
    dweight: Tensor
    dclass_scale: Tensor
    dbias: Tensor


def plan_cpp(n: int, c: int, sub_centers: int, d: int, dtype: torch.dtype, workspace: int | None) -> ClassTiles:
    """The tiles within `workspace` bytes."""
    # About 32 tiles of 128 to 512 centres: with fewer the products run slower.
    block = max(1, min(512, -(-c * sub_centers // (32 * 128)) * 128) // sub_centers)
    blocks = -(-c // block)
    budget = max(c * sub_centers * d * dtype.itemsize // 4, SMALL) if workspace is None else workspace
    tile = n * block * sub_centers * accumulate_dtype(dtype).itemsize
    return ClassTiles(block, min(blocks, budget // max(1, tile)))


def plan_triton(n: int, c: int, sub_centers: int, d: int, dtype: torch.dtype, workspace: int | None) -> ClassTiles:
    """The same for the GPU, where computing a tile again costs less than reading it back."""
    from .triton import plans

    return ClassTiles(plans.tile_classes(d, dtype, sub_centers), 0)


def count_classes(weight: torch.Tensor, classes: torch.Tensor | None, sub_centers: int) -> int:
    """How many classes take part."""
    return weight.shape[0] // sub_centers if classes is None else classes.shape[0]


def target_dtype(device: torch.device) -> torch.dtype:
    """The dtype of target_cos, whatever the inputs': the slope of an angular margin grows as the angle shrinks, and
    float32 cannot tell the cosine of a small angle from 1."""
    return widest_dtype(device)


def results(call: ClassStatisticsCall) -> ClassStatisticsResult:
    """What the forward returns, not yet written."""
    (x, weight, target, *_, classes), options, tiles, skip_budget, _ = call
    n, count = x.shape[0], count_classes(weight, classes, options.sub_centers)
    dtype = accumulate_dtype(x.dtype)

    def rows() -> torch.Tensor:
        return x.new_empty(n, dtype=dtype)

    statistics = ClassRowStatistics(
        neg_lse=rows(),
        target_cos=x.new_empty(n, dtype=target_dtype(x.device)),
        x_norm=rows(),
        hardest_cos=rows(),
        hardest_class=target.new_empty(n),
        neg_cos_sum=rows(),
        target_center=target.new_empty(n),
        hard_cos_sum=rows(),
        hard_count=rows(),
    )
    tile_count = (count + tiles.block - 1) // tiles.block
    return ClassStatisticsResult(
        statistics,
        top=rows(),
        log_sum=rows(),
        scale_slope=rows(),
        w_norm=x.new_empty(count * options.sub_centers, dtype=dtype),
        block_lse=x.new_empty((n, tile_count) if skip_budget > 0 else (0, 0), dtype=dtype),
        kept=x.new_empty(tiles.kept_blocks * n * tiles.block * options.sub_centers, dtype=dtype),
    )


def gradients(call: ClassBackwardCall) -> ClassGradients:
    """What the backward returns, not yet written."""
    (x, weight, *_, classes), needs = call.problem, call.needs
    count = count_classes(weight, classes, call.options.sub_centers)
    dtype = accumulate_dtype(x.dtype)
    return ClassGradients(
        dx=torch.empty_like(x, memory_format=torch.contiguous_format) if needs.need_x else x.new_empty(0),
        dweight=weight.new_empty(count * call.options.sub_centers, weight.shape[1])
        if needs.need_weight
        else weight.new_empty(0),
        dclass_scale=x.new_empty(count if needs.need_class_scale else 0, dtype=dtype),
        dbias=x.new_empty(count if needs.need_bias else 0, dtype=dtype),
    )
