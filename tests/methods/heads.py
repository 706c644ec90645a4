"""The class heads of docs/methods.md as their papers write them, over the full N x C matrix."""

import math

import torch
import torch.nn.functional as F

from tests.support import head_formulas
from tests.support.head_formulas import own, put

from .rows import Draw, Method

N, C, D = 24, 17, 8


def head(draw: Draw, n: int = N, c: int = C, d: int = D, centers: int = 1) -> dict:
    """Embeddings, centres and classes. Hard: samples all the way from their own centre to its opposite."""
    weight, target = draw.rows(c * centers, d), draw.labels(n, c)
    x = draw.rows(n, d)
    if draw.hard:
        side = torch.where(draw.uniform(n, 1) < 0.4, -1.0, 1.0)
        near = side * F.normalize(weight[target * centers]) + 10 ** draw.uniform(n, 1, low=-2, high=0) * F.normalize(x)
        x = draw.leaf(F.normalize(near) * x.norm(dim=1, keepdim=True))
    return {"x": x, "weight": weight, "target": target}


def faces(draw: Draw) -> dict:
    """With norms as trained recognisers have them."""
    inputs = head(draw)
    x = draw.leaf(F.normalize(inputs["x"]) * draw.uniform(N, 1, low=5, high=130))
    return inputs | {"x": x, "bias": draw.leaf(draw.normal())}


def cosines(x, weight):
    return F.normalize(x) @ F.normalize(weight).T


def cross_entropy(psi, target, scale):
    """Mean of -log softmax(scale * psi) at the target."""
    return F.cross_entropy(scale * psi, target)


def sface(x, weight, target, *, scale=64.0, k=80.0, a=0.80, b=1.23, weights_are_constants=True):
    c = cosines(x, weight)
    theta = torch.acos(c)
    pull, push = torch.sigmoid(k * (theta - a)), torch.sigmoid(-k * (theta - b))
    if weights_are_constants:
        pull, push = pull.detach(), push.detach()
    return (put(push, target, -pull) * scale * c).sum(1).mean()


def with_generator(draw: Draw) -> dict:
    return head(draw) | {"generator": torch.Generator().manual_seed(int(draw.integers(0, 1000, 1)))}


def elastic(kind: str, mean: float, deviation: float, assignment: str):
    def truth(x, weight, target, generator, *, m=mean, std=deviation, scale=64.0, kind=kind, plus=assignment):
        c = cosines(x, weight)
        margins = torch.empty(len(x), dtype=x.dtype).normal_(m, std, generator=generator)
        falling = own(c, target)[:, 0].argsort(descending=True)
        if plus == "rank":  # the smallest margin for the largest cosine
            margins = torch.zeros_like(margins).index_copy(0, falling, margins.sort().values)
        if plus == "permutation":
            margins = margins.sort().values[falling]
        margins = margins[:, None]
        return cross_entropy(
            put(c, target, torch.cos(torch.acos(c) + margins) if kind == "arc" else c - margins), target, scale
        )

    return truth


def a_softmax(x, weight, target, iteration, *, m=4, base=1000.0, gamma=0.12, power=1.0, lambda_min=5.0, first=1):
    c = cosines(x, weight)
    annealing = max(lambda_min, base * (1 + gamma * (iteration + first)) ** -power)
    phi = head_formulas.sphereface_psi(torch.acos(c), m)
    psi = put(c, target, (annealing * c + phi) / (1 + annealing))
    return F.cross_entropy(x.norm(dim=1, keepdim=True) * psi, target)


def revived(x, weight, target, *, m=1.7, scale=30.0, gradient="straight_through"):
    formula = head_formulas.sphereface(m)
    formula = head_formulas.detached(formula) if gradient == "straight_through" else formula
    return cross_entropy(formula(cosines(x, weight), target, None), target, scale)


def survey_negatives(
    x, weight, target, *,
    norm_scale=30.0, curricular_scale=64.0, curricular_m=0.5, momentum=0.01, mv_scale=32.0, mv_m=0.35, mv_weight=1.12,
    npc_scale=64.0, npc_m=0.5, npc_m0=0.4, npc_m1=0.2, npc_t=1.1, npc_a=0.2, arcneg_scale=64.0, arcneg_m=0.5,
    arcneg_alpha=1.2, arcneg_sigma=2.0, circle_scale=256.0, circle_m=0.25,
):  # fmt: skip
    c = cosines(x, weight)
    moved = momentum * own(c, target).mean().detach()
    heads = (
        (norm_scale, lambda c, y, _: c),
        (curricular_scale, head_formulas.curricular(curricular_m, moved)),
        (mv_scale, head_formulas.mv_softmax(mv_m, mv_weight, "am")),
        (npc_scale, head_formulas.npcface(npc_m, npc_m0, npc_m1, npc_t, npc_a)),
        (arcneg_scale, head_formulas.arcneg(arcneg_m, arcneg_alpha, arcneg_sigma)),
        (circle_scale, head_formulas.circle(circle_m)),
    )
    return tuple(cross_entropy(formula(c, target, None), target, scale) for scale, formula in heads)


def survey_norms(
    x, weight, target, *,
    scale=64.0, m=0.4, h=0.333, t_alpha=0.01, mean=20.0, std=100.0, clip=1e-3,
    l_a=10.0, u_a=110.0, l_m=0.45, u_m=0.8, lambda_g=35.0, easy_margin=True,
):  # fmt: skip
    c, norms = cosines(x, weight), x.norm(dim=1)
    known = norms.detach().clamp(0.001, 100)
    mean, std = t_alpha * known.mean() + (1 - t_alpha) * mean, t_alpha * known.std() + (1 - t_alpha) * std
    ada = cross_entropy(head_formulas.adaface(m, h, mean, std, clip)(c, target, norms), target, scale)
    mag = cross_entropy(head_formulas.magface(l_a, u_a, l_m, u_m, easy_margin)(c, target, norms), target, scale)
    a = norms.clamp(l_a, u_a)
    return ada, mag + lambda_g * (a / u_a**2 + 1 / a).mean()


def survey_sums(
    x, weight, target, bias, *,
    alpha=0.7, r=40.0, m=0.4, t=3, loss_weight=50.0, straight=True, uni_m=0.4, uni_scale=64.0, uni_l=1.0,
):  # fmt: skip
    sphereface2 = head_formulas.sphereface2(x, weight, target, bias, alpha, r, m, t, loss_weight, straight)
    return sphereface2.mean(), head_formulas.uniface(x, weight, target, bias, uni_m, uni_scale, uni_l).mean()


def identities(draw: Draw) -> dict:
    """Of every identity four rows, as batches for batch-hard triplets are drawn."""
    inputs = head(draw)
    return inputs | {"target": torch.arange(C)[draw.uniform(C).argsort()][: N // 4].repeat(4)}


def joint(x, weight, target, *, scale=30.0, margin=0.3, soft=False, squared=False):
    distance = torch.linalg.vector_norm(x[:, None] - x, dim=2)
    distance = distance**2 if squared else distance
    same = target[:, None] == target
    furthest = torch.where(same & ~torch.eye(len(x), dtype=torch.bool), distance, -torch.inf).amax(1)
    violation = furthest - torch.where(same, torch.inf, distance).amin(1) + margin
    triplet = F.softplus(violation) if soft else violation.relu()
    return cross_entropy(cosines(x, weight), target, scale) + triplet.mean()


def cosface(x, weight, target, *, m=0.35, scale=64.0):
    c = cosines(x, weight)
    return cross_entropy(put(c, target, c - m), target, scale)


def linear(draw: Draw) -> dict:
    x, weight = draw.rows(N, D), draw.rows(C, D)
    if draw.hard:  # products of a size that a softmax can still tell apart
        x, weight = draw.leaf(x / x.norm(dim=1).max() * 30), draw.leaf(F.normalize(weight))
    return {"x": x, "weight": weight, "target": draw.labels(N, C), "bias": draw.leaf(draw.normal(C))}


def smoothed(x, weight, target, bias, *, smoothing=0.1, over_others=True, divergence=True):
    classes = len(weight)
    spread = smoothing / (classes - 1) if over_others else smoothing / classes
    wanted = torch.full((len(x), classes), spread, dtype=x.dtype)
    wanted[torch.arange(len(x)), target] = 1 - smoothing if over_others else 1 - smoothing + spread
    log_p = (x @ weight.T + bias).log_softmax(1)
    entropy = (wanted * wanted.log()).sum(1) if divergence else 0
    return (entropy - (wanted * log_p).sum(1)).mean()


def spce(x, target, classes, *, tightness=1.0, absent_classes_count=True):
    n, products = len(x), x @ x.T
    of_class = F.one_hot(target, classes).to(x.dtype)
    pull = tightness * (products * (of_class @ of_class.T)).sum() / n**2
    present = of_class.sum(0) > 0
    if not absent_classes_count:
        of_class = of_class[:, present]
    return (products @ of_class / n).logsumexp(1).mean() - pull


def arcface(past_pi: str, gradient: str):
    def truth(x, weight, target, *, m=0.5, scale=64.0, past_pi=past_pi, gradient=gradient):
        formula = head_formulas.arcface(m, past_pi)
        formula = head_formulas.detached(formula) if gradient == "straight_through" else formula
        return cross_entropy(formula(cosines(x, weight), target, None), target, scale)

    return truth


def combined(x, weight, target, *, m1=1.0, m2=0.3, m3=0.2, scale=64.0, gradient="exact"):
    formula = head_formulas.combined(m1, m2, m3)
    formula = head_formulas.detached(formula) if gradient == "straight_through" else formula
    return cross_entropy(formula(cosines(x, weight), target, None), target, scale)


def sub_centers(x, weight, target, *, m=0.5, scale=64.0, nearest_counts=True, degrees=75.0):
    c = cosines(x, weight).view(len(x), C, -1)
    psi = head_formulas.arcface(m)(c.amax(2) if nearest_counts else c.mean(2), target, None)
    nearest = c[torch.arange(len(x)), target].argmax(1)
    votes = torch.zeros(c.shape[1:]).index_put((target, nearest), torch.ones(len(x)), accumulate=True)
    theta = torch.acos(c[torch.arange(len(x)), target, votes.argmax(1)[target]])
    return cross_entropy(psi, target, scale), theta <= math.radians(degrees)


def clusterings(draw: Draw) -> dict:
    """Of the other view, with means for centres, as k-means leaves them; some have one point or none. All products are
    above 0."""
    direction = F.normalize(draw.normal(D), dim=0)
    views, found = [], []
    for _ in range(2):
        x = draw.rows(N, D).detach()
        views.append(x + 1.5 * x.norm(dim=1, keepdim=True) * direction)
    for k in (4, 9):
        centers = F.normalize(F.normalize(draw.normal(k, D)) + 1.5 * direction) * draw.uniform(k, 1, low=0.8)
        found.append(((F.normalize(views[1]) @ centers.T).argmax(1), centers))
    return {"x": draw.leaf(views[0]), "other": views[1], "clusterings": found}


def prototypes(
    x,
    other,
    clusterings,
    *,
    temperature=0.5,
    offset=5.0,
    low=0.1,
    high=0.9,
    log_of_the_share=True,
    cosines_for_density=False,
):
    losses = []
    for labels, centers in clusterings:
        cos = cosines(x, centers)
        products = cosines(other, centers) if cosines_for_density else F.normalize(other) @ centers.T
        density = torch.zeros(len(centers), dtype=x.dtype)
        for k in range(len(centers)):
            members = products[labels == k, k]
            if len(members) > 1:
                density[k] = members.sqrt().mean() / math.log(len(members) + offset)
        density[[k for k in range(len(centers)) if (labels == k).sum() < 2]] = density.max()
        density = density.clamp(density.quantile(low), density.quantile(high))
        density = temperature * density / density.mean()
        p = torch.exp(cos / density)
        everything = p.mean(1) * len(x) if log_of_the_share else p.sum(1)
        losses.append(-torch.log(own(p, labels)[:, 0] / everything).mean())
    return sum(losses) / len(losses)


STRAIGHT = {"gradient": "exact"}
WHERE = {"past_pi": "easy"}
METHODS = [
    Method("2", "sface", head, sface),
    Method("9", "arc", with_generator, elastic("arc", 0.5, 0.05, ""), altered={"kind": "cos", "plus": "rank"}),
    Method("9", "cos-plus", with_generator, elastic("cos", 0.35, 0.02, "rank"), altered={"kind": "arc", "plus": ""}),
    Method(
        "9",
        "arc-plus-as-coded",
        with_generator,
        elastic("arc", 0.5, 0.0175, "permutation"),
        altered={"kind": "cos", "plus": "rank"},
    ),
    Method("14", "a-softmax", lambda draw: head(draw) | {"iteration": 3000 if draw.hard else 3}, a_softmax),
    Method("14", "revived", head, revived, altered=STRAIGHT),
    Method("17", "negatives", head, survey_negatives, ("norm", "curricular", "mv", "npc", "arcneg", "circle")),
    Method("17", "norms", faces, survey_norms, ("ada", "mag")),
    Method("17", "sums", faces, survey_sums, ("sphereface2", "uniface")),
    Method("19", "joint", identities, joint),
    Method("22", "cosface", head, cosface),
    Method("23", "smoothed", linear, smoothed),
    Method("23", "spce", lambda draw: linear(draw) | {"classes": C}, spce),
    Method("27", "arcface", head, arcface("linear", "exact"), altered=WHERE | {"gradient": "straight_through"}),
    Method("27", "insightface", head, arcface("wrap", "straight_through"), altered=WHERE | STRAIGHT),
    Method("27", "combined", head, combined, altered={"gradient": "straight_through"}),
    Method(
        "27",
        "sub-centers",
        lambda draw: head(draw, centers=3),
        sub_centers,
        ("loss", "clean"),
        altered={"degrees": 60.0},
    ),
    Method("32b", "prototypes", clusterings, prototypes),
]
