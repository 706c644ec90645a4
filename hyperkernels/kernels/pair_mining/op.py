"""The pair-statistics op: its gradients, and which backend runs it. `selections.py` holds the ops that return pairs
rather than sums."""

from __future__ import annotations

import torch

from ... import _backend
from ..._dtypes import accumulate_dtype
from ..._ops import Gradient, Operation
from . import reference
from .problem import (
    Columns,
    ColumnSide,
    PairBackwardCall,
    PairGradients,
    PairProblem,
    PairRowStatistics,
    PairStatisticsCall,
    PairStatisticsResult,
    RowSide,
    Tile,
    Transform,
    gradient_results,
    plan,
    statistics_results,
    transposed,
)


def _coefficients(
    gradients: PairRowStatistics,
    like: torch.Tensor,
    n: int,
    scale: torch.Tensor | None,
    d_scale: torch.Tensor,
    transform: str,
) -> torch.Tensor:
    """[4, N] from the gradients of the statistics, None (or empty, of one not asked for) where there is none."""
    gradients = PairRowStatistics(*(None if g is None or not g.numel() else g for g in gradients))  # type: ignore[arg-type]
    zero = like.new_zeros(n, dtype=accumulate_dtype(like.dtype))
    c0 = c1 = zero
    if transform != "none":
        assert scale is not None
        if gradients.lse is not None:
            c0 = gradients.lse * scale
        if transform == "linear" and gradients.d_scale is not None:
            c0 = c0 + gradients.d_scale * (1 - scale * d_scale)
            c1 = gradients.d_scale * scale
    k0 = zero if gradients.sum is None else gradients.sum
    k1 = zero if gradients.sum_squares is None else 2 * gradients.sum_squares
    return torch.stack([c0, c1, k0, k1])


def _parameter_gradients(
    d: PairRowStatistics, slopes: PairRowStatistics, prefix: str, needs: frozenset[str]
) -> dict[str, torch.Tensor | None]:
    """Of the scale and the offset of one side, whose slopes the forward has returned."""
    if prefix + "scale" in needs and d.d_scale is not None:
        raise RuntimeError("the softmax-weighted mean has no derivative to the scale; detach the scale")
    found: dict[str, torch.Tensor | None] = {}
    for name, slope in (("scale", slopes.d_scale), ("offset", slopes.d_offset)):
        if prefix + name in needs and d.lse is not None and slope.numel() == d.lse.numel():
            found[prefix + name] = d.lse * slope
    return found


def _backward(
    call: PairStatisticsCall,
    result: PairStatisticsResult,
    d: PairStatisticsResult,
    needs: frozenset[str],
    backend: str,
) -> dict[str, torch.Tensor | None]:
    (x, ref, *_), of_columns, transform = call.problem, call.of_columns, call.transform
    found = _parameter_gradients(d.rows, result.rows, "", needs)
    found |= _parameter_gradients(d.columns, result.columns, "ref_", needs)
    if "x" not in needs and "ref" not in needs:
        return found
    n, slopes = x.shape[0], result.rows
    coefficients = _coefficients(d.rows, x, n, call.scale, slopes.d_scale, transform.name)
    columns = ColumnSide(*of_columns)
    if call.columns:
        assert ref is not None
        slopes, m = result.columns, ref.shape[0]
        of_ref = _coefficients(d.columns, x, m, of_columns.scale, slopes.d_scale, transform.name)
        columns = columns._replace(coefficients=of_ref, lse=slopes.lse)
    rows = RowSide(coefficients, call.scale, call.offset, result.rows.lse)
    dx, dref = BACKWARD(
        PairBackwardCall(call.problem, rows, call.columns, columns, transform, call.tile, "x" in needs, "ref" in needs),
        backend,
    )
    return found | {"x": dx, "ref": dref}


def _differentiable(call: PairStatisticsCall) -> tuple[str, ...]:
    of_rows = ("sum", "sum_squares", "lse", *(("d_scale",) if call.transform.name == "linear" else ()))
    return (*of_rows, *(f"column_{name}" for name in of_rows))


BACKWARD = Operation(
    "pair_statistics_backward",
    PairBackwardCall,
    PairGradients,
    results=lambda call: gradient_results(call.problem.x, call.problem.ref, call.need_x, call.need_ref),
    triton="kernels.pair_mining.triton.backward:pair_statistics_backward",
)
STATISTICS = Operation(
    "pair_statistics",
    PairStatisticsCall,
    PairStatisticsResult,
    results=statistics_results,
    triton="kernels.pair_mining.triton.forward:pair_statistics",
    gradient=Gradient(
        inputs=("x", "ref", "scale", "offset", "ref_scale", "ref_offset"),
        backward=_backward,
        outputs=_differentiable,
        saved=tuple(prefix + name for prefix in ("", "column_") for name in ("lse", "d_scale", "d_offset")),
    ),
)


def pair_statistics(
    problem: PairProblem,
    scale: torch.Tensor | None,  # [N]
    offset: torch.Tensor | None,
    moments: bool,
    extremes: bool,
    transform: Transform,
    columns: Columns | None = None,
    tile: Tile | None = None,
) -> tuple[PairRowStatistics, PairRowStatistics | None]:
    """Of the rows, and where `columns` is given of the columns too (ref must be given then)."""
    backend = _backend.select("pair_mining", problem.x.device)
    if backend == "reference":
        rows = reference.statistics(problem, scale, offset, moments, extremes, transform)
        if columns is None:
            return rows, None
        other = transposed(problem, columns)
        return rows, reference.statistics(other, columns.scale, columns.offset, moments, extremes, transform)
    of_both = columns is not None
    call = PairStatisticsCall(
        problem, scale, offset, of_both, columns or Columns(), moments, extremes, transform,
        plan(problem) if tile is None else tile,
    )  # fmt: skip
    found = STATISTICS(call, backend)
    return found.rows, found.columns if of_both else None
