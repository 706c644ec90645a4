"""The heads as their papers and authors write them, over the full N x C matrix: what hk.margins is compared with.

A formula takes the cosines [N, C], targets [N] and norms [N] and gives the logits divided by the scale [N, C].
"""

import math

import torch
import torch.nn.functional as F


def one_hot(c, y):
    return F.one_hot(y, c.shape[1]).bool()


def own(c, y):
    return c[torch.arange(len(y)), y][:, None]


def put(c, y, target):
    """The matrix c with the target's column replaced."""
    return torch.where(one_hot(c, y), target, c)


def detached(formula):
    """The formula's values at the target; the gradient as if the target's cosine had been left alone."""

    def straight(c, y, norms):
        return torch.where(one_hot(c, y), c + (formula(c, y, norms) - c).detach(), c)

    return straight


def sphereface_psi(theta, m):
    k = torch.floor(m * theta.detach() / math.pi)
    return torch.where(k % 2 == 0, 1.0, -1.0) * torch.cos(m * theta) - 2 * k


def combined(m1, m2, m3):
    return lambda c, y, norms: put(c, y, torch.cos(m1 * torch.acos(c) + m2) - m3)


def sphereface(m):
    return lambda c, y, norms: put(c, y, sphereface_psi(torch.acos(c), m))


def sphereface_r1(m):
    return lambda c, y, norms: put(c, y, torch.cos(torch.clamp(m * torch.acos(c), max=math.pi)))


def sphereface_r2(m, straight=False):
    def formula(c, y, norms):
        others = torch.cos(torch.acos(c) / m)
        if straight:
            others = c + (others - c).detach()
        return torch.where(one_hot(c, y), c, others)

    return formula


def arcface(m, past_pi="linear"):
    def formula(c, y, norms):
        shifted = torch.cos(torch.acos(c) + m)
        if past_pi == "linear":
            shifted = torch.where(c > math.cos(math.pi - m), shifted, c - math.sin(math.pi - m) * m)
        if past_pi == "easy":
            shifted = torch.where(c > 0, shifted, c)
        return put(c, y, shifted)

    return formula


def per_class(margins, kind):
    def formula(c, y, norms):
        m = margins[y][:, None]
        return put(c, y, c - m if kind == "cos" else torch.cos(torch.acos(c) + m))

    return formula


def adaface(m, h, mean, std, clip=1e-3):
    def formula(c, y, norms):
        safe = torch.clip(norms, 0.001, 100).detach()
        q = torch.clip((safe - mean) / (std + 1e-3) * h, -1, 1)[:, None]
        hot = one_hot(c, y)
        theta = torch.acos(c) + torch.where(hot, -m * q, 0)
        if clip is not None:
            theta = torch.where(hot, torch.clip(theta, clip, math.pi - clip), theta)
        return torch.cos(theta) - torch.where(hot, m + m * q, 0)

    return formula


def magface(l_a, u_a, l_m, u_m, easy=True):
    def formula(c, y, norms):
        a = torch.clamp(norms, l_a, u_a)[:, None]
        m = (u_m - l_m) / (u_a - l_a) * (a - l_a) + l_m
        shifted = c * torch.cos(m) - torch.sqrt(1 - c**2) * torch.sin(m)
        if easy:
            shifted = torch.where(c > 0, shifted, c)
        else:
            shifted = torch.where(c > torch.cos(math.pi - m), shifted, c - m * torch.sin(math.pi - m))
        return put(c, y, shifted)

    return formula


def magface_straight(*sizes):
    """Straight to the cosine, exact to the norm."""
    formula = magface(*sizes)
    return lambda c, y, norms: torch.where(one_hot(c, y), formula(c.detach(), y, norms) + c - c.detach(), c)


def curricular(m, t):
    def formula(c, y, norms):
        target = own(c, y)
        shifted = target * math.cos(m) - torch.sqrt(1 - target**2) * math.sin(m)
        hard = c > shifted
        final = torch.where(target > math.cos(math.pi - m), shifted, target - math.sin(math.pi - m) * m)
        return put(torch.where(hard, c * (t + c), c), y, final)

    return formula


def mv_softmax(m, weight, kind):
    def formula(c, y, norms):
        target = own(c, y)
        if kind == "am":
            hard, final = c > target - m, torch.where(target > m, target - m, target)
        else:
            shifted = torch.cos(torch.acos(target) + m)
            hard, final = c > shifted, torch.where(target > 0, shifted, target)
        return put(torch.where(hard, weight * c + weight - 1, c), y, final)

    return formula


def npcface(m, m0, m1, t, a):
    def formula(c, y, norms):
        target = own(c, y)
        hard = (c > torch.cos(torch.acos(target) + m)) & ~one_hot(c, y)
        mean = torch.where(hard, c, 0).sum(1, keepdim=True) / hard.sum(1, keepdim=True).clamp(min=1)
        final = torch.cos(torch.acos(target) + m0 + m1 * mean.detach())
        return put(torch.where(hard, t * c + a, c), y, torch.where(target > 0, final, target))

    return formula


def circle(m):
    def formula(c, y, norms):
        positive = torch.relu(1 + m - c.detach()) * (c - (1 - m))
        negative = torch.relu(c.detach() + m) * (c - m)
        return torch.where(one_hot(c, y), positive, negative)

    return formula


def arcneg(m, alpha, sigma):
    def formula(c, y, norms):
        logits = arcface(m)(c, y, norms)
        r = alpha * torch.exp(-((c - own(logits, y)) ** 2) / sigma).detach()
        return torch.where(one_hot(c, y), logits, r * c + r - 1)

    return formula


def filtered(threshold, formula):
    def both(c, y, norms):
        dirty = (c > threshold) & ~one_hot(c, y)
        return formula(torch.where(dirty, 0 * c.detach(), c), y, norms)

    return both


def softmax_loss(x, weight, target, formula, scale):
    """Mean cross-entropy over the rows that count."""
    x, y = x[target != -100], target[target != -100]
    c = F.linear(F.normalize(x), F.normalize(weight))
    return F.cross_entropy(scale * formula(c, y, x.norm(dim=1)), y)


def sface(x, weight, y, s, k, a, b):
    c = F.linear(F.normalize(x), F.normalize(weight))
    theta, hot = torch.acos(c).detach(), one_hot(c, y)
    pull = -s / (1 + torch.exp(-k * (theta - a))) * c
    push = s / (1 + torch.exp(k * (theta - b))) * c
    return torch.where(hot, pull, push).sum(1)


def sphereface2(x, weight, y, bias, alpha, r, m, t, lw, straight):
    c = F.linear(F.normalize(x), F.normalize(weight))
    hot = one_hot(c, y).to(c)
    g = 2 * ((c + 1) / 2) ** t - 1 - m * (2 * hot - 1)
    if straight:
        g = c + (g - c).detach()
    weights = lw * c.shape[1] / r * (alpha * hot + (1 - alpha) * (1 - hot))
    return F.binary_cross_entropy_with_logits(r * g + bias, hot, weight=weights, reduction="none").mean(1)


def uniface(x, weight, y, bias, m, s, l):  # noqa: E741
    c = F.linear(F.normalize(x), F.normalize(weight))
    hot = one_hot(c, y)
    p = torch.log(1 + torch.exp(-torch.clip(s * (c - m) - bias, -s, s)))
    n = torch.log(1 + torch.exp(torch.clip(s * c - bias, -s, s)))
    return torch.where(hot, p, l * n).sum(1)
