"""Losses between the batch and proxies (centres) of the classes, which the module owns.

Proxies keep their dtype; the loss computes in that of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ....kernels.pair_mining.problem import PairRowStatistics
from ....losses.proxies import proxy_anchor_of, soft_triple
from ....losses.softmax import nca_of
from ....pairs.pairs import Pairs
from ....pairs.source import PairSource
from ..batches import Batch, sample_weights
from ..distances import CosineSimilarity, Space, require_space
from ..reducers import DivisorReducer
from .base import BaseLoss
from .ranking import squared_distance, weighted

Init = Callable[[torch.Tensor], Any]


class ProxyLoss(BaseLoss):
    """``weight_init_func(tensor)`` fills the proxies; ``weight_regularizer(weights)``, times ``weight_reg_weight``, is
    added to the loss."""

    needs_labels = True
    takes_ref = False

    def __init__(
        self,
        weight_init_func: Init | None = None,
        weight_regularizer: torch.nn.Module | None = None,
        weight_reg_weight: float = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.weight_init_func = self.default_init if weight_init_func is None else weight_init_func
        self.weight_regularizer, self.weight_reg_weight = weight_regularizer, weight_reg_weight

    @staticmethod
    def default_init(weight: torch.Tensor) -> None:
        torch.nn.init.normal_(weight)

    @property
    def rows(self) -> torch.Tensor:
        """The proxies, one a row."""
        raise NotImplementedError

    def forward(self, *arguments: Any, **options: Any) -> Any:
        loss = super().forward(*arguments, **options)
        if self.weight_regularizer is None:
            return loss
        return loss + self.weight_regularizer(self.rows) * self.weight_reg_weight

    def get_logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The matrix of the distance object between embeddings and proxies."""
        return self.distance(embeddings, self.rows.to(embeddings))


class ProxyNCALoss(ProxyLoss):
    """``hk.losses.proxy_nca``; a row weighs as often as it is an anchor of ``indices_tuple``."""

    default_distance = squared_distance

    def __init__(self, num_classes: int, embedding_size: int, softmax_scale: float = 1, **options: Any) -> None:
        super().__init__(**options)
        self.softmax_scale = softmax_scale
        self.proxies = torch.nn.Parameter(torch.empty(num_classes, embedding_size))
        self.weight_init_func(self.proxies)

    @property
    def rows(self) -> torch.Tensor:
        return self.proxies

    def compute(self, batch: Batch, indices: Any) -> Any:
        proxies = self.proxies.to(batch.x)
        numbers = torch.arange(len(proxies), device=proxies.device)
        against = batch._replace(ref=proxies, ref_labels=numbers, ids=None, ref_ids=None)
        pairs = against.pairs(self.space)
        losses = weighted(nca_of(pairs, scale=self.softmax_scale, reduction="none"), sample_weights(indices, against))
        return self.of_rows(losses, batch, pairs.statistics("positive").count > 0)


class _TwoSided(PairSource):
    """Other rows for the positive pairs than for the negative ones."""

    def __init__(self, positive: Pairs, negative: Pairs) -> None:
        self.positive, self.negative = positive, negative
        self.n, self.m, self.dtype, self.device = positive.n, positive.m, positive.dtype, positive.device

    def statistics(self, select: str, **options: Any) -> PairRowStatistics:
        return getattr(self, select).statistics(select, **options)

    def values(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return self.positive.values(rows, columns)

    def values_at(self, columns: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
        return self.positive.values_at(columns, missing)


class ProxyAnchorLoss(ProxyLoss):
    """``hk.losses.proxy_anchor``; of a row that is in ``indices_tuple`` with the weight w, w - 1 is added within the
    exponentials."""

    default_distance = CosineSimilarity
    default_reducer = DivisorReducer

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32, **options: Any
    ) -> None:
        super().__init__(**options)
        self.num_classes, self.margin, self.alpha = num_classes, margin, alpha
        self.proxies = torch.nn.Parameter(torch.empty(num_classes, embedding_size))
        self.weight_init_func(self.proxies)
        self.only_plain("divisor")

    @staticmethod
    def default_init(weight: torch.Tensor) -> None:
        torch.nn.init.kaiming_normal_(weight, mode="fan_out")

    @property
    def rows(self) -> torch.Tensor:
        return self.proxies

    def compute(self, batch: Batch, indices: Any) -> Any:
        space, x, proxies = self.space, batch.x, self.proxies.to(batch.x)
        numbers = torch.arange(len(proxies), device=proxies.device)
        weights, margin = sample_weights(indices, batch), space.sign * self.margin
        if weights is None:
            pairs: Any = Pairs(space.rows(proxies), numbers, space.rows(x), batch.labels, similarity=space.similarity)
            return proxy_anchor_of(pairs, scale=self.alpha, margin=margin)
        require_space(space, "ProxyAnchorLoss with indices_tuple", ("cosine", "dot"), False, "CosineSimilarity()")
        if space.normalize:
            x, proxies = (space._replace(similarity="dot").rows(v) for v in (x, proxies))
        # A feature more, 1 of the proxies, adds to every similarity of a row of the batch.
        more = ((weights - 1) / self.alpha).to(x.dtype)[:, None]
        ones = torch.ones_like(proxies[:, :1])
        pairs = _TwoSided(
            *(
                Pairs(torch.cat([proxies, ones], 1), numbers, torch.cat([x, v], 1), batch.labels, similarity="dot")
                for v in (-more, more)
            )
        )
        return proxy_anchor_of(pairs, scale=self.alpha, margin=margin)


class SoftTripleLoss(ProxyLoss):
    """``hk.losses.soft_triple``; a row weighs as often as it is in ``indices_tuple``."""

    default_distance = CosineSimilarity

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20,
        gamma: float = 0.1,
        margin: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_classes, self.centers_per_class = num_classes, centers_per_class
        self.la, self.gamma, self.margin = la, 1.0 / gamma, margin
        self.fc = torch.nn.Parameter(torch.empty(embedding_size, num_classes * centers_per_class))
        self.weight_init_func(self.fc)

    @staticmethod
    def default_init(weight: torch.Tensor) -> None:
        torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    @property
    def rows(self) -> torch.Tensor:
        return self.fc.t()

    def check_space(self, space: Space) -> None:
        require_space(space, type(self).__name__, ("cosine",), True, "CosineSimilarity()")

    def get_logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        s = super().get_logits(embeddings).view(-1, self.num_classes, self.centers_per_class)
        return (torch.softmax(s * self.gamma, 2) * s).sum(2)

    def compute(self, batch: Batch, indices: Any) -> Any:
        assert batch.labels is not None
        losses = soft_triple(
            batch.x, batch.labels, self.rows.to(batch.x), centers_per_class=self.centers_per_class, la=self.la,
            gamma=1 / self.gamma, margin=self.margin, reduction="none",
        )  # fmt: skip
        return self.of_rows(weighted(losses, sample_weights(indices, batch)), batch)
