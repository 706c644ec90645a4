"""Reducers: what becomes of the losses of rows, pairs or triplets.

A reducer is called with ``({name: {"losses", "indices", "reduction_type"}}, embeddings, labels)``; any object that
takes this does, those of pytorch-metric-learning among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Losses = dict[str, dict[str, Any]]


class BaseReducer(torch.nn.Module):
    def __init__(self, collect_stats: bool | None = None) -> None:
        super().__init__()

    def forward(self, loss_dict: Losses, embeddings: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        (part,) = loss_dict.values()
        losses = part["losses"]
        if not isinstance(losses, torch.Tensor):
            return (embeddings * 0).sum()
        if part["reduction_type"] == "already_reduced":
            return losses
        return self.reduce(losses, part, labels)

    def reduce(self, losses: torch.Tensor, part: dict[str, Any], labels: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError


class MeanReducer(BaseReducer):
    def reduce(self, losses: torch.Tensor, part: dict[str, Any], labels: torch.Tensor | None) -> torch.Tensor:
        return losses.mean()


class SumReducer(BaseReducer):
    def reduce(self, losses: torch.Tensor, part: dict[str, Any], labels: torch.Tensor | None) -> torch.Tensor:
        return losses.sum()


class ThresholdReducer(BaseReducer):
    """The mean of the losses between ``low`` and ``high``, both excluded; 0 where there is none."""

    def __init__(self, low: float | None = None, high: float | None = None, collect_stats: bool | None = None) -> None:
        super().__init__()
        if low is None and high is None:
            raise ValueError("low or high must be given")
        self.low, self.high = low, high

    def reduce(self, losses: torch.Tensor, part: dict[str, Any], labels: torch.Tensor | None) -> torch.Tensor:
        keep = torch.ones_like(losses, dtype=torch.bool)  # NaN is kept
        if self.low is not None:
            keep &= ~(losses <= self.low)
        if self.high is not None:
            keep &= ~(losses >= self.high)
        return torch.where(keep, losses, 0).sum() / keep.sum().clamp_min(1)


class AvgNonZeroReducer(ThresholdReducer):
    """The mean of the losses above 0."""

    def __init__(self, collect_stats: bool | None = None) -> None:
        super().__init__(low=0)


class ClassWeightedReducer(BaseReducer):
    """The mean of the losses times the weight of the class of the row, or of the pair's or triplet's anchor."""

    def __init__(self, weights: torch.Tensor, collect_stats: bool | None = None) -> None:
        super().__init__()
        self.weights = weights

    def reduce(self, losses: torch.Tensor, part: dict[str, Any], labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            raise ValueError("labels must be given for ClassWeightedReducer")
        rows = part["indices"] if part["reduction_type"] == "element" else part["indices"][0]
        return (losses * self.weights.to(losses)[labels[rows]]).mean()


class DivisorReducer(BaseReducer):
    """The sum over what the loss says that it is divided by."""

    def reduce(self, losses: torch.Tensor, part: dict[str, Any], labels: torch.Tensor | None) -> torch.Tensor:
        divisor = torch.as_tensor(part["divisor"], device=losses.device)
        return torch.where(divisor != 0, losses.sum() / torch.where(divisor != 0, divisor, 1), 0 * losses.sum())


class DoNothingReducer(BaseReducer):
    """The losses as they come."""

    def forward(self, loss_dict: Losses, embeddings: torch.Tensor, labels: torch.Tensor | None) -> Any:
        return loss_dict


class MultipleReducers(BaseReducer):
    """A reducer by the name of the part of the loss; the sum of what they return."""

    def __init__(
        self,
        reducers: Mapping[str, torch.nn.Module],
        default_reducer: torch.nn.Module | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.reducers = torch.nn.ModuleDict(reducers)
        self.default_reducer = MeanReducer() if default_reducer is None else default_reducer

    def forward(self, loss_dict: Losses, embeddings: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        total = (embeddings * 0).sum()
        reducers = dict(self.reducers.items())
        for name, part in loss_dict.items():
            reducer = reducers.get(name, self.default_reducer)
            total = total + reducer({name: part}, embeddings, labels)
        return total


# Those that need the losses' sums only: what they divide by, known by the name of the class.
_PLAIN = {"MeanReducer": "mean", "SumReducer": "sum", "AvgNonZeroReducer": "nonzero", "DivisorReducer": "divisor"}


def plain(reducer: Any) -> str | None:
    return _PLAIN.get(type(reducer).__name__)


def apply(reducer: Any, loss_dict: Losses, embeddings: torch.Tensor, labels: torch.Tensor | None) -> Any:
    """One reducer over every part by itself; a part without losses is 0."""
    for part in loss_dict.values():
        if isinstance(part["losses"], torch.Tensor) and not part["losses"].numel():
            part.update(losses=0, indices=None, reduction_type="already_reduced")
    if type(reducer).__name__ in ("MultipleReducers", "DoNothingReducer"):
        return reducer(loss_dict, embeddings, labels)
    return sum(reducer({name: part}, embeddings, labels) for name, part in loss_dict.items())
