"""Losses between the rows of a batch and proxies (centres) of the classes."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._autocast import autocast
from .._dtypes import accumulate_dtype
from ..pairs.codes import run_starts
from ..pairs.pairs import LINEAR, Pairs
from ..pairs.source import PairSource
from .common import REDUCTIONS, Number, blocks, normalized, numbered, recomputed, reduce_counted, scalar, softplus
from .softmax import nca_of

_BLOCK = 2**22  # similarities that soft_triple and its gradient hold at a time


def proxy_nca(
    x: torch.Tensor,
    labels: torch.Tensor,
    proxies: torch.Tensor,
    proxy_labels: torch.Tensor | None = None,
    *,
    similarity: str = "squared_euclidean",
    normalize: bool = True,
    softmax_scale: torch.Tensor | float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Proxy-NCA (Movshovitz-Attias et al., arXiv 1703.07464): ``nca`` with the proxies of the classes as neighbours,

        loss_i = log sum over all proxies of e^{softmax_scale * s} - log sum over the proxies of y_i

    The sum is over all proxies, as in Proxy-NCA++ and pytorch-metric-learning; the paper leaves the own one out.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        proxies: [C, D] of the dtype of x; several may share a label.
        proxy_labels: [C] int64; None: 0 to C - 1.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean" (minus the distance).
        normalize: unit rows first, whatever the similarity.
        softmax_scale: a number, or a tensor of one element, which may be learned.
        reduction: "mean" over the rows that have a proxy, "sum", or "none": [N], 0 for rows without one.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    if _check.boolean("normalize", normalize):
        x, proxies = normalized("x", x), normalized("proxies", proxies)
    pairs = Pairs(x, labels, *_of_proxies(proxies, proxy_labels), similarity=similarity)
    return nca_of(pairs, scale=scalar("softmax_scale", softmax_scale, pairs.dtype), reduction=reduction)


def _of_proxies(proxies: Any, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return proxies, numbered(proxies, "proxies") if labels is None else labels


def proxy_anchor(
    x: torch.Tensor,
    labels: torch.Tensor,
    proxies: torch.Tensor,
    proxy_labels: torch.Tensor | None = None,
    *,
    margin: float = 0.1,
    alpha: torch.Tensor | float = 32.0,
) -> torch.Tensor:
    """Proxy-Anchor (Kim et al., arXiv 2003.13911): the proxies are the rows, the batch the columns,

        loss = 1/C+ sum_c log(1 + sum_{i of c} e^{-alpha (s_ci - margin)})
             + 1/C  sum_c log(1 + sum_{i not of c} e^{alpha (s_ci + margin)})

    with the cosine s_ci and C+ proxies that have a row of their label in the batch.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.
        proxies: [C, D] of the dtype of x.
        proxy_labels: [C] int64; None: 0 to C - 1.
        margin: a cosine.
        alpha: a number, or a tensor of one element, which may be learned.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 where there is no pair.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    proxies, numbers = _of_proxies(proxies, proxy_labels)
    pairs = Pairs(proxies, numbers, x, labels)
    return proxy_anchor_of(
        pairs, scale=scalar("alpha", alpha, pairs.dtype), margin=_check.number("margin", margin)
    )  # fmt: skip


def proxy_anchor_of(pairs: PairSource, *, scale: Number, margin: float) -> torch.Tensor:
    positive = pairs.statistics("positive", transform=LINEAR, scale=-scale)
    negative = pairs.statistics("negative", transform=LINEAR, scale=scale)
    with_positive = positive.count > 0
    attracted = softplus(positive.lse + scale * margin)
    repelled = softplus(negative.lse + scale * margin)
    return reduce_counted(attracted, with_positive, "mean") + reduce_counted(
        repelled, torch.ones_like(with_positive), "mean"
    )


def soft_triple(
    x: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    *,
    centers_per_class: int = 10,
    la: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    reduction: str = "mean",
) -> torch.Tensor:
    """SoftTriple (Qian et al., arXiv 1909.05235): a softmax over classes of several centres,

        S_ic = sum_k softmax_k(s_ick / gamma) s_ick,   loss_i = cross-entropy of la * (S_ic - margin * [c = y_i])

    with the cosine s_ick. This is plain PyTorch over blocks of classes, whose similarities are computed again for the
    gradient: N x C * K of them are never stored, but in a program that torch.export made, which takes all classes as
    one block.

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64, classes 0 to C - 1; rows of another label do not count.
        centers: [C * K, D] of the dtype of x, row = class * K + centre.
        centers_per_class: K.
        la: scale of the logits (lambda in the paper).
        gamma: temperature among the centres of a class, above 0.
        margin: a cosine.
        reduction: "mean" over the rows that count, "sum", or "none": [N].

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.choice("reduction", reduction, REDUCTIONS)
    k = _check.integer("centers_per_class", centers_per_class, minimum=1)
    la, margin = _check.number("la", la), _check.number("margin", margin)
    gamma = _check.number("gamma", gamma, above=0.0)
    pairs = Pairs(x, None, centers)
    classes_of = _labels(pairs, labels)
    if pairs.m == 0 or pairs.m % k:
        raise ValueError(f"centers must have {k} rows a class, and one class at least; got {pairs.m} rows")
    classes = pairs.m // k
    unit, weight = pairs.x.to(pairs.dtype), pairs.keys.view(classes, k, -1)

    def block(unit: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-sum-exp over the logits of the block's classes, and the logit of the row's own class, if here."""
        s = (unit @ weight.to(unit.dtype).flatten(0, 1).T).view(unit.shape[0], weight.shape[0], k)
        own = label[:, None] == torch.arange(weight.shape[0], device=label.device)
        logits = la * ((torch.softmax(s / gamma, 2) * s).sum(2) - margin * own.to(s.dtype))
        return logits.logsumexp(1), torch.where(own, logits, 0).sum(1)

    over, target = [], unit.new_zeros(pairs.n)
    ranges = blocks(classes, _BLOCK, pairs.n * k)
    # Cut at once: a slice of its own for every block would add a gradient of all centres for each.
    parts = weight.split([last - first for first, last in ranges])
    with autocast(unit, None):  # pairs.x is in its dtype already
        for (first, _), part in zip(ranges, parts, strict=True):
            lse, logit = recomputed(block, unit, classes_of - first, part)
            over.append(lse)
            target = target + logit
    counted = (classes_of >= 0) & (classes_of < classes)
    return reduce_counted(torch.stack(over).logsumexp(0) - target, counted, reduction)


def nbc_softmax(
    x: torch.Tensor, labels: torch.Tensor, *, scale: torch.Tensor | float = 0.2, num_classes: int | None = None
) -> torch.Tensor:
    """The block term of NBC-Softmax (arXiv 2212.08184), which keeps the means of the batch's classes apart,

        loss = 1/C sum over the classes k of the batch of log(1 + sum_{l != k} e^{scale * cos(mu_k, mu_l)})

    to be added to a softmax over the classes. (The authors' program adds 1e-10 within the logarithm.)

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16. The means are of the rows as they are.
        labels: [N] int64.
        scale: multiplies the cosines (tau in the paper); a number, or a tensor of one element, which may be learned.
        num_classes: C; None: the number of classes in the batch.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 where there are fewer than two classes.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    if num_classes is not None:
        _check.integer("num_classes", num_classes, minimum=1)
    means, present = _class_means(x, _labels(Pairs(x, similarity="dot"), labels))
    absent = torch.where(present, 0, -1)
    of_means = Pairs(means, absent, ignore_label=-1)
    lse = of_means.statistics("all", transform=LINEAR, scale=scalar("scale", scale, of_means.dtype)).lse
    total = reduce_counted(softplus(lse), present, "sum")
    return total / (present.sum().clamp_min(1) if num_classes is None else num_classes)


def _labels(pairs: Pairs, labels: Any) -> torch.Tensor:
    found = pairs._integers("labels", labels, pairs.n)
    if found is None:
        raise ValueError("labels must be given")
    return found


def _class_means(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of every class in the batch, [N, D], and which of these rows are classes, [N]: their number is never
    read on the host. Sums run over the rows in their order."""
    order = labels.argsort(stable=True)
    number = run_starts(labels[order]).cumsum(0) - 1
    counts = torch.zeros_like(order).scatter_add_(0, number, torch.ones_like(order))
    rows = x[order].to(accumulate_dtype(x.dtype))
    sums = torch.segment_reduce(rows, "sum", lengths=counts, axis=0, unsafe=True) if x.shape[0] else rows
    return sums / counts.clamp_min(1)[:, None], counts > 0
