"""Shared by the miners: checked pairs with labels, bounds, the pairs of chosen rows, random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .. import _check
from ..kernels.pair_mining.philox import philox
from ..kernels.pair_mining.problem import PairProblem
from ..pairs.pairs import Pairs

# Rows are processed in parts: the elements of the temporaries of a part, and the smallest number of its rows.
_PART, _SMALLEST_PART = 1 << 26, 1024

Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
PairLists = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def labelled_pairs(x: Any, labels: Any, ref: Any, ref_labels: Any, **options: Any) -> Pairs:
    """Pairs in which every row and column has a label."""
    _check.tensor("labels", labels, (torch.int64,), dim=1)
    if ref is not None:
        _check.tensor("ref_labels", ref_labels, (torch.int64,), dim=1)
    return Pairs(x, labels, ref, ref_labels, **options)


def above(value: torch.Tensor) -> torch.Tensor:
    """The next larger number: u < above(t) is the same as u <= t."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def is_distance(similarity: str) -> bool:
    return similarity in ("euclidean", "squared_euclidean")


def problem_of_rows(
    pairs: Pairs, rows: torch.Tensor, select: str, lower: torch.Tensor | None, upper: torch.Tensor | None
) -> PairProblem:
    """The problem restricted to these rows, which may repeat; the bounds are [len(rows)]."""
    p = pairs.problem(select)

    def take(v: torch.Tensor) -> torch.Tensor:
        return v[rows] if v.numel() else v

    return p._replace(
        x=p.x[rows], ref=pairs.keys, label=take(p.label), id=take(p.id), lower=lower, upper=upper
    )  # fmt: skip


def parts(total: int, pairs: Pairs) -> Iterator[slice]:
    """Slices of range(total), so small that one number for each row and column (or feature) of a slice takes little
    memory."""
    step = max(_SMALLEST_PART, _PART // max(pairs.m, pairs.x.shape[1], 1))
    return (slice(start, start + step) for start in range(0, total, step))


def seed_of(seed: int | None) -> int:
    """The given seed, or one from torch's default generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, ()))
    return _check.integer("seed", seed)


def random_words(rows: torch.Tensor, columns: torch.Tensor, purpose: int, seed: int) -> list[torch.Tensor]:
    """Four random 32-bit numbers, as int64, for each (row, column), the same on every device. Different values of
    `purpose` give independent streams of one seed; 0 is that of the op `pair_sample`."""
    fill = torch.zeros_like(columns)
    return philox([columns, rows.expand_as(columns), fill, torch.full_like(columns, purpose)], seed)
