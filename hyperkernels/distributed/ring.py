"""Pairs with the columns of all ranks, whose embeddings travel from rank to rank: a rank has at most two blocks in
memory, the present one and the next.

Every rank computes the statistics of its rows over the block that it has and sends the block on; the statistics of all
blocks are merged. In the backward the blocks travel again, each followed by the sum of its gradients, which ends at the
block's owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .._dtypes import accumulate_dtype
from ..kernels.pair_mining import op
from ..kernels.pair_mining.blocks import gradients, merged, statistics
from ..kernels.pair_mining.problem import Columns, PairProblem, PairRowStatistics, RowSide, Tile, Transform, plan
from ..pairs.codes import codes
from ..pairs.pairs import SORTED_TILE, Pairs
from ..pairs.source import Sides
from .pairs import Batch, RankPairs


class Ask(NamedTuple):
    select: str
    moments: bool
    transform: Transform


class RingPairs(RankPairs):
    def __init__(self, batch: Batch, own: Pairs, first: int) -> None:
        super().__init__(batch, own, first)
        label, ref_label = codes(self.labels, self.all_labels)
        none = label.new_empty(0)
        id, ref_id = (none, none) if batch.ids is None else codes(batch.ids, batch.all_ids)
        # Sorted by label, the tiles of a block without a positive pair are skipped.
        self.order = label.argsort(stable=True)
        starts = [sum(batch.rows[:rank]) for rank in range(len(batch.rows) + 1)]
        self.blocks = [slice(*bounds) for bounds in pairwise(starts)]
        self.ref_order = torch.cat([ref_label[block].argsort(stable=True) + block.start for block in self.blocks])
        self.codes = label[self.order], ref_label[self.ref_order]
        self.ids = (none, none) if batch.ids is None else (id[self.order], ref_id[self.ref_order])

    def problem(self, select: str, x: torch.Tensor, block: torch.Tensor, source: int) -> PairProblem:
        columns = self.blocks[source]
        (label, ref_label), (id, ref_id) = self.codes, self.ids
        ref = block[: self.batch.rows[source]]
        return PairProblem(
            x, ref, label, ref_label[columns], id, ref_id[columns], None, None, select, self.own.similarity
        )  # fmt: skip

    def visits(self, block: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields (owner, block) for each block: this rank's own first, then those that arrive from the rank before."""
        ranks = self.group.ranks
        for step in range(ranks.size):
            last = step == ranks.size - 1
            following, wait = (block, None) if last else ranks.pass_on(block)
            yield (ranks.rank - step) % ranks.size, block
            if wait is not None:
                wait()
            block = following

    def together(self, asked: Sequence[Mapping[str, Any]], both: bool = False) -> list[Sides]:
        numbers: list[torch.Tensor | None] = []
        for one in asked:
            for name in ("scale", "offset"):
                v = self.own.row_numbers(name, one.get(name))
                numbers.append(None if v is None else v[self.order])
            if both:
                of_columns = self.own.row_numbers("scale", one["scale"], len(self.ref_order))
                numbers += [None if of_columns is None else of_columns.contiguous(), None]
        asks = [Ask(one["select"], one.get("moments", False), one["transform"]) for one in asked]
        mine = self.ref_order[self.blocks[self.group.ranks.rank]] - self.batch.start
        block = self.batch.keys[mine]
        block = F.pad(block, (0, 0, 0, max(self.batch.rows) - len(block)))  # of one shape on all ranks
        out = _Ring.apply(self, asks, both, self.x[self.order], block, *numbers)
        sides = [out[k : k + 3] for k in range(0, len(out), 3)]
        if not both:
            return [(_unsorted(side, self.order),) for side in sides]
        return [
            (_unsorted(rows, self.order), self.own_columns(_unsorted(columns, self.ref_order), ask.moments))
            for ask, rows, columns in zip(asks, sides[::2], sides[1::2], strict=True)
        ]


def _unsorted(numbers: Sequence[torch.Tensor], order: torch.Tensor) -> PairRowStatistics:
    """Statistics of count, sum and lse, taken back from the order of the labels to that of the rows."""
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    count, total, value = (v[place] if v.numel() else v for v in numbers)
    return statistics(count, total, value)


def _tile(ask: Ask, problem: PairProblem) -> Tile:
    return SORTED_TILE if ask.select == "positive" else plan(problem)


class _Ring(torch.autograd.Function):
    """count, sum and lse of the rows for each Ask; with `both` also those of all columns over these rows.

    `numbers` are the scale and the offset of each side.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ring: RingPairs,
        asks: list[Ask],
        both: bool,
        x: torch.Tensor,
        block: torch.Tensor,
        *numbers: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        parts: list[list[Any]] = [[None] * len(ring.blocks) for _ in asks]
        given = [numbers[k : k + 2 + 2 * both] for k in range(0, len(numbers), 2 + 2 * both)]
        for source, visitor in ring.visits(block):
            for ask, (scale, offset, *of_columns), found in zip(asks, given, parts, strict=True):
                problem = ring.problem(ask.select, x, visitor, source)
                asked = Columns(scale=_at(of_columns[0], ring.blocks[source])) if both else None
                found[source] = op.pair_statistics(
                    problem, scale, offset, ask.moments, False, ask.transform, asked, _tile(ask, problem)
                )
        sides: list[PairRowStatistics] = []
        for ask, by_rank in zip(asks, parts, strict=True):
            sides.append(merged([rows for rows, _ in by_rank], ask.transform))
            if both:
                of_blocks = zip(*(columns for _, columns in by_rank), strict=True)
                sides.append(PairRowStatistics(*(torch.cat(v) for v in of_blocks)))
        ctx.ring, ctx.asks, ctx.both = ring, asks, both
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(side.count for side in sides))
        kept = [v for side in sides for v in (side.lse, side.d_scale, side.d_offset)]
        ctx.save_for_backward(x, block, *numbers, *kept)
        return tuple(v for side in sides for v in (side.count, side.sum, side.lse))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor | None) -> tuple[Any, ...]:
        x, block, *saved = ctx.saved_tensors
        sides: list[RowSide] = []
        of_numbers: list[torch.Tensor | None] = []
        count = len(given) // 3
        for k in range(count):
            scale, offset = saved[2 * k : 2 * k + 2]
            value, *slopes = saved[2 * count + 3 * k : 2 * count + 3 * k + 3]
            _, d_sum, d_value = given[3 * k : 3 * k + 3]
            sides.append(RowSide(_coefficients(d_sum, d_value, scale, value), scale, offset, value))
            of_numbers += [
                d_value * slope if need and d_value is not None else None
                for slope, need in zip(slopes, ctx.needs_input_grad[5 + 2 * k : 7 + 2 * k], strict=True)
            ]
        rows, columns = (sides[::2], sides[1::2]) if ctx.both else (sides, None)
        dx, dblock = _round(ctx.ring, ctx.asks, rows, columns, x, block, *ctx.needs_input_grad[3:5])
        return None, None, None, dx, dblock, *of_numbers


def _at(v: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if v is None else v[rows]


def _coefficients(
    d_sum: torch.Tensor | None, d_value: torch.Tensor | None, scale: torch.Tensor | None, value: torch.Tensor
) -> torch.Tensor:
    """The coefficients [4, N] of `op.BACKWARD`."""
    zero = torch.zeros_like(value)
    c0 = zero if d_value is None or scale is None else d_value * scale
    k0 = zero if d_sum is None or not d_sum.numel() else d_sum
    return torch.stack([c0, zero, k0, zero])


def _round(
    ring: RingPairs,
    asks: list[Ask],
    rows: Sequence[RowSide],
    columns: Sequence[RowSide] | None,
    x: torch.Tensor,
    block: torch.Tensor,
    need_x: bool,
    need_block: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and of this rank's block; all ranks need them, or none."""
    if not (need_x or need_block):
        return None, None
    dtype = accumulate_dtype(x.dtype)
    dx, total, wait = torch.zeros_like(x, dtype=dtype), None, None
    for source, visitor in ring.visits(block):
        share = torch.zeros_like(visitor, dtype=dtype)
        for k, ask in enumerate(asks):
            problem = ring.problem(ask.select, x, visitor, source)
            here = None if columns is None else columns[k].part(ring.blocks[source])
            of_x, of_block = gradients(problem, ask.transform, rows[k], here, _tile(ask, problem), need_x, need_block)
            if need_x:
                dx += of_x
            if need_block:
                share[: len(of_block)] += of_block
        if need_block:
            if total is not None and wait is not None:
                wait()
                share += total
            total, wait = ring.group.ranks.pass_on(share)
    if wait is not None:
        wait()
    return dx.to(x.dtype) if need_x else None, None if total is None else total.to(block.dtype)
