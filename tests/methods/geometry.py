"""The geometry of docs/methods.md as its papers write it, point by point."""

import torch
import torch.nn.functional as F

from .rows import Draw, Method

N, D = 24, 8


def _points(draw: Draw, x: torch.Tensor) -> torch.Tensor:
    """Others for the rows of x. Hard: a third very near, a third nearly opposite, of any length."""
    y = draw.rows(len(x), x.shape[1])
    if not draw.hard:
        return y
    kind = torch.arange(len(x))[:, None] % 3
    near = torch.where(kind == 0, 1.0, -1.0) * F.normalize(x) + 1e-3 * F.normalize(y)
    return draw.leaf(torch.where(kind == 2, y, F.normalize(near) * y.norm(dim=1, keepdim=True)))


def _angle(x, y):
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return 2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))


def _slerp(x, y, t):
    theta, t = _angle(x, y)[..., None], torch.as_tensor(t, dtype=x.dtype)[..., None]
    way = torch.sin((1 - t) * theta) * F.normalize(x, dim=-1) + torch.sin(t * theta) * F.normalize(y, dim=-1)
    return way / torch.sin(theta)


def _cosines(x, y):
    return F.normalize(x) @ F.normalize(y).T


def _log_mean_exp_over_pairs(values):
    i, j = torch.triu_indices(len(values), len(values), 1)
    return values[i, j].exp().mean().log()


def svdd(x, first, *, nu=0.03, smallest=0.1, radius=0.0):
    center = first.mean(0)
    center = torch.where(center.abs() < smallest, center.sign() * smallest, center)
    d = (x - center).square().sum(1)
    score = d - d.sqrt().quantile(1 - nu).detach() ** 2
    return radius**2 + (d - radius**2).clamp_min(0).mean() / nu, score


def shell(x, center, *, nu=0.05, outside=True, inside=True):
    d = (x - center).square().sum(1)
    low, high = (d.sqrt().quantile(q).detach() for q in (nu, 1 - nu))
    over = torch.maximum(d, high**2) - high**2 if outside else 0
    under = torch.minimum(d, low**2) - low**2 if inside else 0
    return (over - under).mean(), (d.sqrt() - low) * (d.sqrt() - high)


def states(draw: Draw) -> dict:
    h = draw.rows(N, D)
    return {"h": h, "block": _points(draw, h), "alpha_param": draw.leaf(draw.normal(D) / D**0.5)}


def residual(h, block, alpha_param, *, alpha=0.05, magnitude=True):
    alpha = alpha_param * (alpha / (1 / D**0.5))
    alpha = alpha.abs() if magnitude else alpha
    a, b = F.normalize(h), F.normalize(block)
    return F.normalize(a + alpha * (b - a))


def heads(draw: Draw) -> dict:
    q, k, v = (draw.leaf(draw.rows(2 * 5 * 2, 4).detach().view(2, 5, 2, 4)) for _ in range(3))
    return {"q": q, "k": k, "v": v, "s_qk": draw.leaf(draw.normal(8) / 8**0.5)}


def attention(q, k, v, s_qk, *, value=1.0, scale=2.0, causal=True):
    s = (s_qk * (value * 8**0.5)).view(2, 4)
    q, k = s * F.normalize(q, dim=-1), s * F.normalize(k, dim=-1)
    logits = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    if causal:
        logits = logits.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    return torch.einsum("bhij,bjhd->bhid", logits.softmax(3), v)


def tokens(draw: Draw) -> dict:
    target = draw.labels(N, 17)
    target[3] = -1
    h, weight = draw.rows(N, D, norms=False), draw.rows(17, D, norms=False)
    return {"h": h, "weight": weight, "target": target, "s_z": draw.leaf(3 * draw.normal(17))}


def token_logits(h, weight, target, s_z, *, value=1.0, projected_gradient=False, ignore_index=-1):
    weight = F.normalize(weight) if projected_gradient else weight
    counted = target != ignore_index
    return F.cross_entropy((value * D**0.5 * s_z * (h @ weight.T))[counted], target[counted] % len(weight))


def matrices(draw: Draw) -> dict:
    """Parameters with a gradient already."""
    parameters = [draw.rows(9, D).detach(), draw.rows(9, D).detach()]
    for parameter in parameters:
        parameter.grad = draw.normal(9, D)
    return dict(zip(("embedding", "projection"), parameters, strict=True))


def renormalized(embedding, projection, *, lr=0.01, rows=1, columns=0):
    found = []
    for parameter, dim in ((embedding, rows), (projection, columns)):
        step = parameter.grad / (parameter.grad.abs() + 1e-8)  # Adam's first
        found.append(F.normalize(F.normalize(parameter, dim=dim) - lr * step, dim=dim))
    return tuple(found)


def gallery(draw: Draw) -> dict:
    return {"x": draw.rows(N, D), "gallery": draw.rows(11, D).detach()}


def packing(x, gallery, *, alpha=0.5, nearest_of_the_gallery=True):
    distance = 1 - _cosines(x, x) + torch.diag(torch.full((len(x),), torch.inf, dtype=x.dtype))
    to_gallery = 1 - _cosines(x, gallery)
    return -distance.min() + alpha * (to_gallery.amin(1) if nearest_of_the_gallery else to_gallery.mean(1)).mean()


def packing_step(x, gallery, *, lr=0.01, alpha=0.5):
    points = F.normalize(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(packing(points, gallery, alpha=alpha), points)
    return F.normalize(points.detach() - lr * gradient / (gradient.abs() + 1e-8))


def soft_packing(x, *, temperature=0.1):
    return temperature * _log_mean_exp_over_pairs(_cosines(x, x) / temperature)


def features(draw: Draw) -> dict:
    return {"x": draw.rows(N, D), "ref": draw.rows(13, D)}


def nearest_residual(x, ref, *, by_cosine=True, subtracted=1.0):
    nearest = _cosines(x, ref).argmax(1) if by_cosine else torch.cdist(x, ref).argmin(1)
    return x - subtracted * ref[nearest]


def mapped(draw: Draw) -> dict:
    """Normal features within, between and beyond the radii; anomalies too where it is hard."""
    length = draw.uniform(N, 1, low=0.2, high=1.8) if draw.hard else draw.uniform(N, 1, low=0.5, high=6)
    anomalous = draw.uniform(N) < 0.4
    length[anomalous] += 0.0 if draw.hard else 1.5
    x = draw.leaf(F.normalize(draw.normal(N, D)) * length)
    return {"x": x, "before": x.detach() + 0.3 * draw.normal(N, D), "anomalous": anomalous}


def contraction(x, before, anomalous, *, root_offset=1.0):
    radius = (x.norm(dim=1) + root_offset).sqrt() - root_offset
    return radius[~anomalous].mean() + F.mse_loss(x[anomalous], before[anomalous])


def log_barrier(
    x, before, anomalous, *, largest=0.4, share=0.9, thickness=0.99, gap=0.1, angles=True, weights_are_constants=True
):
    def barrier(u):
        u = u[u > 0]
        weight = u.detach().exp() if weights_are_constants else u.exp()
        return (F.softplus(u) * weight).mean() if len(u) else 0.0

    radius = (x.norm(dim=1) + 1).sqrt() - 1
    high = min(share * radius[anomalous].min().item(), largest)
    loss = barrier(radius[~anomalous] - high) + barrier(thickness * high - radius[~anomalous])
    there, here = before[anomalous], x[anomalous]
    loss = loss + F.mse_loss(here, there) + barrier(high + gap - radius[anomalous])
    return loss + (1 - F.cosine_similarity(here, there)).mean() if angles else loss


def codes(draw: Draw) -> dict:
    x = draw.rows(N, D)
    return {"x": x, "codebook": draw.leaf(x.detach()[:7] + 0.3 * draw.normal(7, D))}


def quantized(x, codebook, *, beta=0.25, both=True):
    code = codebook[(x[:, None] - codebook).square().sum(2).argmin(1)]
    commitment = F.mse_loss(x, code.detach())
    return commitment + beta * F.mse_loss(code, x.detach()) if both else commitment


def answers(draw: Draw) -> dict:
    question = draw.rows(N, D)
    response = _points(draw, question)
    return {"question": question, "response": response, "context": _points(draw, response)}


def grounding(question, response, context, *, eps=1e-8, of_the_question=True):
    index = _angle(response, question) / (_angle(response, context) + eps)
    return index if of_the_question else 1 / index


def recommended(draw: Draw) -> dict:
    inputs = {name: draw.rows(N, D) for name in ("users", "items", "others", "visual")}
    return inputs | {"textual": _points(draw, inputs["visual"]), "p": draw.uniform(N)}


def cm3(users, items, others, visual, textual, p, *, t=2.0, gamma=0.5, min_sim=0.0, max_sim=0.8, constant_fusion=False):
    fused = _slerp(visual, textual, p)
    fused = fused.detach() if constant_fusion else fused
    distance = (F.normalize(users) - F.normalize(items)).norm(dim=1)
    uniform = _log_mean_exp_over_pairs(-t * (2 - 2 * _cosines(users, users)))
    calibrated = 2 - 2 * _cosines(others, others) - 2 + 2 * _cosines(fused, fused).clamp(min_sim, max_sim)
    return (distance**2).mean() + gamma / 2 * (uniform + _log_mean_exp_over_pairs(-t * calibrated))


def modalities(draw: Draw) -> dict:
    visual = draw.rows(N, D)
    textual = _points(draw, visual)
    return {"visual": visual, "textual": textual, "audio": draw.rows(N, D), "t": draw.leaf(draw.uniform(N))}


def curve(visual, textual, audio, t, *, de_casteljau=True):
    first = _slerp(visual, textual, t)
    return _slerp(first, _slerp(textual, audio, t) if de_casteljau else audio, t)


def paired(draw: Draw) -> dict:
    images = draw.rows(N, D)
    return {"images": images, "texts": _points(draw, images), "mix": float(draw.uniform(1))}


def m2_mix(images, texts, mix, *, temperature=0.07, own_pair_is_unmixed=True):
    mixed, loss = _slerp(texts, images, mix), 0
    diagonal = torch.eye(len(images), dtype=torch.bool)
    for x in (images, texts):
        logits = _cosines(x, mixed)
        if own_pair_is_unmixed:
            logits = torch.where(diagonal, _cosines(images, texts), logits)
        loss = loss + F.cross_entropy(logits / temperature, torch.arange(len(x)))
    return loss


def v_mix(images, texts, mix, *, temperature=0.01, soft_targets=True):
    logits = _cosines(_slerp(images.flip(0), images, mix), texts) / temperature
    own = torch.eye(len(images), dtype=images.dtype)
    wanted = mix * own + (1 - mix) * own.flip(0) if soft_targets else own
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted.T)) / 2


def relative_alignment(images, texts, *, alpha=2, without_own_pair=True):
    distance = (F.normalize(images)[:, None] - F.normalize(texts)).norm(dim=2) ** alpha
    negatives = distance + torch.diag(torch.full((N,), torch.inf)) if without_own_pair else distance
    return distance.diagonal().mean() - negatives.amin(1).mean()


def anchored(draw: Draw) -> dict:
    inputs = {"x": draw.rows(N, D), "labels": draw.labels(N, 6), "classes": 6}
    return inputs | {"generator": torch.Generator().manual_seed(int(draw.integers(0, 1000, 1)))}


def das(
    x, labels, classes, generator, *,
    largest=4, transformations=10, copies=3, low=0.5, high=2.0, shift=0.01, detach=True, alpha=2.0, beta=50.0, base=0.5,
):  # fmt: skip
    frequency = torch.zeros(classes, D)
    banks = [[] for _ in range(classes)]
    for row, label in zip(x.detach(), labels, strict=True):
        frequency[label, row.topk(largest).indices] += 1
    for label in range(classes):
        members = x.detach()[labels == label]
        differences = [a - b for i, a in enumerate(members) for j, b in enumerate(members) if i != j]
        for number, difference in enumerate(differences):  # first in, first out
            banks[label][number % transformations : number % transformations + 1] = [difference]
    factors = torch.rand(copies, N, largest, generator=generator, dtype=x.dtype)
    draws = torch.rand(copies, N, generator=generator, dtype=x.dtype)
    made = []
    for copy in range(copies):
        for i, label in enumerate(labels):
            row = x[i].detach() if detach else x[i]
            salient = frequency[label].argsort(descending=True, stable=True)[:largest]
            factor = torch.ones(D, dtype=x.dtype).index_copy(0, salient, low + (high - low) * factors[copy, i])
            bank = banks[label]
            added = shift * bank[int(draws[copy, i] * len(bank))] if bank else 0
            made.append(F.normalize(row * factor + added, dim=0))
    everything, same = torch.cat([x, torch.stack(made)]), labels.repeat(copies + 1)
    s, same = _cosines(everything, everything), same[:, None] == same
    own = torch.eye(len(s), dtype=torch.bool)
    pull = torch.where(same & ~own, torch.exp(-alpha * (s - base)), 0).sum(1)
    push = torch.where(same, 0, torch.exp(beta * (s - base))).sum(1)
    return torch.stack(made), ((1 + pull).log() / alpha + (1 + push).log() / beta).mean()


METHODS = [
    Method(
        "1", "svdd", lambda draw: {"x": draw.rows(N, D), "first": draw.rows(N, D).detach()}, svdd, ("loss", "score")
    ),
    Method("1", "shell", lambda draw: {"x": draw.rows(N, D), "center": draw.normal(D)}, shell, ("loss", "score")),
    Method("4", "residual", states, residual, ("h",)),
    Method("4", "attention", heads, attention, ("attended",)),
    Method("4", "logits", tokens, token_logits, altered={"ignore_index": 5}),
    Method("4", "weights", matrices, renormalized, ("embedding", "projection"), {"rows": 0, "columns": 1}),
    Method("5", "packing", gallery, packing),
    Method("5", "step", gallery, packing_step, ("points",)),
    Method("5", "soft", gallery, soft_packing),
    Method("6", "residual", features, nearest_residual, ("residual",)),
    Method("6", "contraction", mapped, contraction),
    Method("6", "barrier", mapped, log_barrier),
    Method("6", "codes", codes, quantized),
    Method("8", "index", answers, grounding, ("index",)),
    Method("10", "loss", recommended, cm3, altered={"min_sim": -0.1}),
    Method("10", "curve", modalities, curve, ("fused",)),
    Method("11", "m2-mix", paired, m2_mix),
    Method("11", "v-mix", paired, v_mix),
    Method("11", "relative-alignment", paired, relative_alignment, ("relative",)),
    Method("28", "das", anchored, das, ("more", "loss")),
]
