"""Random problems for the ops of pair mining, and their statistics by the kernels and by the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from hyperkernels import backend
from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import op
from hyperkernels.kernels.pair_mining.reference import PairProblem, PairRowStatistics, Transform

DIFFERENTIABLE = ("sum", "sum_squares", "lse")  # and d_scale of "linear"


@dataclass
class Case:
    problem: PairProblem
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    columns: op.Columns | None
    moments: bool
    extremes: bool
    transform: Transform

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another dtype."""
        wide = accumulate_dtype(dtype)
        p = self.problem

        def cast(tensor: torch.Tensor | None, to: torch.dtype = wide) -> torch.Tensor | None:
            return None if tensor is None else tensor.detach().to(to)

        problem = p._replace(x=cast(p.x, dtype), ref=cast(p.ref, dtype), lower=cast(p.lower), upper=cast(p.upper))
        columns = None if self.columns is None else op.Columns(*map(cast, self.columns))
        return replace(self, problem=problem, scale=cast(self.scale), offset=cast(self.offset), columns=columns)


def labels(kind: str, n: int, classes: int) -> torch.Tensor:
    """none, codes, ignored (some codes are -1), bits, or huge (codes at both ends of int32)."""
    if kind == "none":
        return torch.empty(0, dtype=torch.int32)
    if kind == "bits":
        bits = (torch.rand(n, 64) < 0.03).long() << torch.arange(64)
        return bits.sum(1)
    code = torch.randint(classes, (n,), dtype=torch.int32)
    if kind == "ignored":
        code[torch.rand(n) < 0.3] = -1
    if kind == "huge":
        code = torch.where(code % 2 == 0, 2**31 - 1 - code, code)
        code[torch.rand(n) < 0.1] = -(2**31)
    return code


def rows(n: int, d: int, values: str, dtype: torch.dtype) -> torch.Tensor:
    """unit: random unit vectors; eighths: multiples of 1/8, whose products are exact in every dtype."""
    if values == "eighths":
        return (torch.randint(-4, 5, (n, d)) / 8).to(dtype)
    return torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64), dim=1).to(dtype)


def make(
    n=12,
    m=None,  # None: x against itself
    d=8,
    label="codes",
    classes=4,
    id="rows",  # none, rows (excludes i == j), or shared by several
    window="none",  # none, lower, upper or both
    select="all",
    similarity="dot",
    transform="linear",
    scale=4.0,  # the rows' are of both signs where `signs`
    signs=False,
    offset=True,
    columns=False,
    moments=True,
    extremes=True,
    values="unit",
    ordered=False,  # rows sorted by label
    dtype=torch.float64,
) -> Case:
    wide = accumulate_dtype(dtype)
    if label == "none":
        select = "all"

    def side(count: int) -> tuple[torch.Tensor, ...]:
        code = labels(label, count, classes)
        if ordered and label != "bits":
            code = code.sort().values
        if id == "none":
            number = torch.empty(0, dtype=torch.int32)
        elif id == "rows":
            number = torch.arange(count, dtype=torch.int32)
        else:
            number = torch.randint(-1, 5, (count,), dtype=torch.int32)
        return rows(count, d, values, dtype), code, number

    def parameters(count: int) -> tuple[torch.Tensor | None, ...]:
        edge = torch.rand(count, dtype=wide) - (0.5 if similarity == "dot" else 1.5)
        lower = edge - 0.3 if window in ("lower", "both") else None
        upper = edge + 0.4 if window in ("upper", "both") else None
        if transform == "none":
            return lower, upper, None, None
        s = scale * (torch.rand(count, dtype=wide) + 0.5)
        if signs:
            s = torch.where(torch.rand(count) < 0.5, -s, s)
        shift = torch.randn(count, dtype=wide) if offset and transform == "softplus" else None
        return lower, upper, s, shift

    x, code, number = side(n)
    ref, ref_code, ref_number = (None, code, number) if m is None else side(m)
    lower, upper, s, shift = parameters(n)
    of_columns = op.Columns(*parameters(m)) if columns and m is not None else None
    p0, p1 = (0.25, -0.3) if transform == "circle" else (0.0, 0.0)
    problem = PairProblem(x, ref, code, ref_code, number, ref_number, lower, upper, select, similarity)
    return Case(problem, s, shift, of_columns, moments, extremes, Transform(transform, p0, p1))


Result = tuple[list[torch.Tensor], list[torch.Tensor]]
Gradients = Callable[[str, torch.Tensor], torch.Tensor]


def run(case: Case, tile: op.Tile | None, gradients: Gradients) -> Result:
    """All statistics, and the gradients of x and ref; gradients(name, tensor) is what flows into a statistic.

    tile None: the reference.
    """
    p = case.problem
    leaves = [t.detach().clone().requires_grad_() for t in (p.x, p.ref) if t is not None]
    problem = p._replace(x=leaves[0], ref=leaves[1] if len(leaves) > 1 else None)
    arguments: tuple[Any, ...] = (case.scale, case.offset, case.moments, case.extremes, case.transform, case.columns)
    if tile is None:
        with backend("reference"):
            sides = op.pair_statistics(problem, *arguments)
    else:
        sides = op.pair_statistics(problem, *arguments, tile)
    total = leaves[0].new_zeros((), dtype=accumulate_dtype(p.x.dtype))
    for prefix, side in zip(("", "column_"), sides, strict=True):
        for name in DIFFERENTIABLE + (("d_scale",) if case.transform.name == "linear" else ()):
            if side is None or getattr(side, name).numel() == 0:
                continue
            value = getattr(side, name)
            finite = value.isfinite()  # -inf where no pair counts
            total = total + (torch.where(finite, value, 0) * gradients(prefix + name, value)).sum()
    found = [torch.zeros_like(leaf) for leaf in leaves]
    if total.requires_grad:
        found = list(torch.autograd.grad(total, leaves, materialize_grads=True))
    return [t.detach() for side in sides if side is not None for t in side], found


def by_reference(case: Case, gradients: Gradients) -> Result:
    return run(case, None, gradients)


def by_kernel(case: Case, gradients: Gradients, tile: op.Tile | None = None) -> Result:
    return run(case, tile or op.Tile(), gradients)


def fixed_gradients(seed: int = 0) -> Gradients:
    """The same random gradient for a statistic of that name and length in every dtype."""

    def gradient(name: str, like: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    return gradient


def names(case: Case) -> list[str]:
    """Of what `run` returns, in its order."""
    sides = ("", "column_") if case.columns is not None else ("",)
    gradients = ["dx"] if case.problem.ref is None else ["dx", "dref"]
    return [prefix + name for prefix in sides for name in PairRowStatistics._fields] + gradients


def arguments_of(case: Case, tile: op.Tile | None = None) -> list[Any]:
    """Of the op."""
    given = case.columns or op.Columns()
    return [
        *case.problem, case.scale, case.offset, case.columns is not None, *given, case.moments, case.extremes,
        *case.transform, *(tile or op.Tile(4, 8)),
    ]  # fmt: skip
