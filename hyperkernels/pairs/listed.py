"""The methods of Pairs over explicit lists of pairs: what a miner returned, or what the user chose."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid

from ..kernels.pair_mining.ordered import take
from ..kernels.pair_mining.problem import PairRowStatistics, Transform, nothing_asked
from .pairs import SELECT, Pairs
from .source import Bound, Listed, LocalPairSource

Indices = tuple[torch.Tensor, torch.Tensor]


class Segments(NamedTuple):
    """K numbered entries in runs of equal `of`, rising from 0; reductions over each of the runs."""

    of: torch.Tensor  # [K]
    offsets: torch.Tensor  # [runs + 1]

    @staticmethod
    def sorted(of: torch.Tensor, runs: int) -> Segments:
        return Segments(of, torch.searchsorted(of, torch.arange(runs + 1, device=of.device)))

    def reduce(self, v: torch.Tensor, how: str) -> torch.Tensor:
        """sum, max or min of v [K]; 0, -inf or inf over an empty run. NaN propagates."""
        if not len(v):
            empty = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}[how]
            return v.new_full((len(self.offsets) - 1,), empty) + v.sum()
        return torch.segment_reduce(v, how, offsets=self.offsets, unsafe=True)

    def extreme(self, v: torch.Tensor, columns: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest (smallest) v and the first of `columns` that has it, -1 over an empty run; NaN wins."""
        best = self.reduce(v, how)
        if not len(v):
            return best, torch.full_like(self.offsets[1:], -1)
        here = torch.arange(len(v), device=v.device)
        place = torch.where((v == best[self.of]) | v.isnan(), here, len(v))
        first = torch.full_like(self.offsets[1:], len(v)).scatter_reduce(0, self.of, place, "amin")
        return best, torch.where(self.offsets.diff() > 0, columns[first.clamp_max(len(v) - 1)], -1)

    def logsumexp(self, z: torch.Tensor) -> torch.Tensor:
        some = self.offsets.diff() > 0
        top = torch.where(some, self.reduce(z.detach(), "max"), 0)
        total = self.reduce(torch.exp(z - top[self.of]), "sum")
        return torch.where(some, torch.where(some, total, 1).log() + top, -torch.inf)


class ListedPairs(LocalPairSource):
    """Pairs (rows[k] of x, columns[k] of ref), listed one by one: a list that count as positive, another as negative.

    Losses over Pairs take it in their place. A pair that is listed twice counts twice; with ``distinct`` once.
    Similarities are computed once, and memory is that of the lists.
    """

    def __init__(self, pairs: Pairs, positive: Indices, negative: Indices, *, distinct: bool = False) -> None:
        self.pairs, self.n, self.m, self.labels = pairs, pairs.n, pairs.m, pairs.labels
        self.dtype, self.device = pairs.dtype, pairs.device
        self._positive = self._ordered(*positive, distinct)
        self._negative = self._ordered(*negative, distinct)

    def _ordered(self, rows: torch.Tensor, columns: torch.Tensor, distinct: bool) -> Indices:
        for name, v in (("rows", rows), ("columns", columns)):
            if v.dtype != torch.int64 or v.dim() != 1 or len(v) != len(rows):
                raise ValueError(
                    f"{name} of pairs must be int64 [{len(rows)}]; got {str(v.dtype).removeprefix('torch.')} "
                    f"{tuple(v.shape)}"
                )
        if not len(rows):
            return rows, columns
        for name, v, size in (("rows", rows, self.n), ("columns", columns, self.m)):
            inside = ((v >= 0) & (v < size)).all()
            if v.is_cuda:
                torch._assert_async(inside)  # not read on the host
            elif not inside:
                raise IndexError(f"{name} of pairs must be in [0, {size}); got {int(v.min())} to {int(v.max())}")
        key = (rows * self.m + columns).sort().values
        if distinct:
            key = torch.unique_consecutive(key)
        return key // self.m, key % self.m

    @cached_property
    def _all(self) -> Indices:
        rows, columns = (torch.cat(v) for v in zip(self._positive, self._negative, strict=True))
        return self._ordered(rows, columns, False)

    def _pairs_of(self, select: str) -> Indices:
        return {"positive": self._positive, "negative": self._negative, "all": self._all}[select]

    @cached_property
    def _similarities(self) -> dict[str, torch.Tensor]:
        return {select: self.values(*self._pairs_of(select)) for select in SELECT[:2]}

    def _selected(self, select: str, lower: Bound, upper: Bound) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, columns and similarities of the pairs that count."""
        rows, columns = self._pairs_of(select)
        u = self._similarities[select] if select in self._similarities else self.values(rows, columns)
        low, high = self.row_numbers("lower", lower), self.row_numbers("upper", upper)
        if low is None and high is None:
            return rows, columns, u
        keep = torch.ones_like(rows, dtype=torch.bool)
        if low is not None:
            keep &= ~(u <= low[rows])
        if high is not None:
            keep &= ~(u >= high[rows])
        return rows[keep], columns[keep], u[keep]

    def row_numbers(self, name: str, value: Bound, n: int | None = None) -> torch.Tensor | None:
        return self.pairs.row_numbers(name, value, n)

    def statistics(
        self,
        select: str,
        *,
        moments: bool = False,
        extremes: bool = False,
        transform: Transform = Transform(),
        scale: Bound = None,
        offset: Bound = None,
        lower: Bound = None,
        upper: Bound = None,
    ) -> PairRowStatistics:
        rows, columns, u = self._selected(select, lower, upper)
        return self._statistics(rows, columns, u, self.n, moments, extremes, transform, scale, offset)

    def _statistics(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        u: torch.Tensor,
        n: int,
        moments: bool,
        extremes: bool,
        transform: Transform,
        scale: Bound,
        offset: Bound = None,
    ) -> PairRowStatistics:
        runs = Segments.sorted(rows, n)
        found = {"count": runs.offsets.diff()}
        if moments:
            found |= {"sum": runs.reduce(u, "sum"), "sum_squares": runs.reduce(u.square(), "sum")}
        if extremes:
            found["min"], found["argmin"] = runs.extreme(u.detach(), columns, "min")
            found["max"], found["argmax"] = runs.extreme(u.detach(), columns, "max")
        if transform.name != "none":
            a, b = self.row_numbers("scale", scale, n), self.row_numbers("offset", offset, n)
            assert a is not None
            if transform.name == "softplus":
                z = take(a, rows) * u if b is None else take(a, rows) * u + take(b, rows)
                sigma = torch.sigmoid(z).detach()
                found |= {
                    "lse": runs.reduce(-logsigmoid(-z), "sum"),
                    "d_scale": runs.reduce(sigma * u, "sum").detach(),
                    "d_offset": runs.reduce(sigma, "sum"),
                }
            else:
                power = transform.power(u[:, None], take(a, rows))[:, 0]
                lse = runs.logsumexp(power)
                share = torch.exp(power - take(lse, rows))
                slope = share * u if transform.name == "linear" else (share * power / a[rows]).detach()
                found |= {"lse": lse, "d_scale": runs.reduce(slope, "sum")}
        return nothing_asked(u)._replace(**found)

    def statistics_of_both(
        self,
        select: str,
        *,
        moments: bool = False,
        extremes: bool = False,
        transform: Transform = Transform(),
        scale: Bound = None,
        ref_scale: Bound = None,
    ) -> tuple[PairRowStatistics, PairRowStatistics]:
        rows, columns, u = self._selected(select, None, None)
        of_rows = self._statistics(rows, columns, u, self.n, moments, extremes, transform, scale)
        if self.pairs.ref is None:
            return of_rows, of_rows
        column_scale = scale if ref_scale is None else ref_scale
        order = columns.argsort(stable=True)
        of_columns = self._statistics(
            columns[order], rows[order], u[order], self.m, moments, extremes, transform, column_scale
        )
        return of_rows, of_columns

    def values(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return self.pairs.values(rows, columns)

    def values_at(self, columns: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
        return self.pairs.values_at(columns, missing)

    def listed(self, select: str, lower: Bound = None, upper: Bound = None) -> Listed:
        rows, columns, u = self._selected(select, lower, upper)
        return Listed(rows, columns, u.detach(), Segments.sorted(rows, self.n).offsets)

    def binned(
        self, select: str, edges: torch.Tensor, offsets: torch.Tensor, lower: Bound = None, upper: Bound = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, columns, u = self._selected(select, lower, upper)
        first, after = offsets[rows], offsets[rows + 1]
        if len(edges):
            for _ in range(len(edges).bit_length()):  # the first of the row's edges that is not below u
                middle = (first + after) // 2
                edge = edges[middle.clamp_max(len(edges) - 1)]
                right = (first < after) & ~(edge >= u)
                first, after = torch.where(right, middle + 1, first), torch.where(right, after, middle.maximum(first))
        bins, order = (first + rows).sort(stable=True)
        runs = Segments.sorted(bins, len(edges) + self.n)
        high, argmax = runs.extreme(u[order].detach(), columns[order], "max")
        return runs.offsets.diff(), runs.reduce(u[order], "sum"), high, argmax
