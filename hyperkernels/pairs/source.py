"""What a pair loss is of. It asks for numbers of its rows and does not know where the columns are: in this batch, in
lists that a miner made, in the memory of other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from ..kernels.pair_mining.problem import PairRowStatistics, Transform

Bound = torch.Tensor | float | None
Sides = tuple[PairRowStatistics, ...]  # of the rows, and where asked for of the columns


class Listed(NamedTuple):
    """Pairs row by row, [K] each: rows, columns (rising within a row) and similarities, which carry no gradient."""

    rows: torch.Tensor
    columns: torch.Tensor
    similarities: torch.Tensor
    offsets: torch.Tensor  # [N + 1]: the pairs of row i are at offsets[i] .. offsets[i+1]


class PairSource(Protocol):
    """N rows, M columns, and which of their pairs are "positive" and "negative"; "all" is both."""

    n: int
    m: int
    dtype: torch.dtype  # of the statistics
    device: torch.device
    group: Any = None  # a `distributed.pairs.Group` where the rows are shared out among processes

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
        """Of the pairs of that selection with lower < similarity < upper, by rows.

        scale, offset, lower and upper are numbers, scalars or [N]; scale and offset are differentiable.
        """
        ...

    def values(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The similarities of the listed pairs, [K]; differentiable."""
        ...

    def values_at(self, columns: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
        """The similarity of every row with one column each, [N]; `missing` where that is -1. Differentiable."""
        ...

    def together(self, asked: Sequence[Mapping[str, Any]], both: bool = False) -> list[Sides]:
        """The statistics for each of the keywords asked; with `both` those of the columns too. In one pass where the
        columns have to travel."""
        if both:
            raise NotImplementedError(f"{type(self).__name__} has no statistics of columns")
        return [(self.statistics(**one),) for one in asked]


class LocalPairSource(PairSource, Protocol):
    """All of its pairs are this process's: they can be listed and put into bins."""

    labels: torch.Tensor | None  # [N]

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
        """The statistics of the rows and those of the columns, in one pass; where ref is None, columns are rows."""
        ...

    def listed(self, select: str, lower: Bound = None, upper: Bound = None) -> Listed:
        """All pairs that count."""
        ...

    def binned(
        self, select: str, edges: torch.Tensor, offsets: torch.Tensor, lower: Bound = None, upper: Bound = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Count, sum (differentiable), largest similarity and its column in every bin; row i has the rising edges
        edges[offsets[i]:offsets[i+1]] and one bin more than edges."""
        ...

    def row_numbers(self, name: str, value: Bound, n: int | None = None) -> torch.Tensor | None:
        """[N] (or [n]) of the statistics' dtype, from a number, a scalar or one number per row; None stays."""
        ...

    def together(self, asked: Sequence[Mapping[str, Any]], both: bool = False) -> list[Sides]:
        return [self.statistics_of_both(**one) for one in asked] if both else super().together(asked)
