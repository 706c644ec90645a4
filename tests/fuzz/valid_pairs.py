"""Valid problems of the pair ops."""

from __future__ import annotations

import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining.op import Columns
from hyperkernels.kernels.pair_mining.reference import PairProblem
from tests.support import pair_cases
from tests.support.pair_selection_kernel_cases import SELECTS, SIMILARITIES, make, make_edges

from .registry import Arguments, Context, valid


def _problem(c: Context) -> PairProblem:
    return make(
        c.size(), c.size(), c.dim(), c.choice("none", "codes", "bits"), c.choice(*SELECTS), c.choice(*SIMILARITIES),
        c.chance(), c.chance(), c.chance(0.3), c.chance(0.3), c.dtype(), c.choice(1, 3, 40),
    )  # fmt: skip


def _tile(c: Context) -> Arguments:
    rows, columns = c.choice((1, 1), (3, 5), (7, 64), (128, 128), (256, 512))
    return {"row_tile": rows, "column_tile": columns}


def _needs(c: Context, ref: torch.Tensor | None) -> Arguments:
    return {"need_x": c.chance(0.8), "need_ref": ref is not None and c.chance(0.8)}


@valid("pair_top_k")
def top_k(c: Context) -> Arguments:
    return _problem(c)._asdict() | {"k": c.choice(0, 1, 3, 40)} | _tile(c)


@valid("pair_count")
def count(c: Context) -> Arguments:
    return _problem(c)._asdict() | _tile(c)


@valid("pair_list")
def listed(c: Context) -> Arguments:
    problem, tile = _problem(c), _tile(c)
    suffix = "_triton" if c.triton else ""
    counts = getattr(torch.ops.hyperkernels, f"pair_count{suffix}")(*problem, *tile.values())
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return problem._asdict() | {"offsets": offsets, "total": int(offsets[-1])} | tile


@valid("pair_sample")
def sample(c: Context) -> Arguments:
    problem = _problem(c)
    weights = "exponential" if problem.similarity == "dot" else c.choice("distance", "exponential")
    numbers = {"p0": 3.0, "p1": 0.5, "temperature": c.choice(0.1, 2.0)}
    given = {"draws": c.choice(0, 1, 5), "seed": c.choice(0, 7, 2**40), "weights": weights}
    return problem._asdict() | given | numbers | _tile(c)


def _edges(problem: PairProblem) -> Arguments:
    edges, offsets = make_edges(problem)
    return {"edges": edges, "offsets": offsets}


@valid("pair_bins")
def bins(c: Context) -> Arguments:
    problem = _problem(c)
    return problem._asdict() | _edges(problem) | _tile(c)


@valid("pair_bins_backward")
def bins_backward(c: Context) -> Arguments:
    problem = _problem(c)
    edges = _edges(problem)
    d_sum = torch.randn(len(edges["edges"]) + len(problem.x), dtype=accumulate_dtype(problem.x.dtype))
    return problem._asdict() | edges | {"d_sum": d_sum} | _tile(c) | _needs(c, problem.ref)


@valid("pair_values")
def values(c: Context) -> Arguments:
    n, m, d, dtype, k = c.size(), c.size(), c.dim(), c.dtype(), c.size()
    x = torch.randn(n, d).to(dtype)
    ref = torch.randn(m, d).to(dtype) if c.chance() else None
    others = n if ref is None else m
    k = k if n and others else 0
    rows, columns = torch.randint(max(n, 1), (k,)), torch.randint(max(others, 1), (k,))
    return {"x": x, "ref": ref, "rows": rows, "columns": columns, "similarity": c.choice(*SIMILARITIES)}


@valid("pair_values_backward")
def values_backward(c: Context) -> Arguments:
    made = values(c)
    d = torch.randn(len(made["rows"]), dtype=accumulate_dtype(made["x"].dtype))
    return {"d": d, **made, **_needs(c, made["ref"])}


def _statistics(c: Context) -> tuple[pair_cases.Case, Arguments]:
    case = pair_cases.make(
        c.size(), c.choice(None, c.size()), c.dim(), c.choice("none", "codes", "ignored", "bits", "huge"),
        c.choice(1, 3, 20), c.choice("none", "rows", "shared"), c.choice("none", "lower", "upper", "both"),
        c.choice(*SELECTS), c.choice(*SIMILARITIES), c.choice("none", "linear", "circle", "softplus"),
        signs=c.chance(), offset=c.chance(), columns=c.chance(), moments=c.chance(), extremes=c.chance(),
        ordered=c.chance(), dtype=c.dtype(),
    )  # fmt: skip
    of_columns = case.columns or Columns()
    sides = {
        "scale": case.scale, "offset": case.offset, "columns": case.columns is not None,
        "ref_lower": of_columns.lower, "ref_upper": of_columns.upper, "ref_scale": of_columns.scale,
        "ref_offset": of_columns.offset,
    }  # fmt: skip
    return case, sides


@valid("pair_statistics")
def statistics(c: Context) -> Arguments:
    case, sides = _statistics(c)
    kind, p0, p1 = case.transform
    asked = {"moments": case.moments, "extremes": case.extremes, "name": kind, "p0": p0, "p1": p1}
    return case.problem._asdict() | sides | asked | _tile(c)


@valid("pair_statistics_backward")
def statistics_backward(c: Context) -> Arguments:
    case, sides = _statistics(c)
    wide, (kind, p0, p1) = accumulate_dtype(case.problem.x.dtype), case.transform

    def numbers(like: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if like is None:
            return None, None
        return torch.randn(4, len(like), dtype=wide), torch.rand(len(like), dtype=wide) * 5 + 5

    coefficients, lse = numbers(case.problem.x)
    ref_coefficients, ref_lse = numbers(case.problem.ref if case.columns is not None else None)
    of_rows = {"coefficients": coefficients, "scale": sides["scale"], "offset": sides["offset"], "lse": lse}
    of_columns = {name: sides[name] for name in ("columns", "ref_lower", "ref_upper", "ref_scale", "ref_offset")}
    rest = {"ref_coefficients": ref_coefficients, "ref_lse": ref_lse, "name": kind, "p0": p0, "p1": p1}
    return case.problem._asdict() | of_rows | of_columns | rest | _tile(c) | _needs(c, case.problem.ref)
