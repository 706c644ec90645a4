"""Statistics whose columns come in blocks: what the blocks make together, and the gradient at the pairs of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import op
from .reference import Problem, Statistics, Transform, of_problem


class Side(NamedTuple):
    """What the gradient at a pair takes from its row, or from its column; `op._BACKWARD` says how."""

    coefficients: torch.Tensor  # [4, N]
    scale: torch.Tensor | None  # [N] each
    offset: torch.Tensor | None
    value: torch.Tensor  # over all blocks

    def part(self, rows: slice) -> Side:
        scale, offset = (None if v is None else v[rows] for v in (self.scale, self.offset))
        return Side(self.coefficients[:, rows].contiguous(), scale, offset, self.value[rows])


def statistics(count: torch.Tensor, total: torch.Tensor, value: torch.Tensor) -> Statistics:
    """With these, and no others."""
    none = value.new_empty(0)
    return Statistics(
        count, total, sum_squares=none, low=none, low_index=none, high=none, high_index=none, value=value,
        d_scale=none, d_offset=none,
    )  # fmt: skip


def log_sum_exp(parts: torch.Tensor) -> torch.Tensor:
    """Over the first dimension; where all are -inf, the gradient of torch.logsumexp is NaN."""
    some = (parts != -torch.inf).any(0)
    return torch.where(some, torch.where(some, parts, 0).logsumexp(0), -torch.inf)


def merged(parts: Sequence[Statistics], transform: Transform) -> Statistics:
    """Of all blocks; without extremes."""
    stacked = Statistics(*(torch.stack(v) for v in zip(*parts, strict=True)))
    sums = Statistics(*(v.sum(0) for v in stacked))
    if transform.name in ("none", "softplus"):
        return sums
    value = log_sum_exp(stacked.value)
    share = torch.where(stacked.value == -torch.inf, 0, (stacked.value - value).exp())
    return sums._replace(value=value, d_scale=(share * stacked.d_scale).sum(0))


def gradients(
    problem: Problem,
    transform: Transform,
    rows: Side,
    columns: Side | None,
    tile: op.Tile,
    need_x: bool,
    need_ref: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x and of ref, for the pairs of the problem; empty where not needed."""
    run = op.kernel("pair_statistics_backward", problem)
    if run is None:
        return _in_pytorch(problem, transform, rows, columns, need_x, need_ref)
    of_columns = (None,) * 4 if columns is None else columns
    return run(
        *problem, *rows, columns is not None, None, None, *of_columns[1:3], of_columns[0], of_columns[3],
        *transform, *tile, need_x, need_ref,
    )  # fmt: skip


def _in_pytorch(
    problem: Problem, transform: Transform, rows: Side, columns: Side | None, need_x: bool, need_ref: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    assert problem.ref is not None
    with torch.enable_grad():
        x, ref = (v.detach().requires_grad_(need) for v, need in ((problem.x, need_x), (problem.ref, need_ref)))
        u, keep = of_problem(problem._replace(x=x, ref=ref))
    fixed = u.detach()
    weight = _weight(fixed, rows, transform)
    if columns is not None:
        weight = weight + _weight(fixed.T, columns, transform).T
    wanted = [v for v, need in ((x, need_x), (ref, need_ref)) if need]
    found = iter(torch.autograd.grad(u, wanted, torch.where(keep, weight, 0)))
    dx, dref = (next(found) if need else fixed.new_empty(0) for need in (need_x, need_ref))
    return dx, dref


def _weight(u: torch.Tensor, side: Side, transform: Transform) -> torch.Tensor:
    c0, c1, k0, k1 = side.coefficients[:, :, None]
    if transform.name == "none":
        return k0 + k1 * u
    assert side.scale is not None and transform.name in ("linear", "softplus")
    z = side.scale[:, None] * u
    if transform.name == "linear":
        return (c0 + c1 * u) * (z - side.value[:, None]).exp() + k0 + k1 * u
    return c0 * torch.sigmoid(z if side.offset is None else z + side.offset[:, None]) + k0 + k1 * u
