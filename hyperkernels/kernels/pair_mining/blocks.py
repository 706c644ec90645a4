"""Statistics whose columns come in blocks: what the blocks make together, and the gradient at the pairs of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ... import _backend
from . import op
from .problem import (
    ColumnSide,
    PairBackwardCall,
    PairGradients,
    PairProblem,
    PairRowStatistics,
    RowSide,
    Tile,
    Transform,
)
from .reference import of_problem


def statistics(count: torch.Tensor, total: torch.Tensor, lse: torch.Tensor) -> PairRowStatistics:
    """With these, and no others."""
    none = lse.new_empty(0)
    return PairRowStatistics(
        count, total, sum_squares=none, min=none, argmin=none, max=none, argmax=none, lse=lse,
        d_scale=none, d_offset=none,
    )  # fmt: skip


def log_sum_exp(parts: torch.Tensor) -> torch.Tensor:
    """Over the first dimension; where all are -inf, the gradient of torch.logsumexp is NaN."""
    some = (parts != -torch.inf).any(0)
    return torch.where(some, torch.where(some, parts, 0).logsumexp(0), -torch.inf)


def merged(parts: Sequence[PairRowStatistics], transform: Transform) -> PairRowStatistics:
    """Of all blocks; without extremes."""
    stacked = PairRowStatistics(*(torch.stack(v) for v in zip(*parts, strict=True)))
    sums = PairRowStatistics(*(v.sum(0) for v in stacked))
    if transform.name in ("none", "softplus"):
        return sums
    lse = log_sum_exp(stacked.lse)
    share = torch.where(stacked.lse == -torch.inf, 0, (stacked.lse - lse).exp())
    return sums._replace(lse=lse, d_scale=(share * stacked.d_scale).sum(0))


def gradients(
    problem: PairProblem,
    transform: Transform,
    rows: RowSide,
    columns: RowSide | None,
    tile: Tile,
    need_x: bool,
    need_ref: bool,
) -> PairGradients:
    """Of x and of ref, for the pairs of the problem; empty where not needed."""
    backend = _backend.select("pair_mining", problem.x.device)
    if backend == "reference":
        return PairGradients(*_in_pytorch(problem, transform, rows, columns, need_x, need_ref))
    of_columns = ColumnSide()
    if columns is not None:
        of_columns = ColumnSide(
            scale=columns.scale, offset=columns.offset, coefficients=columns.coefficients, lse=columns.lse
        )
    call = PairBackwardCall(problem, rows, columns is not None, of_columns, transform, tile, need_x, need_ref)
    return op.BACKWARD(call, backend)


def _in_pytorch(
    problem: PairProblem, transform: Transform, rows: RowSide, columns: RowSide | None, need_x: bool, need_ref: bool
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


def _weight(u: torch.Tensor, side: RowSide, transform: Transform) -> torch.Tensor:
    c0, c1, k0, k1 = side.coefficients[:, :, None]
    if transform.name == "none":
        return k0 + k1 * u
    assert side.scale is not None and transform.name in ("linear", "softplus")
    z = side.scale[:, None] * u
    if transform.name == "linear":
        return (c0 + c1 * u) * (z - side.lse[:, None]).exp() + k0 + k1 * u
    return c0 * torch.sigmoid(z if side.offset is None else z + side.offset[:, None]) + k0 + k1 * u
