"""The losses of hinges, of weighted pairs and of ranks as their papers have them: float64, every pair of the matrix.

`u` is the matrix of what users name, distances or cosines; `near` says that it holds similarities. `pos` and `neg` say
which pairs are positive and negative.
"""

import math

import torch
import torch.nn.functional as F


def matrix(x, ref=None, similarity="cosine", normalize=True):
    ref = x if ref is None else ref
    if similarity == "cosine" or (normalize and similarity != "dot"):
        x, ref = F.normalize(x), F.normalize(ref)
    if similarity in ("cosine", "dot"):
        return (x[:, None] * ref[None]).sum(2)
    squared = (x[:, None] - ref[None]).square().sum(2)
    if similarity == "squared_euclidean":
        return squared
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)


def masks(labels, ref_labels=None, ids=None, ref_ids=None):
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)[None]
    other = ~torch.eye(len(labels), dtype=torch.bool) if ref_labels is None else torch.ones_like(same)
    if ids is not None:
        other = ids[:, None] != (ids if ref_ids is None else ref_ids)[None]
    return same & other, ~same & other


def mean(losses, like, nonzero=False):
    """Of a list of scalars, over those above 0 where asked."""
    losses = torch.stack(losses) if losses else like.new_zeros(0)
    if nonzero:
        losses = losses[losses > 0]
    return losses.mean() if len(losses) else (like * 0).sum()


def log_sum_exp(z):
    return torch.logsumexp(z, 0) if len(z) else None


def log_one_plus(z):
    """log(1 + sum exp z)."""
    return torch.logsumexp(torch.cat([z, z.new_zeros(1)]), 0)


def contrastive(u, near, pos, neg, pos_margin, neg_margin, nonzero=True):
    sign = -1 if near else 1
    pull = [(sign * (v - pos_margin)).relu() for v in u[pos]]
    push = [(sign * (neg_margin - v)).relu() for v in u[neg]]
    return mean(pull, u, nonzero) + mean(push, u, nonzero)


def triplets(pos, neg):
    for i in range(len(pos)):
        for p in pos[i].nonzero().flatten().tolist():
            for n in neg[i].nonzero().flatten().tolist():
                yield i, p, n


def hinge(v, soft):
    return torch.log1p(v.exp()) if soft else v.relu()


def triplet_all(u, near, pos, neg, margin, soft=False, nonzero=True):
    sign = -1 if near else 1
    return mean([hinge(sign * (u[i, p] - u[i, n]) + margin, soft) for i, p, n in triplets(pos, neg)], u, nonzero)


def triplet_batch_hard(u, near, pos, neg, margin, soft=False, nonzero=True):
    d = -u if near else u
    losses = []
    for i in range(len(u)):
        if pos[i].any() and neg[i].any():
            losses.append(hinge(d[i][pos[i]].max() - d[i][neg[i]].min() + margin, soft))
    return mean(losses, u, nonzero)


def triplet_semi_hard(u, near, pos, neg, margin, soft=False, nonzero=True):
    d = -u if near else u
    losses = []
    for i, p in pos.nonzero().tolist():
        negatives = d[i][neg[i]]
        if len(negatives):
            farther = negatives[negatives > d[i, p]]
            chosen = farther.min() if len(farther) else negatives.max()
            losses.append(hinge(d[i, p] - chosen + margin, soft))
    return mean(losses, u, nonzero)


def margin(u, near, pos, neg, alpha, beta, nu=0.0, per_class=None):
    """beta: a scalar, or [C] with `per_class` the labels."""
    sign = -1 if near else 1
    total, hinges, penalty, some = (u * 0).sum(), 0, (u * 0).sum(), False
    for i, p, n in triplets(pos, neg):
        b = beta if per_class is None else beta[per_class[i]]
        pull, push = (sign * (u[i, p] - b) + alpha).relu(), (sign * (b - u[i, n]) + alpha).relu()
        total, hinges, some = total + pull + push, hinges + int(pull > 0) + int(push > 0), True
        penalty = penalty + (0 if per_class is None else nu * b)
    loss = (total + penalty) / hinges if hinges else (u * 0).sum()
    return loss + nu * beta if per_class is None and some else loss


def tuplet_margin(u, near, pos, neg, degrees, scale):
    losses = []
    for i, p in pos.nonzero().tolist():
        eased = torch.cos(torch.acos(u[i, p]) - math.radians(degrees))
        losses.append(log_one_plus(scale * (u[i][neg[i]] - eased)))
    return mean(losses, u)


def multi_similarity(u, near, pos, neg, alpha, beta, base, epsilon):
    s, base = (u, base) if near else (-u, -base)
    rows = []
    for i in range(len(s)):
        p, n = s[i][pos[i]], s[i][neg[i]]
        if epsilon is not None:
            if not len(p) or not len(n):
                p, n = p[:0], n[:0]
            else:
                p, n = p[p - epsilon < n.max()], n[n + epsilon > p.min()]
        rows.append(log_one_plus(-alpha * (p - base)) / alpha + log_one_plus(beta * (n - base)) / beta)
    return mean(rows, u)


def _circle_logits(s, m, gamma):
    """Of all pairs as positives, and as negatives."""
    pull, push = (1 + m - s).relu().detach(), (s + m).relu().detach()
    return -gamma * pull * (s - (1 - m)), gamma * push * (s - m)


def circle(u, near, pos, neg, m, gamma, nonzero=True):
    pull, push = _circle_logits(u, m, gamma)
    rows = []
    for i in range(len(u)):
        p, n = log_sum_exp(pull[i][pos[i]]), log_sum_exp(push[i][neg[i]])
        rows.append(torch.logaddexp(p + n, p * 0) if p is not None and n is not None else (u * 0).sum())
    return mean(rows, u, nonzero)


def circle_of_batch(u, near, pos, neg, m, gamma, twice):
    if twice:
        pos, neg = pos.triu(1), neg.triu(1)
    pull, push = _circle_logits(u, m, gamma)
    p, n = log_sum_exp(pull[pos]), log_sum_exp(push[neg])
    return torch.logaddexp(p + n, p * 0) if p is not None and n is not None else (u * 0).sum()


def lifted(u, near, pos, neg, neg_margin, pos_margin):
    d, neg_margin, pos_margin = (-u, -neg_margin, -pos_margin) if near else (u, neg_margin, pos_margin)
    losses = []
    square = len(pos) == pos.shape[1] and torch.equal(neg, neg.T)
    for i, p in pos.nonzero().tolist() if neg.any() else ():
        of_p = d[p][neg[p]] if square else d[:, p][neg[:, p]]
        both = log_sum_exp(neg_margin - torch.cat([d[i][neg[i]], of_p]))
        losses.append(((0 if both is None else both) + d[i, p] - pos_margin).relu().square() / 2)
    return mean(losses, u)


def generalized_lifted(u, near, pos, neg, neg_margin, pos_margin):
    d, neg_margin, pos_margin = (-u, -neg_margin, -pos_margin) if near else (u, neg_margin, pos_margin)
    rows = []
    for i in range(len(d)):
        p, n = log_sum_exp(d[i][pos[i]] - pos_margin), log_sum_exp(neg_margin - d[i][neg[i]])
        rows.append(((0 if p is None else p) + (0 if n is None else n) + (d * 0).sum()).relu())
    return mean(rows, u)


def weighted_triplet(u, near, pos, neg, include_self=False, exact=True):
    d = -u if near else u
    rows = []
    for i in range(len(d)):
        p, n = d[i][pos[i]], d[i][neg[i]]
        if include_self:
            p = torch.cat([p, p.new_zeros(1)])
        if not len(p) or not len(n):
            rows.append((u * 0).sum())
            continue
        if exact:
            furthest, closest = (p.softmax(0) * p).sum(), ((-n).softmax(0) * n).sum()
        else:
            wp, wn = (p - p.max(0).values).exp(), (-n).exp()
            furthest, closest = (wp * p).sum() / (wp.sum() + 1e-6), (wn * n).sum() / (wn.sum() + 1e-6)
        rows.append(torch.log1p((furthest - closest).exp()))
    return mean(rows, u)


def ranked_list(u, near, pos, neg, margin, tn, tp, imbalance, alpha, detach):
    rows = []
    for i in range(len(u)):
        loss = (u * 0).sum()
        for violation, t, part in (
            (u[i][pos[i]] - (alpha - margin), tp, 1 - imbalance),
            (alpha - u[i][neg[i]], tn, imbalance),
        ):
            violation = violation[violation > 0]
            weight = (t * violation).exp()
            weight = weight.detach() if detach else weight
            loss = loss + part * (weight * violation).sum() / (weight.sum() + max(u.shape[1], 1) * 1e-5)
        rows.append(loss)
    return mean(rows, u)


def fast_ap(u, near, pos, neg, bins):
    """u: squared distances of unit vectors."""
    width, rows = 4 / bins, []
    for i in range(len(u)):
        if not pos[i].any():
            continue
        average, hits, total = (u * 0).sum(), 0, 0
        for k in range(bins + 1):
            pulse = (1 - (u[i] - k * width).abs() / width).relu()
            h = pulse[pos[i]].sum()
            hits, total = hits + h, total + pulse[pos[i] | neg[i]].sum()
            if h > 0:
                average = average + h * hits / total
        rows.append(1 - average / pos[i].sum())
    return mean(rows, u)
