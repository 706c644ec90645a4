"""The heads under comparison: ours, what a user writes, and the peers that are installed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

import hyperkernels as hk

from .peers import present

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (x, weight, target) -> loss

SCALE, MARGIN = 64.0, 0.5


def fused(margin: object, **options: object) -> Head:
    return lambda x, w, t: hk.margin_softmax_loss(x, w, t, margin=margin, **{"scale": SCALE, **options})


def arcface(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """ArcFace as it is usually written: normalise, multiply, replace the target's cosine, cross-entropy."""
    cos = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1, 1)
    target_cos = cos.gather(1, target[:, None])
    sin = (1 - target_cos * target_cos).clamp_min(1e-9).sqrt()
    psi = target_cos * math.cos(MARGIN) - sin * math.sin(MARGIN)
    psi = torch.where(target_cos > -math.cos(MARGIN), psi, target_cos - MARGIN * math.sin(MARGIN))
    return F.cross_entropy(SCALE * cos.scatter(1, target[:, None], psi), target)


def cosface(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    cos = F.linear(F.normalize(x), F.normalize(weight))
    return F.cross_entropy(SCALE * (cos - 0.35 * F.one_hot(target, weight.shape[0])), target)


def sub_center_arcface(sub_centers: int) -> Head:
    """ArcFace over the nearest of a class's centres."""

    def head(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        cos = F.linear(F.normalize(x), F.normalize(weight)).view(len(x), -1, sub_centers).amax(2).clamp(-1, 1)
        target_cos = cos.gather(1, target[:, None])
        psi = (target_cos.acos() + MARGIN).cos()
        return F.cross_entropy(SCALE * cos.scatter(1, target[:, None], psi.to(cos.dtype)), target)

    return head


def plain(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, weight), target)


def fused_plain(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    options = {"normalize_x": False, "normalize_weight": False, "scale": 1.0}
    return hk.margin_softmax_loss(x, weight, target, margin=hk.margins.NormFace(), **options)


def metric_learning(name: str, **options: object) -> dict[str, Head]:
    """A head of pytorch-metric-learning, over our weight (theirs is its transpose); empty if it is not installed."""
    if not present("pytorch_metric_learning"):
        return {}
    from pytorch_metric_learning import losses

    def head(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        classes = weight.shape[0] // int(options.get("sub_centers", 1))
        loss = getattr(losses, name)(num_classes=classes, embedding_size=1, scale=SCALE, **options)
        # A plain attribute in the parameter's place: the gradient then reaches the weight that is measured.
        del loss.W
        loss.W = weight.T
        loss.cast_types = lambda *_: None
        return loss(x, target)

    return {f"pytorch-metric-learning {name}": head}


def linear_cross_entropy() -> dict[str, Head]:
    """torch's own, plain and in chunks (its automatic choice); empty where this torch has none."""
    if not hasattr(F, "linear_cross_entropy"):
        return {}
    chunked = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    return {
        "F.linear_cross_entropy": F.linear_cross_entropy,
        "  chunked": lambda x, w, t: F.linear_cross_entropy(x, w, t, options=chunked),
    }


def gpu_cross_entropies() -> dict[str, Head]:
    """Fused linear cross-entropies for GPUs, those installed, each exact."""
    heads: dict[str, Head] = {}
    if present("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cce

        heads["cut-cross-entropy, exact"] = lambda x, w, t: cce(x, w, t, impl="cce_exact")
    if present("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

        heads["liger-kernel"] = lambda x, w, t: liger(x, w, t)
    if present("quack"):
        from quack.linear_cross_entropy import chunked_linear_cross_entropy as quack

        heads["quack-kernels"] = lambda x, w, t: quack(x, w, t)
    return heads
