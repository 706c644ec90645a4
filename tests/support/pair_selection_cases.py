"""Problems for the ops that return pairs, and what their kernels must give: run in the interpreter and on a GPU.

On small numbers of halves every similarity is exact, and so are ties and bounds: there the kernels must equal the
reference bit by bit (distances but for the last, since PyTorch's square root is not rounded correctly everywhere). On
random numbers bounds and edges stand halfway between two similarities, so that no rounding crosses them.
"""

import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import reference
from hyperkernels.kernels.pair_mining.reference import PairProblem

TILE = (256, 512)  # the tiles of the CPU's kernels; the Triton kernels have their own
SELECTS = ("positive", "negative", "all")
SIMILARITIES = ("dot", "euclidean", "squared_euclidean")
BESIDE = 0.003  # from one distance of exact data, and far from the next
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}


def op(name):
    return getattr(torch.ops.hyperkernels, f"{name}_triton")


def labels_of(kind, n, classes):
    """[n] int32 codes, some of them ignored, or int64 sets of bits; sorted ones let whole tiles be left out."""
    if kind == "none":
        return torch.empty(0, dtype=torch.int32)
    if kind == "bits":
        shifts = torch.randint(0, 64, (n, 2))
        return (torch.ones_like(shifts) << shifts).sum(1) * (torch.rand(n) < 0.9)
    label = torch.randint(0, classes, (n,), dtype=torch.int32)
    if kind == "sorted":
        return label.sort().values
    special = torch.tensor([-1, -7, 2**31 - 1], dtype=torch.int32)
    return torch.where(torch.rand(n) < 0.15, special[torch.randint(0, 3, (n,))], label)


def make(n, m, d, dtype=torch.float32, select="all", similarity="dot", labels="codes", ids=True, window=False,
         exact=False, own=False, classes=4, device="cpu"):  # fmt: skip
    """A problem; ref is x itself where `own`, and then m is n."""
    m = n if own else m
    draw = (lambda *s: torch.randint(-2, 3, s) / 2) if exact else (lambda *s: torch.randn(s) / max(d, 1) ** 0.5)
    x = draw(n, d).to(dtype)
    ref = None if own else draw(m, d).to(dtype)
    label, ref_label = labels_of(labels, n, classes), labels_of(labels, m, classes)
    id = torch.randint(-1, 6, (n if ids else 0,), dtype=torch.int32)
    ref_id = torch.randint(-1, 6, (m if ids else 0,), dtype=torch.int32)
    if own:
        ref_label, ref_id = label, id
    problem = PairProblem(x, ref, label, ref_label, id, ref_id, None, None, select, similarity)
    if window and n and m:
        u = wide(problem).sort(1).values
        low, high = u[:, m // 5], u[:, m - 1 - m // 5]
        if not exact:
            low, high = (low + u[:, m // 5 + 1]) / 2, (high + u[:, m - 2 - m // 5]) / 2
        elif similarity == "euclidean":
            low, high = low + BESIDE, high + BESIDE
        numbers = accumulate_dtype(dtype)
        problem = problem._replace(lower=low.to(numbers), upper=high.to(numbers))
    return PairProblem(*(v.to(device) if isinstance(v, torch.Tensor) else v for v in problem))


def wide(problem):
    """Similarities in float64."""
    x = problem.x.double()
    return reference.similarities(x, x if problem.ref is None else problem.ref.double(), problem.similarity)


def exactness(problem, exact):
    return "nearly" if exact and problem.similarity == "euclidean" else exact


def same(ours, right, exact, dtype, what):
    if exact:
        rounding = 2 * torch.finfo(ours.dtype).eps if exact == "nearly" else 0
        torch.testing.assert_close(ours, right, rtol=rounding, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")
    else:
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            ours.double(), right.double(), rtol=tolerance, atol=tolerance, equal_nan=True,
            msg=lambda m: f"{what}: {m}",
        )  # fmt: skip


def check_top_k(problem, k, exact):
    exact = exactness(problem, exact)
    values, indices = op("pair_top_k")(*problem, k, *TILE)
    right_values, right_indices = reference.top_k(problem, k)
    assert values.dtype == right_values.dtype and indices.dtype == torch.int64
    same(values, right_values, exact, problem.x.dtype, "values")
    assert torch.equal(indices < 0, right_indices < 0)
    if exact:
        assert torch.equal(indices, right_indices)
        return
    # Two similarities that rounding alone tells apart may change places.
    u, keep = reference.of_problem(problem)
    if u.shape[1] == 0:
        return
    found = indices >= 0
    at = indices.clamp_min(0)
    assert keep.gather(1, at)[found].all()
    same(u.gather(1, at)[found], values[found], False, problem.x.dtype, "values at the indices")
    for row in indices:
        assert len(row[row >= 0].unique()) == (row >= 0).sum()


def check_lists(problem, exact):
    exact = exactness(problem, exact)
    counts = op("pair_count")(*problem, *TILE)
    right = reference.count(problem)
    assert counts.dtype == torch.int64 and torch.equal(counts, right)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    columns, values = op("pair_list")(*problem, offsets, int(offsets[-1]), *TILE)
    right_columns, right_values = reference.listed(problem, offsets)
    assert torch.equal(columns, right_columns)
    assert values.dtype == right_values.dtype
    same(values, right_values, exact, problem.x.dtype, "similarities")


def check_sample(problem, draws, seed, weights, p0, p1, temperature=1.0):
    """The drawn pair has the best key, but for rounding; -1 just where no pair counts."""
    drawn = op("pair_sample")(*problem, draws, seed, weights, p0, p1, temperature, *TILE)
    u, keep = reference.of_problem(problem)
    n, m = u.shape
    assert drawn.shape == (n, draws) and drawn.dtype == torch.int64
    some = keep.any(1)
    assert torch.equal(drawn >= 0, some[:, None].expand(n, draws)) and (drawn < max(m, 1)).all()
    if not some.any() or draws == 0:
        return
    assert keep.gather(1, drawn.clamp_min(0))[some].all()
    log_weight = reference.log_weights(u.double(), weights, p0, p1, temperature)
    i, j = (v.to(u.device).expand(n, m) for v in (torch.arange(n)[:, None], torch.arange(m)))
    tolerance = 1e-9 if u.dtype == torch.float64 else 2e-5
    for draw in range(draws):
        bits = reference.philox([j, i, torch.full_like(j, draw // 4), torch.zeros_like(j)], seed)[draw % 4]
        key = log_weight - (-torch.log1p(-((bits.double() + 0.5) * 2.0**-32))).log()
        best = torch.where(keep, key, -torch.inf).amax(1)[some]
        mine = key.gather(1, drawn[:, draw, None].clamp_min(0))[some, 0]
        assert (mine >= best - tolerance * (1 + best.abs())).all(), (draw, mine - best)
    same_as_reference = drawn == reference.sample(problem, draws, seed, weights, p0, p1, temperature)
    assert same_as_reference.double().mean() > 0.98


def edges_of(problem, most, exact=False):
    """(edges, offsets): up to `most` edges a row, some rows without any; exact data put them onto similarities."""
    u = wide(problem)
    n, m = u.shape
    dtype = accumulate_dtype(problem.x.dtype)
    edges, beside = [], BESIDE if exact == "nearly" else 0
    for i in range(n):
        count = int(torch.randint(0, most + 1, (1,))) if m > 1 else 0
        at = torch.randint(0, max(m - 1, 1), (count,), device=u.device)
        row = u[i].sort().values
        edges.append(((row[at] + row[at + 1]) / 2 + beside if count else row[:0]).sort().values)
    offsets = torch.tensor([0] + [len(e) for e in edges]).cumsum(0).to(u.device)
    return (torch.cat(edges) if edges else u.new_empty(0)).to(dtype), offsets


def check_bins(problem, most, exact, gradients=True):
    exact = exactness(problem, exact)
    edges, offsets = edges_of(problem, most, exact)
    count, total, high, index = op("pair_bins")(*problem, edges, offsets, *TILE)
    right = reference.binned(problem, edges, offsets)
    assert torch.equal(count, right[0])
    same(total, right[1], False, problem.x.dtype, "sum")
    same(high, right[2], exact, problem.x.dtype, "high")
    assert index.dtype == torch.int64 and torch.equal(index < 0, right[3] < 0)
    if exact:
        assert torch.equal(index, right[3])
    if not gradients or not len(problem.x):
        return
    leaves = [t.detach().requires_grad_() for t in (problem.x, problem.ref) if t is not None]
    d_sum = torch.randn_like(total)
    p = problem._replace(x=leaves[0], ref=leaves[1] if len(leaves) > 1 else None)
    mine = torch.autograd.grad(op("pair_bins")(*p, edges, offsets, *TILE)[1], leaves, d_sum)
    theirs = torch.autograd.grad(reference.binned(p, edges, offsets)[1], leaves, d_sum)
    close_gradients(mine, theirs)


def close_gradients(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        tolerance = {torch.float64: 1e-7, torch.float32: 1e-4}.get(a.dtype, 0.01)
        scale = b.double().abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-3))


def check_values(n, m, d, pairs, dtype, similarity, own, device="cpu"):
    x = torch.randn(n, d, device=device).to(dtype).requires_grad_()
    ref = None if own else torch.randn(m, d, device=device).to(dtype).requires_grad_()
    rows = torch.randint(0, n, (pairs,), device=device)
    columns = torch.randint(0, n if own else m, (pairs,), device=device)
    values = op("pair_values")(x, ref, rows, columns, similarity)
    right = reference.listed_similarities(x, ref, rows, columns, similarity)
    assert values.dtype == right.dtype
    same(values.detach(), right.detach(), False, dtype, "values")
    leaves = [t for t in (x, ref) if t is not None]
    incoming = torch.randn_like(right)
    close_gradients(torch.autograd.grad(values, leaves, incoming), torch.autograd.grad(right, leaves, incoming))
