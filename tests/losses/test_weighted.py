"""Losses that weigh the pairs of a row against their papers' formulas, in float64 over the full matrix."""

import functools

import pytest
import torch

from hyperkernels import losses
from hyperkernels.pairs.pairs import Pairs
from tests.support.accuracy import assert_as_accurate

from . import formulas_margins as formulas
from .cases import PROBLEMS, agree, by_formula, problem, reads_nothing, value_and_gradients, with_duplicates

COSINE_ONLY = ("circle",)


def case(name, formula, similarity="cosine", normalize=True, **options):
    """The loss and its formula, both of a problem."""
    if name not in COSINE_ONLY:
        options["similarity"] = similarity
    if not normalize:
        options["normalize"] = False
    return functools.partial(getattr(losses, name), **options), functools.partial(
        by_formula, formula, similarity, normalize=normalize
    )  # fmt: skip


CASES = {
    "multi-similarity": case("multi_similarity", lambda *a: formulas.multi_similarity(*a, 2, 50, 0.5, 0.1)),
    "multi-similarity narrow": case(
        "multi_similarity", lambda *a: formulas.multi_similarity(*a, 3, 10, 0.2, -0.4),
        alpha=3.0, beta=10.0, base=0.2, epsilon=-0.4,
    ),
    "multi-similarity of all": case(
        "multi_similarity", lambda *a: formulas.multi_similarity(*a, 2, 40, 0.5, None), beta=40.0, epsilon=None
    ),
    "multi-similarity euclidean": case(
        "multi_similarity", lambda *a: formulas.multi_similarity(*a, 2, 20, 0.9, 0.1), "euclidean",
        beta=20.0, base=0.9,
    ),
    "circle": case("circle", lambda *a: formulas.circle(*a, 0.4, 80)),
    "circle soft": case(
        "circle", lambda *a: formulas.circle(*a, 0.1, 4, nonzero=False), m=0.1, gamma=4.0, mean_over="all"
    ),
    "lifted": case("lifted", lambda *a: formulas.lifted(*a, 1.0, 0.0), "euclidean"),
    "lifted cosine": case(
        "lifted", lambda *a: formulas.lifted(*a, 0.9, 0.8), neg_margin=0.9, pos_margin=0.8
    ),
    "lifted, some hinges at 0": case(
        "lifted", lambda *a: formulas.lifted(*a, -0.6, 1.7), "euclidean", pos_margin=1.7, neg_margin=-0.6
    ),
    "generalized lifted": case(
        "generalized_lifted", lambda *a: formulas.generalized_lifted(*a, 1.0, 0.0), "euclidean"
    ),
    "generalized lifted cosine": case(
        "generalized_lifted", lambda *a: formulas.generalized_lifted(*a, 2.3, -0.7), neg_margin=2.3, pos_margin=-0.7
    ),
    "weighted triplet": case("weighted_triplet", lambda *a: formulas.weighted_triplet(*a), "euclidean"),
    "weighted triplet cosine": case("weighted_triplet", lambda *a: formulas.weighted_triplet(*a)),
    "weighted triplet with itself": case(
        "weighted_triplet", lambda *a: formulas.weighted_triplet(*a, include_self=True), "euclidean", False,
        include_self=True,
    ),
    "weighted triplet of AGW": case(
        "weighted_triplet", lambda *a: formulas.weighted_triplet(*a, True, False), "euclidean", False,
        include_self=True, exact=False,
    ),
    "weighted triplet not exact": case(
        "weighted_triplet", lambda *a: formulas.weighted_triplet(*a, False, False), "euclidean", exact=False
    ),
    "ranked list": case(
        "ranked_list", lambda *a: formulas.ranked_list(*a, 0.4, 3, 0, 0.5, 1.2, False), "euclidean",
        margin=0.4, Tn=3.0,
    ),
    "ranked list weighted": case(
        "ranked_list", lambda *a: formulas.ranked_list(*a, 0.6, 10, 2, 0.3, 1.4, False), "euclidean",
        margin=0.6, Tn=10.0, Tp=2.0, imbalance=0.3, alpha=1.4,
    ),
    "ranked list of constant weights": case(
        "ranked_list", lambda *a: formulas.ranked_list(*a, 0.6, 0, 2, 0.3, 1.4, True), "squared_euclidean",
        margin=0.6, Tn=0.0, Tp=2.0, imbalance=0.3, alpha=1.4, detach_weights=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("pairs", PROBLEMS)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name, pairs):
    ours, formula = CASES[name]
    given = problem(pairs)
    agree(value_and_gradients(ours, given), value_and_gradients(formula, given))


def test_the_problems_tell_the_losses_apart():
    """Otherwise the test above shows less than it says."""
    torch.manual_seed(0)
    given = problem("self")
    values = [float(formula(**given)) for _, formula in CASES.values()]
    assert min(values) > 0 and len({round(v, 9) for v in values}) == len(values)
    u = formulas.matrix(given["x"])
    pos, neg = formulas.masks(given["labels"])
    for epsilon, some in ((0.1, True), (-0.4, False)):
        both = [i for i in range(len(u)) if pos[i].any() and neg[i].any()]
        kept = [u[i][neg[i]] + epsilon > u[i][pos[i]].min() for i in both]
        assert any(k.any() and not k.all() for k in kept)
        assert some or any(not k.any() for k in kept)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_duplicates(backend, name):
    """Distances of exactly zero, between rows of one class and of two."""
    ours, formula = CASES[name]
    given = with_duplicates()
    agree(value_and_gradients(ours, given, backend), value_and_gradients(formula, given))


@pytest.mark.parametrize("pairs", PROBLEMS)
@pytest.mark.parametrize(("m", "gamma"), [(0.25, 256.0), (0.1, 2.0)])
def test_circle_of_the_batch(m, gamma, pairs):
    given = problem(pairs)
    formula = functools.partial(
        by_formula, lambda *a: formulas.circle_of_batch(*a, m, gamma, "ref" not in given), "cosine"
    )
    ours = functools.partial(losses.circle, m=m, gamma=gamma, scope="batch")
    agree(value_and_gradients(ours, given), value_and_gradients(formula, given))


def test_multi_similarity_takes_one_pass_over_the_negatives(monkeypatch):
    passes = []
    statistics = Pairs.statistics
    monkeypatch.setattr(
        Pairs, "statistics", lambda self, select, **o: (passes.append(select), statistics(self, select, **o))[1]
    )
    losses.multi_similarity(**problem("self"))
    assert sorted(passes) == ["negative", "positive", "positive"]


def test_multi_similarity_where_no_negative_is_mined():
    """Then no positive is either, and a row contributes nothing."""
    x = torch.eye(6, dtype=torch.float64).repeat_interleave(2, 0) + 0.01 * torch.randn(12, 6, dtype=torch.float64)
    value, gradient = value_and_gradients(losses.multi_similarity, {"x": x, "labels": torch.arange(12) // 2})
    assert value == 0 and (gradient == 0).all()
    assert losses.multi_similarity(x, torch.arange(12) // 2, epsilon=None) > 0


def test_lifted_takes_the_negatives_of_both_ends():
    given = problem("self")
    pos, neg = formulas.masks(given["labels"])
    alone = functools.partial(losses.generalized_lifted, reduction="none")(**given)
    assert (alone > 0).all() and pos.any() and neg.any()
    ref = {**given, "ref": given["x"], "ref_labels": given["labels"], "ids": torch.arange(15)}
    ref["ref_ids"] = ref["ids"]
    agree((losses.lifted(**ref),), (losses.lifted(**given),))


@pytest.mark.parametrize("distance", [15.0, 30.0])
def test_agw_loses_far_negatives_and_exact_does_not(distance):
    """What `exact=False` is there to reproduce, and `exact=True` to mend."""
    x = distance * torch.eye(40, dtype=torch.float64)
    given = {"x": x, "labels": torch.arange(40) // 2, "normalize": False, "include_self": True}
    gap = 2**0.5 * distance
    near = functools.partial(losses.weighted_triplet, **given)
    weight = 1 / (1 + torch.tensor(-gap, dtype=torch.float64).exp())
    exact = torch.log1p((gap * weight - gap).exp())
    torch.testing.assert_close(near(), exact)
    assert near(exact=False) > 0.5 * gap


@pytest.mark.parametrize("name", CASES)
def test_reductions(name):
    ours, _ = CASES[name]
    given = problem("self")
    rows, total, mean = (ours(**given, reduction=r) for r in ("none", "sum", "mean"))
    assert rows.shape == (15,) and mean.shape == ()
    torch.testing.assert_close(rows.sum(), total)
    count = 15
    if name.startswith("lifted"):
        count = formulas.masks(given["labels"])[0].sum()
    elif name == "circle":
        count = (rows > 0).sum()
    torch.testing.assert_close(total / count, mean)


@pytest.mark.parametrize("name", ["multi-similarity", "weighted triplet of AGW", "ranked list weighted", "lifted"])
def test_gradcheck(name):
    torch.manual_seed(1)
    given = problem("ref")
    leaves = [given.pop(k).requires_grad_() for k in ("x", "ref")]
    assert torch.autograd.gradcheck(lambda x, ref: CASES[name][0](x=x, ref=ref, **given), leaves, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_accuracy(name, dtype):
    ours, formula = CASES[name]
    given = problem("ref", dtype)
    found = value_and_gradients(ours, given)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    truth = value_and_gradients(formula, {k: v.double() if v.is_floating_point() else v for k, v in given.items()})
    if dtype == torch.float32:
        for mine, theirs, right in zip(found, value_and_gradients(formula, given), truth, strict=True):
            scale = max(float(t.norm()) for t in truth)
            assert_as_accurate(mine, theirs, right, factor=3.0, magnitude=4 * scale)
    else:  # mining and hinges change with the rounding of the embeddings
        torch.testing.assert_close(found[0].double(), truth[0], rtol=0.1, atol=0.02)
        assert all(v.isfinite().all() for v in found)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("lifted")])
def test_nothing_is_read_on_the_host(name):
    reads_nothing(CASES[name][0])


@pytest.mark.parametrize("name", ["multi-similarity", "circle", "lifted cosine", "generalized lifted cosine"])
def test_nan_reaches_the_loss(name):
    given = problem("self")
    given["x"][3, 2] = torch.nan
    assert CASES[name][0](**given).isnan()


def test_large_gamma_does_not_overflow():
    x = torch.randn(20, 8)
    x[1], x[3] = x[0], -x[2]
    labels = torch.tensor([0, 1, 2, 2]).repeat(5)
    for scope in ("anchor", "batch"):
        loss = functools.partial(losses.circle, gamma=2000.0, scope=scope)
        assert all(v.isfinite().all() for v in value_and_gradients(loss, {"x": x, "labels": labels}))


def test_arguments():
    given = problem("self", torch.float32)
    for function, wrong, error, word in (
        (losses.multi_similarity, {"alpha": 0}, ValueError, "alpha"),
        (losses.multi_similarity, {"epsilon": "0.1"}, TypeError, "epsilon"),
        (losses.circle, {"scope": "row"}, ValueError, "scope"),
        (losses.circle, {"gamma": -1.0}, ValueError, "gamma"),
        (losses.lifted, {"neg_margin": None}, TypeError, "neg_margin"),
        (losses.generalized_lifted, {"reduction": "max"}, ValueError, "reduction"),
        (losses.weighted_triplet, {"include_self": True, "similarity": "cosine"}, ValueError, "similarity"),
        (losses.weighted_triplet, {"exact": False, "similarity": "dot"}, ValueError, "similarity"),
        (losses.ranked_list, {"margin": 0.4, "Tn": -1.0}, ValueError, "Tn"),
        (losses.ranked_list, {"margin": 0.4, "Tn": 1.0, "similarity": "cosine"}, ValueError, "similarity"),
        (losses.ranked_list, {"margin": 0.4, "Tn": 1.0, "imbalance": 2.0}, ValueError, "imbalance"),
    ):
        with pytest.raises(error, match=word):
            function(**{**given, **wrong})
