"""The losses, in plain PyTorch on N numbers a statistic."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .margins import Margin
from .op import class_statistics


def reduce(loss: torch.Tensor, counted: torch.Tensor, reduction: str) -> torch.Tensor:
    """none, sum, or the mean over the rows that count (0 where none does)."""
    loss = torch.where(counted, loss, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / counted.sum().clamp_min(1)


def margin_softmax(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C, D]
    target: torch.Tensor,  # [N]
    margin: Margin,
    scale: float,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    workspace: int | None,
    eps: float,
) -> torch.Tensor:
    """Cross-entropy of the margined logits: softplus(log-sum-exp of the others - scale * psi)."""
    statistics = class_statistics(x, weight, target, scale, eps, ignore_index, workspace)
    target_logit = scale * margin(statistics.target_cos, statistics.x_norm)
    if target_logit.shape != target.shape:
        raise ValueError(f"margin must return shape {tuple(target.shape)}; got {tuple(target_logit.shape)}")
    # logsigmoid keeps full relative precision where the sample is learned and lse - z_y would have cancelled to zero.
    loss = -F.logsigmoid(target_logit - statistics.neg_lse)
    if label_smoothing:
        mean_logit = (target_logit + scale * statistics.neg_cos_sum) / weight.shape[0]
        loss = loss + label_smoothing * (target_logit - mean_logit)
    return reduce(loss, target != ignore_index, reduction)
