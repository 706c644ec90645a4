"""The losses that sum over the classes instead of taking a softmax, in plain PyTorch on the statistics [N]."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..kernels.margin_softmax.negatives import negatives
from ..margins.angles import angle
from .losses import Head, contain, reduce


def sface(head: Head, steepness: float, a: float, b: float, reduction: str) -> torch.Tensor:
    """-r_own s cos(theta_y) + sum over j != y of r_j s cos(theta_j), r constant for the gradient."""
    contained = contain(head.statistics(negatives("sface", head.scale, steepness=steepness, angle=b)), "sface")
    theta = angle(contained.statistics.target_cos.detach())
    statistics = contained.statistics.rounded()
    weight = torch.sigmoid(steepness * (theta - a)).to(head.scale.dtype)
    pull = weight * head.scale * statistics.target_cos
    return reduce(contained.restore(statistics.neg_cos_sum - pull), head.counted(), reduction)


def sphereface2(
    head: Head, alpha: float, m: float, power: int, loss_weight: float, gradient: str, reduction: str
) -> torch.Tensor:
    """Binary cross-entropy of every class: weight alpha for the own class, 1 - alpha for each other."""
    straight = gradient == "straight_through"
    transform = negatives("sphereface2", head.scale, margin=m, power=float(power), straight=float(straight))
    contained = contain(head.statistics(transform), "sphereface2")
    statistics = contained.statistics.rounded()
    own = statistics.target_cos
    cos = own.detach() if straight else own
    psi = 2 * ((cos + 1) / 2) ** power - 1 - m
    if straight:
        psi = psi + (own - own.detach())
    positive = F.softplus(-head.logits(psi), threshold=60)
    loss = alpha * positive + (1 - alpha) * statistics.neg_cos_sum
    return reduce(contained.restore(loss_weight / head.scale * loss), head.counted(), reduction)


def uniface(head: Head, m: float, negative_weight: float, reduction: str) -> torch.Tensor:
    """Binary cross-entropy of every class against one threshold, -bias, with logits clamped to [-s, s]."""
    contained = contain(head.statistics(negatives("uniface", head.scale)), "uniface")
    statistics = contained.statistics.rounded()
    own = head.logits(statistics.target_cos - m)
    positive = F.softplus(-own.clamp(-head.scale, head.scale), threshold=60)
    loss = positive + negative_weight * statistics.neg_cos_sum
    return reduce(contained.restore(loss), head.counted(), reduction)
