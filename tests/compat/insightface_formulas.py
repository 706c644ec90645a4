"""What insightface's arcface_torch computes, from its formulas, in one process with the matrix of logits."""

import torch
import torch.nn.functional as F


def straight_through(value, cos):
    """The value, with derivative 1 to the cosine."""
    return cos + (value - cos).detach()


def filtered(cos, own, threshold):
    """Negatives above the threshold are multiplied by 0, not masked out; a threshold of 0 filters none."""
    return cos * (own | (cos <= threshold)) if threshold > 0 else cos


def arcface(cos, own, m):
    theta = cos.acos()
    return straight_through(torch.where(own, theta + m, theta).cos(), cos)


def cosface(cos, own, m):
    return torch.where(own, cos - m, cos)


def combined(cos, own, m1, m2, m3, threshold=0.0):
    cos = filtered(cos, own, threshold)
    return arcface(cos, own, m2) if m1 == 1 and m3 == 0 else cosface(cos, own, m3)


class CrossEntropy(torch.autograd.Function):
    """The mean of -log p_y over all rows, p held above 1e-30 for the loss alone. A row without a class of its own has
    p_y = 0, and the gradient p."""

    @staticmethod
    def forward(ctx, logits, own):
        p = logits.softmax(1)
        ctx.save_for_backward(p, own)
        return -(p * own).sum(1).clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, gradient):
        p, own = ctx.saved_tensors
        return gradient * (p - own.to(p)) / len(p), None


def sampled(labels, first, count, wanted, generator):
    """Of the classes from `first` on the positives and random others, `wanted` in all, or the positives alone where
    they are more already; in their order, numbered from 0."""
    here = labels[(labels >= first) & (labels < first + count)] - first
    positives = here.unique()
    if len(positives) > wanted:
        return positives
    order = torch.rand(count, generator=generator)
    order[positives] = 2.0
    return order.topk(wanted).indices.sort().values


class Head(torch.nn.Module):
    """The head of all ranks: their centres [C, D], and their random numbers, drawn alike after one seed."""

    def __init__(self, weight, scale, margin, sample_rate=1.0, shards=(), seed=0):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())
        self.scale, self.margin, self.sample_rate = scale, margin, sample_rate
        self.shards = shards or [len(weight)]
        self.generators = [torch.Generator().manual_seed(seed) for _ in self.shards]

    def logits(self, x, labels):
        weight, classes = self.weight, torch.arange(len(self.weight))
        if self.sample_rate < 1:
            first, parts = 0, []
            for count, generator in zip(self.shards, self.generators, strict=True):
                parts.append(sampled(labels, first, count, int(self.sample_rate * count), generator) + first)
                first += count
            classes = torch.cat(parts)
            weight = weight[classes]  # and so every centre has a gradient, most of them zeros
        own = labels[:, None] == classes
        cos = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1, 1)
        return self.scale * self.margin(cos, own), own

    def forward(self, x, labels):
        return CrossEntropy.apply(*self.logits(x, labels))
