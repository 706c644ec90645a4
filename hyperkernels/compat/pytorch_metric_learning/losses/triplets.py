"""Losses of triplets. All of a batch are counted, never listed; those of indices_tuple are taken one by one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ....kernels.pair_mining import selections
from ....kernels.pair_mining.ordered import take
from ....losses.margins import margin_of, triplet_of
from ....pairs.pairs import Pairs
from ..batches import Batch, Indices, listed_tuple, on_device, selected, triplets_of_tuple
from ..distances import Space
from ..reducers import AvgNonZeroReducer, DivisorReducer, plain
from .base import BaseLoss, _part


class TripletLoss(BaseLoss):
    """``triplets_per_anchor``: "all", or how many are drawn for every anchor that has a positive and a negative."""

    def __init__(self, triplets_per_anchor: int | str = "all", **options: Any) -> None:
        super().__init__(**options)
        self.triplets_per_anchor = triplets_per_anchor

    def compute(self, batch: Batch, indices: Any) -> Any:
        space = self.space
        pairs = batch.pairs(space)
        if indices is None and self.triplets_per_anchor != "all":
            indices = _drawn(pairs, int(self.triplets_per_anchor))
        if indices is not None:
            indices = on_device(indices, batch.x.device)
        if (indices is None or len(indices) == 4) and self.counts_only():
            return self.of_pairs(selected(pairs, indices, False), batch, space)
        return self.of_triplets(
            triplets_of_tuple(listed_tuple(pairs) if indices is None else indices), pairs, batch, space
        )

    def counts_only(self) -> bool:
        """Whether all triplets of lists of pairs need not be listed."""
        raise NotImplementedError

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        raise NotImplementedError

    def of_triplets(self, triplets: Indices, pairs: Pairs, batch: Batch, space: Space) -> Any:
        raise NotImplementedError


def _drawn(pairs: Pairs, draws: int) -> Indices:
    """(a, p, n), uniform over the positives and the negatives of every anchor, with replacement."""
    seeds = torch.randint(2**62, (2,)).tolist()
    p, n = (pairs.sample(s, draws, seed) for s, seed in zip(("positive", "negative"), seeds, strict=True))
    a, draw = ((p >= 0) & (n >= 0)).nonzero(as_tuple=True)
    return a, p[a, draw], n[a, draw]


class TripletMarginLoss(TripletLoss):
    """``hk.losses.triplet``. With ``swap`` the negative is compared with the nearer of anchor and positive, and the
    triplets are listed."""

    default_reducer = AvgNonZeroReducer

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: int | str = "all",
        **options: Any,
    ) -> None:
        super().__init__(triplets_per_anchor, **options)
        self.margin, self.swap, self.smooth_loss = margin, swap, smooth_loss

    def counts_only(self) -> bool:
        return not self.swap and plain(self.reducer) in ("mean", "sum", "nonzero")

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        kind = plain(self.reducer)
        reduction = "sum" if kind == "sum" else "mean"
        return triplet_of(
            pairs, self.margin, "all", self.smooth_loss, reduction, "all" if kind == "mean" else "nonzero"
        )  # fmt: skip

    def of_triplets(self, triplets: Indices, pairs: Pairs, batch: Batch, space: Space) -> Any:
        a, p, n = triplets
        far = pairs.values(a, n)
        if self.swap:
            far = torch.maximum(far, selections.values(pairs.keys, None, p, n, pairs.similarity))
        violation = far - pairs.values(a, p) + self.margin
        losses = F.softplus(violation) if self.smooth_loss else violation.relu()
        if not len(losses):
            return losses.sum()
        return self.handed_on({"loss": _part(losses, triplets, "triplet")}, batch)


class MarginLoss(TripletLoss):
    """``hk.losses.margin``. beta is one number, or one per class where ``num_classes`` is given; ``nu`` weighs its
    penalty where it is learned."""

    default_reducer = DivisorReducer

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0,
        beta: float = 1.2,
        triplets_per_anchor: int | str = "all",
        learn_beta: bool = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(triplets_per_anchor, **options)
        self.margin, self.nu, self.learn_beta = margin, nu, learn_beta
        start = torch.full((num_classes or 1,), float(beta))
        self.beta: torch.Tensor = torch.nn.Parameter(start) if learn_beta else start

    def counts_only(self) -> bool:
        return plain(self.reducer) == "divisor"

    def _beta(self, batch: Batch, pairs: Pairs) -> torch.Tensor:
        """[N], or [1] where it is one number."""
        beta = self.beta.to(batch.x.device, pairs.dtype)
        if len(beta) == 1:
            return beta
        if batch.labels is None:
            raise ValueError("labels must be given for MarginLoss with a beta per class")
        return take(beta, batch.labels)

    def of_pairs(self, pairs: Any, batch: Batch, space: Space) -> Any:
        nu, beta = self.nu if self.learn_beta else 0.0, self._beta(batch, pairs).expand(pairs.n)
        return margin_of(pairs, beta, self.margin, space.sign, nu, len(self.beta) > 1)

    def of_triplets(self, triplets: Indices, pairs: Pairs, batch: Batch, space: Space) -> Any:
        a, p, n = triplets
        if not len(a):
            return pairs.values(a, p).sum()
        beta = self._beta(batch, pairs)
        beta = beta if len(beta) == 1 else take(beta, a)
        pull = (space.sign * beta - pairs.values(a, p) + self.margin).relu()
        push = (pairs.values(a, n) - space.sign * beta + self.margin).relu()
        divisor = (pull > 0).sum() + (push > 0).sum()
        parts = {"margin_loss": _part(pull + push, triplets, "triplet", divisor=divisor)}
        if self.learn_beta:
            penalty = self.nu * beta
            parts["beta_reg_loss"] = (
                _part(penalty.sum(), None, "already_reduced")
                if len(self.beta) == 1
                else _part(penalty, a, "element", divisor=divisor)
            )
        return self.handed_on(parts, batch)
