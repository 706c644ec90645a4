"""A head with sharded classes: each rank computes the statistics of its own classes, and these are merged.

Margins, states and losses are computed on every rank from the merged statistics of the global batch, with the same
result on all. The loss is one number that all ranks have, not a sum over ranks. In the backward each rank takes its own
part of the gradient of a merged statistic, which needs no communication.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..heads.losses import Head
from ..kernels.margin_softmax.negatives import COSINE, SUMS, Negatives
from ..kernels.margin_softmax.problem import ABSENT, IGNORED, OUTSIDE, ClassRowStatistics
from ..margins.base import Rows
from .collectives import Ranks, replicated
from .shards import Shards


class Shard(NamedTuple):
    """This rank's part of the classes."""

    ranks: Ranks
    shards: Shards
    sample_rate: float = 1.0
    hardest: bool = False  # the class of the hardest negative is wanted

    def start(self) -> int:
        return self.shards.start(self.ranks.rank)

    def size(self) -> int:
        return self.shards.size(self.ranks.rank)

    def samples(self, rank: int, rows: int) -> int:
        """The number of classes of a rank that take part, for a global batch of so many rows. It depends on sizes
        alone. It is at least the number of different targets that the shard can have, and at least 1 if the shard has
        classes."""
        size = self.shards.size(rank)
        return max(round(self.sample_rate * size), min(size, max(rows, 1)))

    def taking_part(self, rows: int) -> int:
        """The number of classes of all ranks together that take part."""
        return sum(self.samples(rank, rows) for rank in range(self.shards.world_size))

    def local(self, target: torch.Tensor, ignore_index: int) -> torch.Tensor:
        """The targets as class numbers of this shard, or as sentinels."""
        own = target - self.start()
        local = torch.where((own >= 0) & (own < self.size()), own, ABSENT)
        local = torch.where((target >= 0) & (target < self.shards.num_classes), local, OUTSIDE)
        return torch.where(target == ignore_index, IGNORED, local)


class ShardedHead(Head):
    """A head over `shard`. x, target and scale are those of the global batch; weight has the rows of this shard. There
    is no class_scale, and the bias, [C] over all classes, has one value for all."""

    def classes(self) -> int:
        return self.shard.shards.num_classes

    def taking_part(self) -> int:
        return self.shard.taking_part(len(self.x))

    @classmethod
    def over(cls, local: Head, target: torch.Tensor, ignore_index: int, shard: Shard) -> ShardedHead:
        """The sharded head from the head of this shard, with targets that number the classes of all shards."""
        options = local.options._replace(ignore_index=ignore_index, absent_index=ignore_index)
        return cls(*local)._replace(target=target, options=options, shard=shard)

    def _local(self) -> Head:
        """The head of the global batch and this shard's classes."""
        shard, bias = self.shard, self.bias
        if bias is not None:
            bias = replicated(bias[:1], shard.ranks).expand(len(self.weight) // self.options.sub_centers)
        return Head(*self)._replace(
            target=shard.local(self.target, self.options.ignore_index),
            scale=replicated(self.scale, shard.ranks),
            bias=bias,
            options=self.options._replace(ignore_index=IGNORED, absent_index=ABSENT),
        )

    def statistics(self, negatives: Negatives = COSINE) -> ClassRowStatistics:
        return merge(self._local().statistics(negatives), self.shard, negatives.kind)

    def rows_ahead(self) -> Rows:
        local = self._local()
        rows = local.rows_ahead()
        # As in one process, a row whose target is no class is looked up at class 0.
        here = self.target_class() - self.shard.start()
        here = (here >= 0) & (here < self.shard.size())
        target_cos = self.shard.ranks.all_reduce(torch.where(here, rows.target_cos, 0))
        return Rows(target_cos, rows.x_norm, self.target_class(), self.counted())


class _Merge(torch.autograd.Function):
    """Log-sum-exp over ranks of the first statistic [N], sums of the others; the first three are differentiable."""

    @staticmethod
    def forward(ctx: Any, shard: Shard, softmax: bool, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mine = torch.stack(parts)
        if not shard.size():
            mine.zero_()
            if softmax:
                mine[0] = -torch.inf
        gathered = shard.ranks.all_gather(mine)
        merged = list(gathered.sum(0).unbind())
        if softmax:
            merged[0] = gathered[:, 0].logsumexp(0)
        ctx.softmax, ctx.empty = softmax, not shard.size()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*merged[3:])
        ctx.save_for_backward(mine[0].clone(), merged[0])
        return tuple(merged)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        if ctx.empty:
            gradients = tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in gradients)
        first, *rest = gradients
        if ctx.softmax and first is not None:
            mine, merged = ctx.saved_tensors
            share = torch.where(mine == -torch.inf, 0, (mine - merged).exp())
            first = torch.where(first == 0, 0, first * share)  # also where the share is NaN
        return None, None, first, *rest


class _FromFirst(torch.autograd.Function):
    """A value that all ranks compute from the gathered x, with the same result. Only rank 0 sends its gradient back."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, rank: int) -> torch.Tensor:
        ctx.rank = rank
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return gradient if ctx.rank == 0 else None, None


def merge(own: ClassRowStatistics, shard: Shard, kind: str) -> ClassRowStatistics:
    """The statistics over all classes from those over each shard's, the same bits on every rank.

    One all_gather of 3 numbers for each row; 5 with quadratic negatives, for the sum and count of hard ones. If the
    hardest class is needed, two more of 3 numbers together; otherwise it is -1 and its cosine NaN. If the statistics
    are float32, one more number for each row: the target's cosine in float64 minus its float32 value. The sum of these
    over ranks is exact, since all ranks but one have 0.
    """
    ranks, softmax = shard.ranks, kind not in SUMS
    target = own.target_cos.to(own.neg_lse.dtype)
    parts = [own.neg_lse, target, own.neg_cos_sum]
    hard = [own.hard_cos_sum, own.hard_count] if kind == "quadratic" else []
    exact = target.dtype == own.target_cos.dtype
    rest = [] if exact else [(own.target_cos - target).detach().to(target.dtype)]
    neg_lse, target_cos, neg_cos_sum, *others = _Merge.apply(shard, softmax, *parts, *hard, *rest)
    if not exact:
        target_cos = target_cos.to(own.target_cos.dtype) + others[-1]
    merged = own._replace(
        neg_lse=neg_lse,
        target_cos=target_cos,
        x_norm=_FromFirst.apply(own.x_norm, ranks.rank),
        neg_cos_sum=neg_cos_sum,
        hardest_cos=torch.full_like(own.hardest_cos, torch.nan),
        hardest_class=torch.full_like(own.hardest_class, -1),
    )
    if hard:
        merged = merged._replace(hard_cos_sum=others[0], hard_count=others[1])
    if not shard.hardest:
        return merged
    hardest_class = torch.where(own.hardest_class < 0, -1, own.hardest_class + shard.start())
    cosines = ranks.all_gather(own.hardest_cos if shard.size() else torch.full_like(own.hardest_cos, -torch.inf))
    integers = ranks.all_gather(torch.stack([hardest_class, own.target_center]))
    hardest_cos, winner = cosines.max(0)  # of equal ones the first: the lowest class
    return merged._replace(
        hardest_cos=hardest_cos,
        hardest_class=integers[:, 0].gather(0, winner[None])[0],
        target_center=integers[:, 1].sum(0),
    )
