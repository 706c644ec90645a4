"""The losses, in plain PyTorch on the statistics [N]."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .._order import pick, spread, total
from ..kernels.margin_softmax.negatives import COSINE, SUMS, Negatives
from ..kernels.margin_softmax.problem import ABSENT, IGNORED, ClassRowStatistics, Options
from ..kernels.margin_softmax.receivers import OfClasses, Receiver
from ..kernels.margin_softmax.rows import rows_of_classes, take_rows, unit_rows
from ..kernels.margin_softmax.statistics import class_statistics
from ..margins.angles import settle
from ..margins.base import Margin, Rows
from .sampled import classes_at, positions


class Head(NamedTuple):
    """One call of a head: its checked tensors and options."""

    x: torch.Tensor  # [N, D]
    weight: torch.Tensor  # [C*K, D]
    target: torch.Tensor  # [N]
    scale: torch.Tensor  # [N]
    class_scale: torch.Tensor | None  # [C]
    bias: torch.Tensor | None  # [C]
    options: Options
    sampled: torch.Tensor | None = None  # [R], the classes that take part; None for all
    workspace: int | None = None
    skip_budget: float = 0.0
    skip_report: torch.Tensor | None = None  # [2]
    receiver: Receiver | None = None  # takes the weight's gradient
    shard: Any = None  # which of the classes weight has, for a head over several processes

    def classes(self) -> int:
        return self.weight.shape[0] // self.options.sub_centers

    def taking_part(self) -> int:
        return self.classes() if self.sampled is None else self.sampled.shape[0]

    def counted(self) -> torch.Tensor:
        return self.target != self.options.ignore_index

    def target_class(self) -> torch.Tensor:
        """The target where it is a class, 0 elsewhere. Rows with 0 for this reason are ignored, or their statistics are
        NaN."""
        here = (self.target >= 0) & (self.target < self.classes()) & self.counted()
        return torch.where(here, self.target, 0)

    def of_sampled(self, per_class: torch.Tensor | None) -> torch.Tensor | None:
        """Of one number for each class, those of the classes that take part."""
        return per_class if per_class is None or self.sampled is None else per_class.index_select(0, self.sampled)

    def statistics(self, negatives: Negatives = COSINE) -> ClassRowStatistics:
        """The statistics, target_cos in float64."""
        weight, target, sampled, receiver = self.weight, self.target, self.sampled, self.receiver
        options = self.options._replace(negatives=negatives.kind)
        if sampled is not None:
            receiver = None if receiver is None else OfClasses(receiver, sampled, options.sub_centers)
            target = positions(sampled, target, options.ignore_index, options.absent_index)
            options = options._replace(ignore_index=IGNORED, absent_index=ABSENT)
            if weight.dtype != self.x.dtype:  # autocast: the rows that take part are copied to be cast
                weight = take_rows(weight, rows_of_classes(sampled, options.sub_centers)).to(self.x.dtype)
                sampled = None
        statistics = class_statistics(
            self.x,
            weight,
            target,
            self.scale,
            self.of_sampled(self.class_scale),
            self.of_sampled(self.bias),
            negatives,
            sampled,
            options,
            self.workspace,
            self.skip_budget,
            self.skip_report,
            receiver,
        )
        if self.sampled is None:
            return statistics
        return statistics._replace(hardest_class=classes_at(self.sampled, statistics.hardest_class))

    def logits(self, psi: torch.Tensor) -> torch.Tensor:
        """The logits [N] of the targets, from psi."""
        if self.class_scale is not None:
            psi = pick(self.class_scale, self.target_class()) * psi
        logits = self.scale * psi
        return logits if self.bias is None else logits + pick(self.bias, self.target_class())

    def correct(self, statistics: ClassRowStatistics) -> torch.Tensor:
        """bool [N]: the class of the largest logit, without margin, is the target."""
        own = (self.logits(statistics.target_cos) / self.scale).detach()
        here = self.counted() & (self.target != self.options.absent_index)
        return here & (own > statistics.hardest_cos)

    def rows_ahead(self) -> Rows:
        """The rows before the pass over the classes, without gradient; N * K dot products."""
        dtype, k = self.scale.dtype, self.options.sub_centers
        with torch.no_grad():
            x, x_norm = unit_rows(torch.where(self.counted()[:, None], self.x, 0).to(dtype), self.options.eps)
            cosines = []
            for center in range(k):
                own = self.weight[self.target_class() * k + center].to(self.x.dtype).to(dtype)
                cosines.append((x * unit_rows(own, self.options.eps)[0]).sum(1))
            return Rows(torch.stack(cosines).amax(0), x_norm, self.target_class(), self.counted())


class Contained(NamedTuple):
    """Statistics in which rows of NaN are replaced by finite numbers.

    The derivative of a formula at NaN is NaN, and NaN times a gradient of 0 is NaN: a row that the caller masks out of
    the loss would make the gradient of the weight NaN. Here the gradient of such a row bypasses the formula. If it is 0
    the kernels leave the row out; otherwise they make NaN of it.
    """

    statistics: ClassRowStatistics
    unknown: torch.Tensor  # bool [N]
    nan: torch.Tensor  # [N], NaN in these rows

    def restore(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss` [N], computed from the finite numbers, with NaN in the rows that had it."""
        return torch.where(self.unknown, self.nan, loss)


def contain(statistics: ClassRowStatistics, kind: str) -> Contained:
    """`kind`, of the negatives, decides which statistic is looked at for NaN: the one that the loss always reads."""
    others = statistics.neg_cos_sum if kind in SUMS else statistics.neg_lse
    nan = others + statistics.target_cos.to(others.dtype)
    unknown = nan.isnan()
    harmless = statistics._replace(
        neg_lse=statistics.neg_lse.masked_fill(unknown, 0),
        target_cos=statistics.target_cos.masked_fill(unknown, 0),
        x_norm=statistics.x_norm.masked_fill(unknown, 1),
        neg_cos_sum=statistics.neg_cos_sum.masked_fill(unknown, 0),
    )
    return Contained(harmless, unknown, nan)


def reduce(loss: torch.Tensor, counted: torch.Tensor, reduction: str) -> torch.Tensor:
    """The reduction "none", "sum", or "mean" over the rows that count (0 if none does)."""
    loss = torch.where(counted, loss, 0)
    if reduction == "none":
        return loss
    return total(loss) if reduction == "sum" else total(loss) / counted.sum().clamp_min(1)


def margin_softmax(
    head: Head, margin: Margin, reduction: str, label_smoothing: float, smoothing_over: str
) -> tuple[torch.Tensor, ClassRowStatistics, Head]:
    """Cross-entropy with a margin, softplus(neg_lse - target logit); the statistics; and the head, with the scale that
    was used."""
    training = getattr(margin, "training", True)
    negatives = COSINE
    if margin.own_scale is not None:
        head = head._replace(scale=margin.own_scale.to(head.scale).expand(head.scale.shape))
        if training and margin.adapts_scale:
            with torch.no_grad():
                statistics = head.statistics().rounded()
                rows = Rows(statistics.target_cos, statistics.x_norm, head.target_class(), head.counted())
                margin.update_scale(rows, statistics)
            head = head._replace(scale=margin.own_scale.to(head.scale).expand(head.scale.shape))
    if margin.looks_ahead:
        rows = head.rows_ahead()
        if training:
            margin.update(rows)
        negatives = margin.negatives(rows)

    statistics = head.statistics(negatives)
    if training and not margin.looks_ahead:
        with torch.no_grad():
            known = statistics.rounded()
            margin.update(Rows(known.target_cos, known.x_norm, head.target_class(), head.counted()))
    contained = contain(statistics, negatives.kind)
    statistics, used = statistics.rounded(), contained.statistics
    rounded = used.rounded()
    cosines = settle(used.target_cos, head.x.dtype) if margin.angular else rounded.target_cos
    rows = Rows(cosines, used.x_norm, head.target_class(), head.counted())
    psi = margin.target_logits(rows, rounded)
    if psi.shape != head.target.shape:
        raise ValueError(f"margin must return shape {tuple(head.target.shape)}; got {tuple(psi.shape)}")
    target_logit = head.logits(psi.to(head.scale.dtype))
    # logsigmoid keeps full relative precision where the sample is learned and lse - z_y would have cancelled to zero.
    loss = -F.logsigmoid(target_logit - used.neg_lse)
    if label_smoothing:
        others = head.scale * used.neg_cos_sum
        bias = head.of_sampled(head.bias)
        if head.bias is not None and bias is not None:
            others = others + spread(total(bias), others.shape[0]) - pick(head.bias, head.target_class())
        count = head.taking_part()
        if smoothing_over == "all":
            loss = loss + label_smoothing * (target_logit - (target_logit + others) / count)
        elif count > 1:
            loss = loss + label_smoothing * (target_logit - others / (count - 1))
    penalty = margin.penalty(rows)
    if penalty is not None:
        loss = loss + penalty
    return reduce(contained.restore(loss), head.counted(), reduction), statistics, head
