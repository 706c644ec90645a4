"""The losses that are sums over the classes instead of a softmax, in plain PyTorch on N numbers a statistic."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .losses import Head, reduce
from .margins.angles import angle
from .negatives import negatives


def sface(head: Head, steepness: float, a: float, b: float, reduction: str) -> torch.Tensor:
    """-r_own s cos(theta_y) + sum over j != y of r_j s cos(theta_j), r constant for the gradient."""
    statistics = head.statistics(negatives("sface", head.scale, steepness=steepness, angle=b))
    own = statistics.target_cos
    pull = torch.sigmoid(steepness * (angle(own.detach()) - a)) * head.scale * own
    return reduce(statistics.neg_cos_sum - pull, head.counted, reduction)


def sphereface2(
    head: Head, alpha: float, m: float, power: int, loss_weight: float, gradient: str, reduction: str
) -> torch.Tensor:
    """Binary cross-entropy of every class: its own for alpha, the others together for 1 - alpha."""
    straight = gradient == "straight_through"
    transform = negatives("sphereface2", head.scale, margin=m, power=float(power), straight=float(straight))
    statistics = head.statistics(transform)
    own = statistics.target_cos
    cos = own.detach() if straight else own
    psi = 2 * ((cos + 1) / 2) ** power - 1 - m
    if straight:
        psi = psi + (own - own.detach())
    positive = F.softplus(-head.logits(psi), threshold=60)
    loss = alpha * positive + (1 - alpha) * statistics.neg_cos_sum
    return reduce(loss_weight / head.scale * loss, head.counted, reduction)


def uniface(head: Head, m: float, negative_weight: float, reduction: str) -> torch.Tensor:
    """Binary cross-entropy of every class against one threshold, -bias, its logits held in [-s, s]."""
    statistics = head.statistics(negatives("uniface", head.scale))
    own = head.logits(statistics.target_cos - m)
    positive = F.softplus(-own.clamp(-head.scale, head.scale), threshold=60)
    return reduce(positive + negative_weight * statistics.neg_cos_sum, head.counted, reduction)
