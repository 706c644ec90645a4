"""Inputs of the methods on pairs of docs/methods.md; what a hard case is, each says."""

import torch
import torch.nn.functional as F

from .rows import Draw


def labelled(draw: Draw, n=24, d=8, classes=5, norms=True):
    """Hard: two rows are one and the same, and two are of one direction."""
    x, labels = draw.rows(n, d, norms).detach(), draw.labels(n, classes)
    if draw.hard:
        x[5], x[7] = x[2], 2 * x[6]
        labels[7] = labels[6]
    return {"x": draw.leaf(x), "labels": labels}


def two_views(draw):
    x, other = draw.rows(20, 6), draw.rows(20, 6).detach()
    return {"x": x, "y": draw.leaf(x.detach() * draw.uniform(20, 1, low=0.5, high=2.0) + 0.1 * other)}


def image_and_text(draw):
    images, texts = draw.rows(16, 8), draw.rows(16, 8)
    return {"images": images, "texts": texts, "logit_scale": draw.leaf(draw.uniform(low=1.0, high=4.0))}


def negative_labels(draw):
    """Texts near one another, as a hundredth of a cosine is a factor of e."""
    texts = draw.normal(8) + 0.1 * draw.normal(35, 8)
    return {"images": draw.rows(12, 8), "inside": draw.leaf(texts[:5]), "outside": draw.leaf(texts[5:])}


def moments(draw):
    """Sentences of videos with the intervals of time that they describe, and two proposals for every sentence."""
    sentences, each = 14, 2
    video = draw.integers(0, 1 if draw.hard else 4, sentences).sort().values
    start = draw.integers(0, 6, sentences).double()
    spans = torch.stack([start, start + draw.integers(1, 6, sentences)], 1)
    # Of every sentence itself, and those of its video that overlap it little; -1 fills up.
    lists = [[i, *other[other != i].tolist()] for i, other in enumerate(map(torch.nonzero, apart(spans, video, 0.5)))]
    longest = max(map(len, lists))
    own = torch.tensor([row + [-1] * (longest - len(row)) for row in lists])
    sentence = torch.arange(sentences).repeat_interleave(each)
    x = draw.rows(sentences, 8)
    proposals = draw.leaf(x.detach()[sentence] + 0.5 * draw.rows(len(sentence), 8).detach())
    return {
        "proposals": proposals, "sentences": x, "sentence": sentence, "video": video, "near": own[sentence],
        "spans": spans,
    }  # fmt: skip


def apart(spans, video, iou):
    """[S, S]: pairs of one video whose intersection over union is below that."""
    begin, end = spans.unbind(1)
    inner = (torch.minimum(end[:, None], end) - torch.maximum(begin[:, None], begin)).clamp_min(0)
    outer = (end - begin)[:, None] + (end - begin) - inner
    return (inner / outer < iou) & (video[:, None] == video)


def classified(draw, n=24, d=8, classes=5, norms=True):
    return labelled(draw, n, d, classes, norms) | {"weight": draw.leaf(draw.normal(classes, d)), "num_classes": classes}


def episode(draw):
    return labelled(draw) | {"queries": draw.rows(7, 8), "num_classes": 5}


def persons(draw):
    """Distances of rows as they are come from products: two equal rows are on an axis, where these are exact."""
    given = classified(draw, norms=False)
    x = 3 * given["x"].detach()
    if draw.hard:
        x[[2, 5]] = 3 * torch.eye(x.shape[1], dtype=x.dtype)[0]
    return given | {"x": draw.leaf(x)}


def pixels(draw):
    """Two images an episode, of one class; masks say which pixels are its. One mask is empty where it is hard."""
    images, each, known = 4, 9, 6
    mask = draw.integers(0, 2, images, each)
    mask[0] = 0 if draw.hard else mask[0]
    return {
        "pixels": draw.rows(images * each, 8),
        "segment": (2 * torch.arange(images)[:, None] + mask).flatten(),
        "images": images,
        "classes": draw.integers(0, 3, images),
        "dictionary": draw.rows(known, 8),
        "dictionary_classes": torch.arange(known) % 3,
    }


def linked_nodes(draw):
    """Hard: rows of both sides are equal, of whole numbers, whose products are exact and so their distance of 0."""
    points, context = 3 * draw.normal(12, 6), 3 * draw.normal(15, 6)
    if draw.hard:
        points[:6] = context[:6] = points[:6].round()
    return {
        "points": draw.leaf(points),
        "context": draw.leaf(context),
        "nodes": draw.integers(0, 5, 12),
        "context_nodes": draw.integers(0, 5, 15),
    }


def memory_bank(draw):
    """All negatives of the pool are drawn, so that the draw is no matter of chance."""
    given = labelled(draw, 10, 8, 4)
    bank, bank_labels = draw.rows(40, 8, norms=False).detach(), draw.integers(0, 4, 40)
    bank[:4], bank_labels[:4] = F.normalize(given["x"].detach()[:4]), given["labels"][:4]
    chosen = torch.arange(10) if draw.hard else draw.integers(0, 40, 10)
    return given | {"bank": bank, "bank_labels": bank_labels, "chosen": chosen, "pool": 12, "drawn": 12}


def interclr_intra(draw):
    return {"q": draw.rows(9, 8), "k": draw.rows(9, 8).detach(), "queue": draw.rows(20, 8).detach()}


def with_duplicates(draw):
    given = labelled(draw, norms=False)
    x, labels = given["x"].detach().clone(), given["labels"]
    x[1], labels[1] = x[0], labels[0]
    return {"x": draw.leaf(x), "labels": labels}


def views(draw):
    """Two views of every sample; one where it is hard, so that some have no positive."""
    n, count = 12, 1 if draw.hard else 2
    return {"features": draw.leaf(draw.rows(n * count, 8).detach().view(n, count, 8)), "labels": draw.labels(n, 5)}


def one_negative_each(draw):
    """Every anchor has one negative within the cutoff, so that the draw is no matter of chance: classes of three rows
    about a direction, each with one row of a class of its own near it."""
    groups, d = 4, 16
    axes = torch.eye(groups, d, dtype=torch.float64)
    centres = (axes - 0.3 / groups * axes.sum(0)).repeat_interleave(4, 0)
    x = F.normalize(centres + (0.005 if draw.hard else 0.02) * draw.normal(4 * groups, d))
    labels = torch.arange(groups)[:, None] + torch.tensor([0, 0, 0, groups])
    beta = draw.leaf(draw.uniform(2 * groups, low=0.05, high=0.5))
    return {"x": draw.leaf(x * draw.uniform(4 * groups, 1, low=0.5, high=2)), "labels": labels.flatten(), "beta": beta}


def nodes(draw):
    n = 18
    return {
        "x": draw.rows(n, 8),
        "ref": draw.rows(n, 8),
        "clusters": torch.stack([draw.integers(0, k, n) for k in (3, 5)], 1),
    }


def with_boundaries(draw):
    return labelled(draw) | {"beta": draw.leaf(draw.uniform(5, low=0.2, high=1.3))}
