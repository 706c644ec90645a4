"""ListedPairs over the lists of Pairs are Pairs: every method, value and gradient, in float64."""

import pytest
import torch

from hyperkernels.kernels.pair_mining.reference import Transform
from hyperkernels.pairs.listed import ListedPairs
from hyperkernels.pairs.pairs import LINEAR, SOFTPLUS, Pairs

TRANSFORMS = [Transform(), LINEAR, SOFTPLUS, Transform("circle", 0.25, -0.75)]


def both(n=13, m=None, classes=4, similarity="cosine", dtype=torch.float64):
    x = torch.randn(n, 5, dtype=dtype, requires_grad=True)
    labels = torch.randint(-2, classes - 2, (n,))
    ref = ref_labels = None
    if m is not None:
        ref, ref_labels = torch.randn(m, 5, dtype=dtype, requires_grad=True), torch.randint(-2, classes, (m,))
    pairs = Pairs(x, labels, ref, ref_labels, similarity=similarity)
    positive, negative = (pairs.listed(select)[:2] for select in ("positive", "negative"))
    shuffled = []
    for side in (positive, negative):
        order = torch.randperm(len(side[0]))
        shuffled.append(tuple(v[order] for v in side))
    return pairs, ListedPairs(pairs, *shuffled), (x,) if ref is None else (x, ref)


def compare(ours, theirs, leaves):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    weights = [torch.rand_like(v) if v.is_floating_point() else v for v in theirs]
    slopes = []
    for side in (ours, theirs):
        total = sum(
            (torch.where(v.isfinite(), v, 0) * w).sum()
            for v, w in zip(side, weights, strict=True)
            if v.requires_grad and len(v)
        )
        slopes.append(torch.autograd.grad(total, leaves, retain_graph=True) if torch.is_tensor(total) else ())
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("m", [None, 1, 29])
@pytest.mark.parametrize("select", ["positive", "negative", "all"])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.name)
def test_statistics(select, m, transform):
    pairs, listed, leaves = both(m=m)
    scale = torch.rand(pairs.n, dtype=torch.float64).add(0.5).requires_grad_()
    offset = torch.rand(pairs.n, dtype=torch.float64).requires_grad_() if transform.name == "softplus" else None
    lower = torch.linspace(-0.8, 0.2, pairs.n, dtype=torch.float64)
    options = {"moments": True, "extremes": True, "transform": transform, "scale": scale, "offset": offset}
    if transform.name == "none":
        del options["scale"], options["offset"]
    for bounds in ({}, {"lower": lower}, {"lower": lower, "upper": 0.5}, {"lower": 2.0}):
        mine, theirs = (list(p.statistics(select, **options, **bounds)) for p in (listed, pairs))
        mine[8], theirs[8] = mine[8].detach(), theirs[8].detach()
        parameters = () if transform.name == "none" else (scale,) if offset is None else (scale, offset)
        compare(mine, theirs, (*leaves, *parameters) if len(theirs[7]) else leaves)


@pytest.mark.parametrize("m", [None, 7])
def test_softmax_mean_is_differentiable(m):
    pairs, listed, leaves = both(m=m)
    compare(*(list(p.statistics("negative", transform=LINEAR, scale=3.0)) for p in (listed, pairs)), leaves)


@pytest.mark.parametrize("transform", TRANSFORMS[:2], ids=lambda t: t.name)
def test_statistics_of_both(transform):
    pairs, listed, leaves = both(m=29)
    options = {"moments": True, "extremes": True, "transform": transform, "scale": 4.0, "ref_scale": 7.0}
    for side in (0, 1):
        compare(*(list(p.statistics_of_both("negative", **options)[side]) for p in (listed, pairs)), leaves)


@pytest.mark.parametrize("m", [None, 29])
@pytest.mark.parametrize("select", ["positive", "negative", "all"])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_listed_values_and_bins(select, m, similarity):
    pairs, listed, leaves = both(m=m, similarity=similarity)
    for bounds in ({}, {"lower": -0.3, "upper": 0.4}):
        compare(list(listed.listed(select, **bounds)), list(pairs.listed(select, **bounds)), leaves)
        counts = torch.randint(0, 5, (pairs.n,))
        counts[0] = 0
        edges = torch.cat([torch.randn(int(c), dtype=torch.float64).sort().values for c in counts])
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        compare(listed.binned(select, edges, offsets, **bounds), pairs.binned(select, edges, offsets, **bounds), leaves)
        none = edges[:0], torch.zeros_like(offsets)
        compare(listed.binned(select, *none, **bounds), pairs.binned(select, *none, **bounds), leaves)
    columns = torch.randint(-1, pairs.m, (pairs.n,))
    compare([listed.values_at(columns, 2.0)], [pairs.values_at(columns, 2.0)], leaves)


def test_pairs_listed_twice_count_twice_unless_distinct():
    pairs, _, _ = both()
    rows, columns = torch.tensor([3, 0, 3, 3]), torch.tensor([5, 1, 5, 2])
    none = rows[:0]
    twice = ListedPairs(pairs, (rows, columns), (none, none))
    once = ListedPairs(pairs, (rows, columns), (none, none), distinct=True)
    assert twice.statistics("positive").count.tolist()[:4] == [1, 0, 0, 3]
    assert once.statistics("positive").count.tolist()[:4] == [1, 0, 0, 2]
    assert once.listed("positive").columns.tolist() == [1, 2, 5]


def test_no_pairs():
    none = torch.empty(0, dtype=torch.int64)
    for transform in TRANSFORMS[1:]:
        pairs, _, (x,) = both()
        listed = ListedPairs(pairs, (none, none), (none, none))
        found = listed.statistics("negative", moments=True, extremes=True, transform=transform, scale=2.0)
        assert not found.count.any() and (found.min == torch.inf).all() and (found.argmax == -1).all()
        (slope,) = torch.autograd.grad(torch.where(found.count > 0, found.lse, 0).sum() + found.sum.sum(), x)
        assert not slope.any()


def test_ties_and_nan():
    x = torch.ones(4, 2, dtype=torch.float64)
    pairs = Pairs(x)
    rows, columns, none = torch.tensor([0, 0, 1]), torch.tensor([3, 2, 0]), torch.empty(0, dtype=torch.int64)
    found = ListedPairs(pairs, (rows, columns), (none, none)).statistics("positive", extremes=True)
    assert found.argmax.tolist() == found.argmin.tolist() == [2, 0, -1, -1]
    y = x.clone()
    y[3] = torch.nan
    found = ListedPairs(Pairs(y), (rows, columns), (none, none)).statistics(
        "positive", moments=True, extremes=True, transform=LINEAR, scale=1.0
    )
    for v in (found.sum, found.min, found.max, found.lse):
        assert v[0].isnan() and v[1].isfinite()
    assert found.argmax.tolist() == [3, 0, -1, -1]


def test_wrong_lists_are_refused():
    pairs, _, _ = both()
    good, short = torch.tensor([0, 1]), torch.tensor([0])
    with pytest.raises(ValueError, match="int64"):
        ListedPairs(pairs, (good, short), (good, good))
    with pytest.raises(ValueError, match="int64"):
        ListedPairs(pairs, (good.int(), good.int()), (good, good))
    for wrong in (torch.tensor([0, 13]), torch.tensor([-1, 0])):
        for rows, columns in ((good, wrong), (wrong, good)):
            with pytest.raises(IndexError, match=r"rows of pairs|columns of pairs"):
                ListedPairs(pairs, (rows, columns), (good, good))


def test_softplus_is_exact_where_it_is_nearly_the_identity():
    pairs, listed, _ = both()
    found = listed.statistics("all", transform=SOFTPLUS, scale=1.0, offset=21.0).lse
    positive, negative = (pairs.listed(select) for select in ("positive", "negative"))
    wanted = torch.zeros(13, dtype=torch.float64)
    for side in (positive, negative):
        wanted.index_add_(0, side.rows, -torch.nn.functional.logsigmoid(-(side.similarities + 21)))
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
