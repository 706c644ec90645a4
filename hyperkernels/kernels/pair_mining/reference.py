"""The formulas in plain PyTorch, any dtype, with the N x M matrix in memory: what the kernels are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..._dtypes import accumulate_dtype, widest_dtype
from .philox import philox
from .problem import PairProblem, PairRowStatistics, Transform, nothing_asked
from .similarities import similarities


def listed_similarities(
    x: torch.Tensor, ref: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor, similarity: str
) -> torch.Tensor:
    """The similarity of rows[k] of x and columns[k] of ref, [K]."""
    a, b = x[rows], (x if ref is None else ref)[columns]
    a, b = (v.to(accumulate_dtype(v.dtype)) for v in (a, b))
    if similarity == "dot":
        return (a * b).sum(1)
    squared = (a - b).square().sum(1)
    if similarity == "squared_euclidean":
        return -squared
    apart = squared != 0
    return -torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def selected(problem: PairProblem, u: torch.Tensor) -> torch.Tensor:
    """Which pairs count, bool [N, M]."""
    p = problem
    keep = torch.ones_like(u, dtype=torch.bool)
    if p.label.numel():
        a, b = p.label[:, None], p.ref_label[None, :]
        if p.label.dtype == torch.int64:
            positive = (a & b) != 0
        else:
            positive = a == b
            keep &= (a >= 0) & (b >= 0)
        if p.select != "all":
            keep &= positive if p.select == "positive" else ~positive
    if p.id.numel():
        keep &= ~((p.id[:, None] == p.ref_id[None, :]) & (p.id[:, None] >= 0))
    if p.lower is not None:
        keep &= ~(u <= p.lower[:, None])
    if p.upper is not None:
        keep &= ~(u >= p.upper[:, None])
    return keep


def of_problem(problem: PairProblem) -> tuple[torch.Tensor, torch.Tensor]:
    """(similarities, which pairs count)."""
    u = similarities(problem.x, problem.x if problem.ref is None else problem.ref, problem.similarity)
    return u, selected(problem, u.detach())


def statistics(
    problem: PairProblem,
    scale: torch.Tensor | None,  # [N], of the accumulator's dtype, as offset
    offset: torch.Tensor | None,
    moments: bool,
    extremes: bool,
    transform: Transform,
) -> PairRowStatistics:
    u, keep = of_problem(problem)
    count = keep.sum(1)
    found = {"count": count}
    if moments:
        kept = torch.where(keep, u, 0)
        found |= {"sum": kept.sum(1), "sum_squares": kept.square().sum(1)}
    if extremes:
        found["min"], found["argmin"] = _extreme(u.detach(), keep, count, largest=False)
        found["max"], found["argmax"] = _extreme(u.detach(), keep, count, largest=True)
    if transform.name == "softplus":
        assert scale is not None
        z = scale[:, None] * u + (0 if offset is None else offset[:, None])
        sigma = torch.where(keep, torch.sigmoid(z), 0).detach()
        found |= {
            "lse": torch.where(keep, F.softplus(torch.where(keep, z, 0), threshold=60), 0).sum(1),
            "d_scale": torch.where(keep, sigma * u, 0).sum(1).detach(),
            "d_offset": sigma.sum(1),
        }
    elif transform.name != "none":
        assert scale is not None
        power = transform.power(u, scale)
        lse = _logsumexp(power, keep)
        share = torch.where(keep, torch.exp(torch.where(keep, power - torch.where(count > 0, lse, 0)[:, None], 0)), 0)
        if transform.name == "linear":
            d_scale = torch.where(keep, share * u, 0).sum(1)
        else:
            d_scale = torch.where(keep, share * power / scale[:, None], 0).sum(1).detach()
        found |= {"lse": lse, "d_scale": d_scale}
    return nothing_asked(u)._replace(**found)


def _extreme(
    u: torch.Tensor, keep: torch.Tensor, count: torch.Tensor, largest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest (smallest) value and its lowest index; NaN wins."""
    worst = -torch.inf if largest else torch.inf
    if u.shape[1] == 0:
        return u.new_full((len(u),), worst), count.new_full((len(u),), -1)
    masked = torch.where(keep, u, worst)
    best = masked.amax(1) if largest else masked.amin(1)
    hit = keep & ((masked == best[:, None]) | masked.isnan())
    index = torch.where(count > 0, hit.to(torch.uint8).argmax(1), -1)
    return torch.where(count > 0, best, worst), index


def _logsumexp(power: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    if power.shape[1] == 0:
        return power.new_full((len(power),), -torch.inf) + power.sum(1)
    masked = torch.where(keep, power, -torch.inf)
    some = keep.any(1)
    # Rows without a pair are kept out of the logarithm, whose gradient there would be NaN.
    lse = torch.logsumexp(torch.where(some[:, None], masked, 0), 1)
    return torch.where(some, lse, -torch.inf)


def top_k(problem: PairProblem, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest similarities of each row in falling order, [N, k], and their indices, the lowest first on ties;
    -inf and -1 where fewer pairs count."""
    u, keep = of_problem(problem)
    # Pairs that count go before those that do not: their similarity may be -inf.
    front = torch.sort((~keep).to(torch.uint8), dim=1, stable=True).indices
    order = torch.sort(torch.where(keep, u, -torch.inf).gather(1, front), dim=1, descending=True, stable=True)
    found = front.gather(1, order.indices)
    indices = torch.where(keep.gather(1, found), found, -1)[:, :k]
    values = torch.where(indices >= 0, order.values[:, :k], -torch.inf)
    pad = k - indices.shape[1]
    if pad > 0:
        values, indices = F.pad(values, (0, pad), value=-torch.inf), F.pad(indices, (0, pad), value=-1)
    return values, indices


def count(problem: PairProblem) -> torch.Tensor:
    """How many pairs of each row count, [N] int64."""
    return of_problem(problem)[1].sum(1)


def listed(problem: PairProblem, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (rising within a row) and similarities of the pairs that count; those of row i are at
    offsets[i] .. offsets[i+1]."""
    u, keep = of_problem(problem)
    rows, columns = keep.nonzero(as_tuple=True)
    return columns, u[rows, columns]


def binned(
    problem: PairProblem, edges: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, sum, largest similarity and its lowest index in every bin of every row, [E + N] each.

    Row i has the rising edges edges[offsets[i]:offsets[i+1]] and one bin more than edges, at offsets[i] + i and
    following; a similarity u falls into the bin whose number is that of edges < u, NaN into any.
    """
    u, keep = of_problem(problem)
    counts, sums, highs, indices = [], [], [], []
    for i in range(len(u)):
        own = edges[offsets[i] : offsets[i + 1]]
        bin_of = torch.searchsorted(own, u[i].detach().contiguous(), right=False)
        for b in range(len(own) + 1):
            here = keep[i] & (bin_of == b)
            counts.append(here.sum())
            sums.append(torch.where(here, u[i], 0).sum())
            high, index = _extreme(u[i : i + 1].detach(), here[None], here.sum()[None], largest=True)
            highs.append(high[0])
            indices.append(index[0])
    if not counts:
        none = edges.new_empty(0)
        return offsets.new_empty(0), none + 0 * u.sum(), none, offsets.new_empty(0)
    return torch.stack(counts), torch.stack(sums), torch.stack(highs), torch.stack(indices)


def _log_exponential(bits: torch.Tensor) -> torch.Tensor:
    """log(-log1p(-v)), v = (bits + 0.5) / 2^32."""
    wide = widest_dtype(bits.device)
    if wide == torch.float64:
        return (-torch.log1p(-(bits.to(wide) + 0.5) * 2.0**-32)).log()
    # float32 rounds the largest v to 1: the logarithm is taken of the smaller of v and 1 - v.
    upper = bits >= 2**31
    near = (torch.where(upper, 0xFFFFFFFF - bits, bits).to(wide) + 0.5) * 2.0**-32
    return torch.where(upper, -near.log(), -torch.log1p(-near)).log()


def log_weights(u: torch.Tensor, weights: str, p0: float, p1: float, temperature: float) -> torch.Tensor:
    """The logarithm of what a pair of similarity u weighs in the draw, divided by the temperature.

    "exponential": p0 * u (p0 = 0: all alike). "distance": the inverse density of the distance d of two random points of
    the unit sphere in p0 dimensions, (2 - p0) log d - (p0 - 3) / 2 log(1 - d^2 / 4), d at least p1; u is minus d.
    """
    if weights == "exponential":
        return p0 * u / temperature
    d = (-u).clamp_min(p1)
    inside = (1 - d.square() / 4).clamp_min(torch.finfo(u.dtype).tiny)
    return ((2 - p0) * d.log() - (p0 - 3) / 2 * inside.log()) / temperature


def sample(
    problem: PairProblem, draws: int, seed: int, weights: str, p0: float, p1: float, temperature: float
) -> torch.Tensor:
    """`draws` columns of each row, with replacement, in proportion to the weights; [N, draws] int64, -1 where no pair
    counts. The pair with the largest log weight - log E is drawn, E exponential of (seed, i, j, draw)."""
    u, keep = of_problem(problem)
    n, m = u.shape
    log_weight = log_weights(u, weights, p0, p1, temperature)
    i = torch.arange(n, device=u.device)[:, None].expand(n, m)
    j = torch.arange(m, device=u.device).expand(n, m)
    drawn = []
    numbers: list[torch.Tensor] = []
    for draw in range(draws):
        if draw % 4 == 0:
            numbers = philox([j, i, torch.full_like(j, draw // 4), torch.zeros_like(j)], seed)
        key = log_weight - _log_exponential(numbers[draw % 4]).to(u.dtype)
        drawn.append(_extreme(key, keep, keep.sum(1), largest=True)[1])
    return torch.stack(drawn, 1) if drawn else i.new_empty(n, 0)
