"""The softmax, proxy and spread losses as their papers write them, with the whole matrix and a loop over rows."""

import itertools
import math

import torch
import torch.nn.functional as F


def similarities(x, ref=None, similarity="cosine", normalize=False):
    ref = x if ref is None else ref
    if similarity == "cosine" or normalize:
        x, ref = F.normalize(x), F.normalize(ref)
    if similarity in ("cosine", "dot"):
        return x @ ref.T
    squared = (x[:, None] - ref[None]).square().sum(2)
    if similarity == "squared_euclidean":
        return -squared
    return -torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)


def pair_masks(labels, ref_labels=None, ids=None, ref_ids=None):
    """(positive, negative), bool [N, M]; within one set the diagonal is neither."""
    other = labels if ref_labels is None else ref_labels
    same = labels[:, None] == other[None]
    keep = torch.ones_like(same)
    if ids is not None:
        keep &= ids[:, None] != (ids if ref_ids is None else ref_ids)[None]
    elif ref_labels is None:
        keep &= ~torch.eye(len(labels), dtype=torch.bool)
    return same & keep, ~same & keep


def paired_masks(n, m):
    positive = torch.eye(n, m, dtype=torch.bool)
    return positive, ~positive


def mean_of(losses, like):
    return torch.stack(losses).mean() if losses else 0 * like.sum()


def by_row(losses, like):
    return torch.stack(losses) if losses else like.sum(1)


def info_nce(s, positive, negative, t, margin=0.0, weights=None, in_denominator=True, lse_coefficient=1.0, queue=None):
    """Loss of every row, [N]; queue: similarities [N, Q] of further negatives, -inf where they do not count."""
    rows = []
    for i in range(len(s)):
        own, others = (s[i][positive[i]] - margin) / t, s[i][negative[i]] / t
        if weights is not None:
            others = others + weights[i][negative[i]].to(s).log()
        if queue is not None:
            others = torch.cat([others, queue[i][queue[i] > -math.inf] / t])
        denominator = torch.cat([own, others]) if in_denominator else others
        if not len(own) or not len(denominator):
            rows.append(0 * s[i].sum())
        else:
            rows.append(lse_coefficient * denominator.logsumexp(0) - own.mean())
    return by_row(rows, s)


def supcon(s, positive, negative, t):
    """Loss of every row, [N], without the factor of the temperatures."""
    rows = []
    for i in range(len(s)):
        own = s[i][positive[i]] / t
        z = (s[i][positive[i] | negative[i]] / t).logsumexp(0) if len(own) else 0
        rows.append(-(own - z).sum() / len(own) if len(own) else 0 * s[i].sum())
    return by_row(rows, s)


def nt_xent(s, positive, negative, t):
    """Loss of every positive pair, row by row."""
    losses = []
    for i, p in positive.nonzero().tolist():
        denominator = (s[i, p] / t).exp() + (s[i][negative[i]] / t).exp().sum()
        losses.append(-((s[i, p] / t).exp() / denominator).log())
    return torch.stack(losses) if losses else s.flatten()[:0]


def n_pairs(x, labels, t=1.0, similarity="cosine"):
    """Loss of every label that has two rows, by rising label."""
    found = [(labels == y).nonzero().flatten().tolist()[:2] for y in labels.unique().tolist()]
    found = [pair for pair in found if len(pair) == 2]
    if not found:
        return x.sum(1)[:0]
    anchors, positives = (x[list(side)] for side in zip(*found, strict=True))
    logits = similarities(anchors, positives, similarity) / t
    return F.cross_entropy(logits, torch.arange(len(found)), reduction="none")


def nca(s, positive, negative, scale):
    """Loss of every row with a positive."""
    losses = []
    for i in range(len(s)):
        if positive[i].any():
            share = torch.softmax((scale * s[i]).masked_fill(~(positive[i] | negative[i]), -math.inf), 0)
            losses.append(-share[positive[i]].sum().log())
    return losses


def soft_target(s, same, keep, t):
    """KL divergence of every row."""
    rows = []
    for i in range(len(s)):
        target = torch.softmax(same[i][keep[i]].to(s) / t, 0)
        rows.append((target * (target.log() - torch.log_softmax(s[i][keep[i]] / t, 0))).sum())
    return by_row(rows, s)


def proxy_anchor(x, labels, proxies, margin, alpha):
    cos = similarities(x, proxies)
    positive, negative, count = [], [], 0
    for c in range(len(proxies)):
        own = labels == c
        count += bool(own.any())
        positive.append((-alpha * (cos[own, c] - margin)).exp().sum().log1p())
        negative.append((alpha * (cos[~own, c] + margin)).exp().sum().log1p())
    return sum(positive) / max(count, 1) + sum(negative) / len(proxies)


def soft_triple(x, labels, centers, k, la, gamma, margin):
    cos = similarities(x, centers).view(len(x), -1, k)
    relaxed = (torch.softmax(cos / gamma, 2) * cos).sum(2)
    own = F.one_hot(labels, relaxed.shape[1]).to(relaxed)
    return F.cross_entropy(la * (relaxed - margin * own), labels, reduction="none")


def nbc(x, labels, scale, classes):
    means = [x[labels == y].mean(0) for y in labels.unique().tolist()]
    terms = []
    for k, mean in enumerate(means):
        others = [(scale * F.cosine_similarity(mean, means[j], dim=0)).exp() for j in range(len(means)) if j != k]
        terms.append((1 + sum(others)).log() if others else 0 * mean.sum())
    return sum(terms) / classes


def uniformity(x, t):
    return (-t * F.pdist(x).square()).exp().mean().log()


def calibrated_uniformity(x, fused, t, low, high):
    x, cos = F.normalize(x), similarities(fused)
    terms = [
        -t * ((x[i] - x[j]).square().sum() - 2 + 2 * cos[i, j].clamp(low, high))
        for i, j in itertools.combinations(range(len(x)), 2)
    ]
    return torch.stack(terms).exp().mean().log()


def hyperface(x, gallery, alpha):
    own = 1 - similarities(x) + 9 * torch.eye(len(x), dtype=x.dtype)
    loss = -own.min() if len(x) > 1 else 0 * x.sum()
    return loss if gallery is None else loss + alpha * (1 - similarities(x, gallery)).amin(1).mean()


def siglip(s, positive, negative, t, b):
    """Loss of every row."""
    z = torch.where(positive, 1.0, -1.0).to(s) * (t * s + b)
    return -torch.where(positive | negative, torch.sigmoid(z).log(), 0).sum(1)


def meow(s, labels, t):
    weight = (labels[:, None] != labels[None]).sum(2)
    return (weight * (s / t).exp()).sum(1).log() - s.diagonal() / t
