"""The pair losses of docs/methods.md as their papers write them, over the full N x M matrix."""

import math

import torch
import torch.nn.functional as F

from .pair_cases import (
    apart,
    classified,
    episode,
    image_and_text,
    interclr_intra,
    labelled,
    linked_nodes,
    memory_bank,
    moments,
    negative_labels,
    nodes,
    one_negative_each,
    persons,
    pixels,
    two_views,
    views,
    with_boundaries,
    with_duplicates,
)
from .rows import Method


def cosines(x, y=None):
    return F.normalize(x) @ F.normalize(x if y is None else y).T


def square_distances(x, y=None):
    return (x[:, None] - (x if y is None else y)).square().sum(2)


def root(square):
    """Of 0, which distances of equal rows are, the derivative is 0."""
    return torch.where(square > 0, square.where(square > 0, 1).sqrt(), 0)


def masks(labels, ref_labels=None):
    """Which pairs are positive, and which negative; no row is a pair with itself."""
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)
    if ref_labels is not None:
        return same, ~same
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def lse(logits, mask):
    return logits.masked_fill(~mask, -torch.inf).logsumexp(1)


def info_nce(logits, positive, negative):
    """lse over both less the mean positive, over the rows with a positive."""
    some = positive.any(1)
    logits, positive, negative = logits[some], positive[some], negative[some]
    return (lse(logits, positive | negative) - (logits * positive).sum(1) / positive.sum(1)).mean()


def cross_entropy(logits, labels, smoothing=0.0):
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * logits.log_softmax(1)).sum(1).mean()


def class_means(x, labels, classes):
    """0 for a class without rows."""
    member = F.one_hot(labels, classes).T.to(x.dtype)
    return member @ x / member.sum(1, keepdim=True).clamp_min(1)


# 3: alignment and uniformity


def uniform(x, t, diagonal=False):
    kernel = (-t * square_distances(x)).exp()
    return (kernel if diagonal else kernel[~torch.eye(len(x), dtype=torch.bool)]).mean().log()


def align_uniform(x, y, *, alpha=2.0, t=2.0, weight=0.5, diagonal=False):
    x, y = F.normalize(x), F.normalize(y)
    align = (x - y).norm(dim=1).pow(alpha).mean()
    return align + weight * (uniform(x, t, diagonal) + uniform(y, t, diagonal))


def uniform_of_full_matrix(x, *, t=2.0, diagonal=True):
    return uniform(F.normalize(x), t, diagonal)


def uniform_as_given(x, *, t=2.0, normalize=False):
    return uniform(F.normalize(x) if normalize else x, t)


# 7: cross-modal alignment


def cma(images, texts, logit_scale, *, lam=0.001):
    logits = logit_scale.exp() * cosines(images, texts)
    sides = []
    for side in (logits, logits.T):
        sides.append(F.cross_entropy(side, torch.arange(len(side))) - lam * side.logsumexp(1).mean())
    return (sides[0] + sides[1]) / 2


def neg_label_score(images, inside, outside, *, tau=0.01):
    p = (cosines(images, torch.cat([inside, outside])) / tau).softmax(1)
    return p[:, : len(inside)].sum(1)


# 12: G2L


def g2l(proposals, sentences, sentence, video, spans, *, margin=0.3, tau=0.1, iou=0.5):
    own = F.one_hot(sentence, len(sentences)).to(sentences.dtype)
    logits = (cosines(proposals, sentences) - margin * own) / tau
    counts = apart(spans, video, iou) | (video[:, None] != video)
    kept = counts[sentence] | own.bool()
    return (lse(logits, kept) - logits[own.bool()]).mean()


def g2l_without_mask(proposals, sentences, sentence, *, margin=0.3, tau=0.1):
    own = F.one_hot(sentence, len(sentences)).to(sentences.dtype)
    return F.cross_entropy((cosines(proposals, sentences) - margin * own) / tau, sentence)


# 13: NBC-Softmax


def nbc(x, labels, weight, num_classes, *, ratio=0.5, tau=0.2, over_all_classes=True):
    means = torch.stack([x[labels == k].mean(0) for k in labels.unique()])
    power = tau * cosines(means) * (1 - torch.eye(len(means), dtype=x.dtype))  # the class itself contributes e^0
    block = power.exp().sum(1).log().mean() / (num_classes if over_all_classes else 1)
    return (1 - ratio) * cross_entropy(x @ weight.T, labels) + ratio * block


# 15: Contra-X


def contra_x(x, labels, weight, *, tau=0.1, coe=1.0, diagonal=True):
    some = torch.ones(len(x), len(x), dtype=torch.bool)
    if not diagonal:
        some &= ~torch.eye(len(x), dtype=torch.bool)
    alike = (labels[:, None] == labels).to(x.dtype)
    log_p = (cosines(x) / tau).masked_fill(~some, -torch.inf).log_softmax(1)
    q = (alike / tau).masked_fill(~some, -torch.inf).softmax(1)
    kl = torch.where(some, q * (q.where(some, 1).log() - log_p.where(some, 0)), 0).sum(1).mean()
    return cross_entropy(x @ weight.T, labels) + coe * kl


# 20: dual path structural contrastive embeddings


def supcon(logits, positive, factor, some=None):
    """Rows without positives count, as 0."""
    some = ~torch.eye(len(logits), dtype=torch.bool) if some is None else some
    mean = (logits * positive).sum(1) / positive.sum(1).clamp_min(1)
    return (factor * torch.where(positive.any(1), lse(logits, some) - mean, 0)).mean()


def dual_path(x, labels, queries, num_classes, *, tau=0.1):
    loss = supcon(cosines(x) / tau, masks(labels)[0], 1.0)
    return loss, cosines(queries, class_means(x, labels, num_classes)) / tau


# 21: AGW


def weighted_mean(d, logits, mask, eps):
    """By the softmax of the logits, to the sum of which eps is added."""
    weight = torch.where(mask, logits, -torch.inf).exp()
    total = weight.sum(1, keepdim=True) + eps
    return (d * weight / total.where(total > 0, 1)).sum(1)


def weighted_triplet(x, labels, with_itself, eps, normalize):
    positive, negative = masks(labels)
    d = root(square_distances(F.normalize(x) if normalize else x))
    if with_itself:
        positive = positive | torch.eye(len(x), dtype=torch.bool)
    # The program's weights of positives are of d - max d, those of negatives of -d.
    near = weighted_mean(d, d - (d * positive).max(1, keepdim=True).values, positive, eps)
    far = weighted_mean(d, -d, negative, eps)
    some = positive.any(1) & negative.any(1)
    return torch.where(some, F.softplus(near - far, threshold=100), 0).mean()


def agw(x, labels, weight, *, smoothing=0.1, eps=1e-6, with_itself=True, normalize=False):
    return cross_entropy(x @ weight.T, labels, smoothing) + weighted_triplet(x, labels, with_itself, eps, normalize)


def agw_exact(x, labels, *, eps=0.0, with_itself=False, normalize=True):
    return weighted_triplet(x, labels, with_itself, eps, normalize)


# 24: dual prototypical contrast


def dpcl(pixels, segment, images, classes, dictionary, dictionary_classes, *, tau=0.1, agnostic=1.0):
    means = class_means(pixels, segment, 2 * images)
    foreground = means[1::2]
    specific = info_nce(cosines(foreground, dictionary) / tau, *masks(classes, dictionary_classes))
    figure = torch.where(torch.arange(2 * images) % 2 == 1, -1, torch.arange(2 * images))
    return specific + agnostic * info_nce(cosines(means) / tau, *masks(figure))


# 25: structure-inducing pre-training


def multi_similarity_rows(s, positive, negative, alpha, beta, base, epsilon):
    """With the mining; a row of which nothing is mined has 0."""
    least = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    most = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    negative = negative & (s + epsilon > least)
    positive = positive & (s - epsilon < most)
    pull = torch.where(positive, -alpha * (s - base), -torch.inf).exp().sum(1).log1p() / alpha
    push = torch.where(negative, beta * (s - base), -torch.inf).exp().sum(1).log1p() / beta
    return pull + push, positive.any(1)


def sipt(x, labels, *, alpha=1.0, beta=1.0, base=0.1, epsilon=10.0, over_kept_rows=True):
    rows, kept = multi_similarity_rows(cosines(x), *masks(labels), alpha, beta, base, epsilon)
    return (rows[kept] if over_kept_rows else rows).mean()


def sipt_linker(points, nodes, context, context_nodes, *, pos_margin=0.0, neg_margin=10.0, normalize=False):
    if normalize:
        points, context = F.normalize(points), F.normalize(context)
    linked = nodes[:, None] == context_nodes
    d = root(square_distances(points, context))
    return torch.where(linked, (d - pos_margin).relu(), (neg_margin - d).relu()).mean()


# 26: InterCLR


def interclr_negatives(s, labels, bank_labels, pool):
    candidates = torch.zeros_like(s, dtype=torch.bool).scatter(1, s.topk(pool).indices, True)
    return candidates & (bank_labels != labels[:, None])


def interclr_cos(x, labels, bank, bank_labels, chosen, *, margin=-0.5, tau=0.2, pool=12, reject=True):
    s = cosines(x, bank)
    negatives = interclr_negatives(s, labels, bank_labels if reject else bank_labels + 9, pool)
    positive = s.gather(1, chosen[:, None]) - margin
    logits = torch.cat([positive, s.masked_fill(~negatives, -torch.inf)], 1) / tau
    return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64))


def interclr_arc(x, labels, bank, bank_labels, chosen, *, margin=-0.5, tau=0.2, pool=12):
    s = cosines(x, bank)
    negatives = interclr_negatives(s, labels, bank_labels, pool)
    c = s.gather(1, chosen[:, None])
    turned = c * math.cos(margin) - root((1 - c.square()).clamp_min(0)) * math.sin(margin)
    positive = torch.where(c < math.cos(margin), turned, c + margin * math.sin(margin))
    logits = torch.cat([positive, s.masked_fill(~negatives, -torch.inf)], 1) / tau
    return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64))


def moco(q, k, queue, *, tau=0.2):
    own = (F.normalize(q) * F.normalize(k)).sum(1, keepdim=True)
    logits = torch.cat([own, cosines(q, queue)], 1) / tau
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


# 29: multi-similarity


def multi_similarity(x, labels, *, alpha=2.0, beta=40.0, base=0.5, epsilon=0.1, over_all_rows=True):
    rows, kept = multi_similarity_rows(cosines(x), *masks(labels), alpha, beta, base, epsilon)
    return (rows if over_all_rows else rows[kept]).mean()


def multi_similarity_by_value(x, labels, *, alpha=2.0, beta=40.0, base=0.5, epsilon=0.1, limit=1e-5, drop=True):
    s, (positive, negative) = cosines(x), masks(labels)
    if drop:
        positive = (labels[:, None] == labels) & (s < 1 - limit)
    return multi_similarity_rows(s, positive, negative, alpha, beta, base, epsilon)[0].mean()


# 30: supervised contrast


def supcon_of_views(features, labels, *, tau=0.1, base=0.07, anchors="all"):
    n, count, _ = features.shape
    every, of_every = features.transpose(0, 1).flatten(0, 1), labels.repeat(count)
    rows = n * count if anchors == "all" else n
    other = ~torch.eye(n * count, dtype=torch.bool)[:rows]
    positive = (of_every[:rows, None] == of_every) & other
    return supcon(cosines(every[:rows], every) / tau, positive, tau / base, other)


def supcon_of_first_views(features, labels, *, tau=0.1, base=0.07, anchors="one"):
    return supcon_of_views(features, labels, tau=tau, base=base, anchors=anchors)


# 31: distance-weighted sampling and the margin loss


def margin_loss(x, labels, beta, *, alpha=0.2, eps=1e-8, over_active=True):
    d = (square_distances(F.normalize(x)) + eps).sqrt()
    positive, negative = masks(labels)
    hinges = []
    for a, p in positive.nonzero().tolist():
        (n,) = (negative[a] & (d[a] < 1.4)).nonzero().flatten().tolist()
        hinges += [d[a, p] - beta[labels[a]] + alpha, beta[labels[a]] - d[a, n] + alpha]
    hinges = torch.stack(hinges).relu()
    return hinges.sum() / ((hinges > 0).sum() if over_active else len(hinges))


def margin_loss_of_all_triplets(x, labels, beta, *, alpha=0.2, over_active=True):
    d = root(square_distances(F.normalize(x)))
    positive, negative = masks(labels)
    a, p, n = (positive[:, :, None] & negative[:, None]).nonzero(as_tuple=True)
    hinges = torch.stack([d[a, p] - beta[labels[a]] + alpha, beta[labels[a]] - d[a, n] + alpha]).relu()
    return hinges.sum() / ((hinges > 0).sum() if over_active else hinges.numel())


# 32: MEOW


def meow(x, ref, clusters, *, tau=0.5, weighted=True):
    s = cosines(x, ref) / tau
    weight = (clusters[:, None] != clusters).sum(2)  # of a row and itself 0
    weight = weight.to(x.dtype) if weighted else (weight > 0).to(x.dtype)
    return ((weight * s.exp()).sum(1).log() - s.diagonal()).mean()


METHODS = [
    Method("3", "alignment and uniformity", two_views, align_uniform),
    Method("3", "uniformity of the full matrix", labelled, uniform_of_full_matrix),
    Method("3", "uniformity of rows as they are", lambda draw: labelled(draw, norms=False), uniform_as_given),
    Method("7", "loss", image_and_text, cma),
    Method("7", "score", negative_labels, neg_label_score, ("score",)),
    Method("12", "with the mask", moments, g2l, altered={"iou": 0.9}),
    Method("12", "without", moments, g2l_without_mask),
    Method("13", "loss", classified, nbc),
    Method("15", "loss", classified, contra_x),
    Method("20", "composition", episode, dual_path, ("loss", "scores")),
    Method("21", "authors' weights", persons, agw),
    Method("21", "exact weights", labelled, agw_exact),
    Method("24", "composition", pixels, dpcl),
    Method("25", "multi-similarity", labelled, sipt, altered={"epsilon": 0.1}),
    Method("25", "linker", linked_nodes, sipt_linker),
    Method("26", "cosine margin", memory_bank, interclr_cos),
    Method("26", "arc margin", memory_bank, interclr_arc),
    Method("26", "intra-image", interclr_intra, moco),
    Method("29", "loss", labelled, multi_similarity, altered={"epsilon": 0.2}),
    Method(
        "29", "authors' duplicates", with_duplicates, multi_similarity_by_value, altered={"limit": 0.2, "epsilon": 0.2}
    ),
    Method("30", "all views are anchors", views, supcon_of_views, altered={"anchors": "one"}),
    Method("30", "first views are anchors", views, supcon_of_first_views, altered={"anchors": "all"}),
    Method("31", "drawn triplets", one_negative_each, margin_loss),
    Method("31", "all triplets", with_boundaries, margin_loss_of_all_triplets),
    Method("32", "loss", nodes, meow),
]  # fmt: skip
