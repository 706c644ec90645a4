"""Problems for the tests of the kernels that return pairs, and what those tests share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import reference, selections
from hyperkernels.kernels.pair_mining.op import Tile
from hyperkernels.kernels.pair_mining.reference import PairProblem

SIMILARITIES = ("dot", "euclidean", "squared_euclidean")
SELECTS = ("positive", "negative", "all")
TILES = st.sampled_from([Tile(1, 1), Tile(3, 5), Tile(7, 64), Tile(256, 512)])
CASES = st.fixed_dictionaries(
    {
        "n": st.sampled_from([0, 1, 2, 7, 31, 70]),
        "m": st.sampled_from([0, 1, 3, 13, 67, 300]),
        "d": st.sampled_from([0, 1, 3, 17]),
        "labels": st.sampled_from(["none", "codes", "bits"]),
        "select": st.sampled_from(SELECTS),
        "similarity": st.sampled_from(SIMILARITIES),
        "self_pairs": st.booleans(),
        "ids": st.booleans(),
        "window": st.booleans(),
        "whole": st.booleans(),
        "classes": st.sampled_from([1, 3, 40]),
    }
)
SEEDS = st.integers(0, 2**31)


def make(
    n=12, m=9, d=5, labels="codes", select="negative", similarity="dot", self_pairs=False, ids=False, window=False,
    whole=False, dtype=torch.float64, classes=3,
):  # fmt: skip
    """`whole`: whole numbers, whose similarities are exact and often equal. `self_pairs`: ref is None."""

    def values(rows):
        return (torch.randint(-2, 3, (rows, d)) if whole else torch.randn(rows, d)).to(dtype)

    def labels_of(rows):
        if labels == "none":
            return torch.empty(0, dtype=torch.int32)
        if labels == "codes":
            return torch.randint(-1, classes, (rows,), dtype=torch.int32)
        return torch.randint(0, 2, (rows, 64)).mul(torch.randint(0, 2, (rows, 64))).mul(2 ** torch.arange(64)).sum(1)

    if labels == "none":
        select = "all"
    x, label = values(n), labels_of(n)
    id = torch.arange(-1, n - 1, dtype=torch.int32) if ids else torch.empty(0, dtype=torch.int32)
    ref, ref_label, ref_id = None, label, id
    if not self_pairs:
        ref, ref_label = values(m), labels_of(m)
        ref_id = torch.randint(-1, max(n, 1), (m,), dtype=torch.int32) if ids else id
    lower = upper = None
    if window:
        center = 0.0 if similarity == "dot" else -(d**0.5) if similarity == "euclidean" else -2.0 * d
        number = accumulate_dtype(dtype)
        lower, upper = center - torch.rand(n).to(number) * d, center + torch.rand(n).to(number) * d
        if whole:
            lower, upper = lower.round(), upper.round()
        if n > 1:
            lower[0], upper[1] = -torch.inf, torch.inf
    return PairProblem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity)


def to(problem, dtype):
    """The same problem with numbers of another dtype."""
    number = accumulate_dtype(dtype)
    return problem._replace(
        x=problem.x.to(dtype),
        ref=None if problem.ref is None else problem.ref.to(dtype),
        lower=None if problem.lower is None else problem.lower.to(number),
        upper=None if problem.upper is None else problem.upper.to(number),
    )


def make_edges(problem, most=6, whole=False):
    """Ragged rising edges: (edges, offsets)."""
    number = accumulate_dtype(problem.x.dtype)
    counts = torch.randint(0, most + 1, (len(problem.x),))
    center = 0.0 if problem.similarity == "dot" else -3.0
    rows = [(center + 3 * torch.randn(int(count))).to(number).sort().values for count in counts]
    edges = torch.cat([*rows, torch.empty(0, dtype=number)])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return edges.round() if whole else edges, offsets


def tolerance(options, truth):
    """Distances near zero carry the square root of a rounding error, but for whole numbers."""
    if options["whole"]:
        return {"rtol": 1e-12, "atol": 1e-12}
    return {"rtol": 1e-9, "atol": 1e-6 if options["similarity"] == "euclidean" else 1e-9}


def assert_equal(ours, truth, options=None):
    for mine, right in zip(ours, truth, strict=True):
        assert mine.dtype == right.dtype and mine.shape == right.shape
        if mine.is_floating_point() and options is not None:
            torch.testing.assert_close(mine, right, equal_nan=True, **tolerance(options, right))
        else:
            torch.testing.assert_close(mine, right, equal_nan=True, rtol=0, atol=0)


def everything(problem, tile, k=3):
    """What every op says of a problem, with edges that depend on the problem alone."""
    torch.manual_seed(1)
    edges = make_edges(problem, whole=True)
    weights = "exponential" if problem.similarity == "dot" else "distance"
    return [
        *selections.top_k(problem, k, tile),
        *selections.listed(problem, tile),
        selections.sample(problem, 5, 7, weights, 3.0, 0.5, 2.0, tile),
        *selections.binned(problem, *edges, tile),
    ]


def check_rows_that_are_not_finite(problem, edges, poison, backward, tile=(8, 16)):
    """Float64 gradients of bins of negative pairs. Of x and of ref a row that no pair counts with holds `poison`: they
    are those of a finite row. Then a row of label 0 has a NaN: it reaches the rows of other labels and no more."""
    ends = [problem.x] if problem.ref is None else [problem.x, problem.ref]
    labels = [problem.label, problem.ref_label][: len(ends)]
    for label in labels:
        label[3], label[5], label[6] = -1, 0, 1
    d_sum = torch.randn(len(edges[0]) + len(problem.x), dtype=torch.float64)
    leaves = [end.clone().requires_grad_() for end in ends]
    clean = problem._replace(**dict(zip(("x", "ref"), leaves, strict=False)))
    right = torch.autograd.grad(reference.binned(clean, *edges)[1], leaves, d_sum)
    arguments = (*problem, *edges, d_sum, *tile, True, problem.ref is not None)
    for end in ends:
        end[3] = poison
    for mine, truth in zip(backward(*arguments), right, strict=False):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9)
    for end in ends:
        end[5, 2] = torch.nan
    for mine, label in zip(backward(*arguments), labels, strict=False):
        assert mine[label > 0, 2].isnan().all()
        others = label <= 0
        others[5] = False
        assert mine[others].isfinite().all()
