"""The class heads of docs/methods.md as their papers write them, over the full N x C matrix."""

import torch
import torch.nn.functional as F
from method_rows import Draw, Method

N, C, D = 24, 17, 8


def head(draw: Draw, n: int = N, c: int = C, d: int = D) -> dict:
    """Embeddings, centres and classes. Hard: samples near their own centre, near its opposite, and between."""
    weight, target = draw.rows(c, d), draw.labels(n, c)
    x = draw.rows(n, d)
    if draw.hard:
        side = torch.where(draw.uniform(n, 1) < 0.3, -1.0, 1.0)
        near = side * F.normalize(weight[target]) + 0.1 * draw.normal(n, d)
        x = draw.leaf(near * x.norm(dim=1, keepdim=True))
    return {"x": x, "weight": weight, "target": target}


def cosines(x, weight):
    return F.normalize(x) @ F.normalize(weight).T


def one_hot(c, target):
    return F.one_hot(target, c.shape[1]).bool()


def sface(x, weight, target, *, scale=64.0, k=80.0, a=0.80, b=1.23, weights_are_constants=True):
    c = cosines(x, weight)
    theta = torch.acos(c)
    pull, push = torch.sigmoid(k * (theta - a)), torch.sigmoid(-k * (theta - b))
    if weights_are_constants:
        pull, push = pull.detach(), push.detach()
    own = one_hot(c, target)
    return (torch.where(own, -pull, push) * scale * c).sum(1).mean()


METHODS = [
    Method("2", "sface", head, sface),
]
