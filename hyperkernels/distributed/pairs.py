"""Pairs of one rank's rows with the columns of all ranks: the batches of all ranks form one batch.

A loss over them is one number that all ranks have. The backward of a sum over ranks passes the gradient on unchanged.
The gradients of another rank's columns are sent back to that rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from .. import _check
from ..kernels.pair_mining.blocks import log_sum_exp, statistics
from ..kernels.pair_mining.problem import PairRowStatistics
from ..pairs.pairs import Pairs
from ..pairs.source import PairSource, Sides
from .collectives import Ranks, gather, gather_rows, replicated

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Times(torch.autograd.Function):
    """The identity; the gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return gradient * ctx.factor, None


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank gets the gradient of its own term."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        return ranks.all_gather(value).sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return gradient, None


class _ToOwners(torch.autograd.Function):
    """`Ranks.to_owners`, differentiable: from [sum(rows), K] to [size, rows[rank], K]."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, ranks: Ranks, rows: list[int]) -> torch.Tensor:
        ctx.ranks, ctx.rows = ranks, rows
        return ranks.to_owners(value, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return ctx.ranks.from_owner(gradient, ctx.rows), None, None


class Group:
    """The ranks whose batches form one, the kind of their pairs (gathered or ring), and the reduction of gradients."""

    def __init__(self, process_group: ProcessGroup, kind: type[RankPairs], gradient_reduction: str) -> None:
        self.ranks = Ranks(process_group)
        self.kind = kind
        self.factor = self.ranks.size if gradient_reduction == "mean" else 1

    def shared(self, value: torch.Tensor) -> torch.Tensor:
        """A value that is the same on all ranks; each rank gets its whole gradient, whatever the reduction."""
        return replicated(_Times.apply(value, 1 / self.factor), self.ranks) if value.requires_grad else value

    def rows(self, loss: torch.Tensor) -> torch.Tensor:
        """The losses of this rank's rows, with gradients multiplied as the reduction requires."""
        return _Times.apply(loss, self.factor)

    def sum(self, *numbers: torch.Tensor | int) -> list[torch.Tensor]:
        """Sums of scalars over ranks, with the same bits on all ranks."""
        first = next(v for v in numbers if isinstance(v, torch.Tensor))
        scalars = [v if isinstance(v, torch.Tensor) else first.new_full((), v) for v in numbers]
        total = _Sum.apply(torch.stack([v.double() for v in scalars]), self.ranks)
        return [v.to(like.dtype) for v, like in zip(total, scalars, strict=True)]

    def any(self, flag: torch.Tensor) -> torch.Tensor:
        return self.ranks.all_gather(flag.reshape(1).to(torch.uint8)).bool().any()

    def pairs(
        self, several: Sequence[Pairs], ids: torch.Tensor | None, ref_ids: torch.Tensor | None, numbered: bool
    ) -> list[Any]:
        """Replace this rank's pairs by those with the columns of all ranks. `several` differ only in their labels; with
        `numbered` the labels are row numbers within the rank, which are made global."""
        batch = Batch(self, several[0], ids, ref_ids)
        return [self.kind(batch, own, batch.first if numbered else 0) for own in several]


class Batch:
    """The sizes and ids of all ranks, and this rank's embeddings."""

    def __init__(self, group: Group, own: Pairs, ids: torch.Tensor | None, ref_ids: torch.Tensor | None) -> None:
        self.group, self.own = group, own
        ranks = group.ranks
        wanted = [torch.is_grad_enabled() and v is not None and v.requires_grad for v in (own.x, own.ref)]
        agreed = {
            "x must have one embedding size": own.x.shape[1],
            "x must have one dtype": _check.FLOAT_DTYPES.index(own.x.dtype),
            "ref must be given or None": int(own.ref is not None),
            "ids must be given or None": int(ids is not None),
        }
        known = ranks.exchange(own.n, own.m, *map(int, wanted), *agreed.values(), device=own.x.device)
        for (what, _), numbers in zip(agreed.items(), list(zip(*known, strict=True))[4:], strict=True):
            if len(set(numbers)) > 1:
                raise ValueError(f"{what} on all ranks")
        # A rank whose own embeddings want no gradient takes part in the backward of the others'.
        self.x, self.ref = (
            v.detach().requires_grad_()
            if v is not None and torch.is_grad_enabled() and not v.requires_grad and any(rank[2 + k] for rank in known)
            else v
            for k, v in enumerate((own.x, own.ref))
        )
        self.rows = [m for _, m, *_ in known]  # of ref
        self.start = sum(self.rows[: ranks.rank])
        self.first = sum(max(n, m) for n, m, *_ in known[: ranks.rank])  # of the numbers of this rank's rows
        if ids is None and own.ref is None:
            ids = torch.arange(own.n, device=own.x.device) + self.first
        self.ids = ids
        self.all_ids = None if ids is None else self.gathered(ids if own.ref is None else ref_ids)
        self._all_keys: torch.Tensor | None = None

    @property
    def keys(self) -> torch.Tensor:
        return self.x if self.ref is None else self.ref

    def gathered(self, value: Any) -> torch.Tensor:
        """Integers of the rows of ref, gathered from all ranks."""
        return gather_rows(value, self.group.ranks, self.rows)

    @property
    def all_keys(self) -> torch.Tensor:
        """The rows of ref of all ranks; differentiable."""
        if self._all_keys is None:
            self._all_keys = gather(self.keys, self.group.ranks, self.rows)
        return self._all_keys


class RankPairs(PairSource):
    """Pairs of this rank's rows of x with the rows of ref (None: of x) of all ranks.

    Column numbers are those of this rank's own ref; statistics are without extremes. A loss adds up over its rows with
    ``group``.
    """

    def __init__(self, batch: Batch, own: Pairs, first: int) -> None:
        if own.labels is None:
            raise ValueError("labels must be given")
        self.batch, self.own, self.group = batch, own, batch.group
        self.x, self.n, self.m, self.dtype, self.device = batch.x, own.n, own.m, own.dtype, own.device
        self.labels = own.labels + first
        self.all_labels = batch.gathered(self.labels if own.ref_labels is None else own.ref_labels + first)

    def values(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return self.own.values(rows, columns)

    def values_at(self, columns: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
        return self.own.values_at(columns, missing)

    def statistics(self, select: str, **asked: Any) -> PairRowStatistics:
        return self.together([{"select": select, **asked}])[0][0]

    def together(self, asked: Sequence[Mapping[str, Any]], both: bool = False) -> list[Sides]:
        raise NotImplementedError

    def own_columns(self, partial: PairRowStatistics, moments: bool) -> PairRowStatistics:
        """The statistics of this rank's columns over the rows of all ranks, from those of all columns over this rank's
        rows. Only count, sum and lse."""
        numbers = [partial.count.to(self.dtype), partial.lse, *([partial.sum] if moments else [])]
        parts = _ToOwners.apply(torch.stack(numbers, 1), self.group.ranks, self.batch.rows)
        count, value, *sums = parts.unbind(2)
        total = sums[0].sum(0) if moments else count.new_empty(0)
        return statistics(count.detach().sum(0).long(), total, log_sum_exp(value))


class GatheredPairs(RankPairs):
    """RankPairs with the embeddings of all ranks in memory."""

    def __init__(self, batch: Batch, own: Pairs, first: int) -> None:
        super().__init__(batch, own, first)
        self._all = Pairs(
            self.x, self.labels, batch.all_keys, self.all_labels, ids=batch.ids, ref_ids=batch.all_ids,
            similarity=own.similarity,
        )  # fmt: skip

    def together(self, asked: Sequence[Mapping[str, Any]], both: bool = False) -> list[Sides]:
        if not both:
            return [(self._all.statistics(**one),) for one in asked]
        found = [self._all.statistics_of_both(**one) for one in asked]
        return [
            (rows, self.own_columns(columns, one.get("moments", False)))
            for (rows, columns), one in zip(found, asked, strict=True)
        ]
