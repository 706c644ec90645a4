"""Contrastive, triplet, margin and tuplet margin losses against their papers' formulas and pytorch-metric-learning."""

import functools

import pytest
import torch

from hyperkernels import _backend, losses
from hyperkernels.kernels.pair_mining.ordered import take
from tests.support.accuracy import assert_as_accurate

from . import formulas_margins as formulas
from .cases import PROBLEMS, agree, by_formula, problem, reads_nothing, value_and_gradients, with_duplicates

BETA = torch.tensor(1.1, dtype=torch.float64)


def case(ours, formula, similarity="euclidean", normalize=True):
    """The loss and its formula, both of a problem."""
    options = {} if normalize is True else {"normalize": False}
    if ours is not losses.tuplet_margin:
        options["similarity"] = similarity
    return lambda **kw: ours(**kw, **options), functools.partial(
        by_formula, formula, similarity, normalize=normalize
    )  # fmt: skip


def named(name, **options):
    return functools.partial(getattr(losses, name), **options)


CASES = {
    "contrastive": case(named("contrastive"), lambda *a: formulas.contrastive(*a, 0.0, 1.0)),
    "contrastive cosine": case(
        named("contrastive", pos_margin=0.9, neg_margin=0.2),
        lambda *a: formulas.contrastive(*a, 0.9, 0.2),
        "cosine",
    ),
    "contrastive over all": case(
        named("contrastive", mean_over="all", pos_margin=0.3, neg_margin=1.2),
        lambda *a: formulas.contrastive(*a, 0.3, 1.2, nonzero=False),
    ),
    "contrastive squared": case(
        named("contrastive", neg_margin=2.0), lambda *a: formulas.contrastive(*a, 0.0, 2.0), "squared_euclidean"
    ),
    "contrastive of any norm": case(
        named("contrastive", neg_margin=2.0), lambda *a: formulas.contrastive(*a, 0.0, 2.0), normalize=False
    ),
    "triplet": case(named("triplet"), lambda *a: formulas.triplet_all(*a, 0.05)),
    "triplet cosine": case(
        named("triplet", margin=0.3, mean_over="all"),
        lambda *a: formulas.triplet_all(*a, 0.3, nonzero=False),
        "cosine",
    ),
    "triplet soft": case(named("triplet", soft=True), lambda *a: formulas.triplet_all(*a, 0.05, soft=True)),
    "triplet soft dot": case(
        named("triplet", soft=True, margin=-0.5), lambda *a: formulas.triplet_all(*a, -0.5, soft=True), "dot"
    ),
    "batch hard": case(
        named("triplet", mining="batch_hard", margin=0.2), lambda *a: formulas.triplet_batch_hard(*a, 0.2)
    ),
    "batch hard soft": case(
        named("triplet", mining="batch_hard", soft=True, margin=0.0),
        lambda *a: formulas.triplet_batch_hard(*a, 0.0, soft=True),
        "cosine",
    ),
    "batch hard over all": case(
        named("triplet", mining="batch_hard", mean_over="all"),
        lambda *a: formulas.triplet_batch_hard(*a, 0.05, nonzero=False),
        "squared_euclidean",
    ),
    "semi-hard": case(
        named("triplet", mining="semi_hard", margin=0.2), lambda *a: formulas.triplet_semi_hard(*a, 0.2)
    ),
    "semi-hard over all": case(
        named("triplet", mining="semi_hard", mean_over="all", margin=0.1),
        lambda *a: formulas.triplet_semi_hard(*a, 0.1, nonzero=False),
        "cosine",
    ),
    "semi-hard soft": case(
        named("triplet", mining="semi_hard", soft=True), lambda *a: formulas.triplet_semi_hard(*a, 0.05, soft=True)
    ),
    "margin": case(named("margin"), lambda *a: formulas.margin(*a, 0.2, 1.2)),
    "margin cosine": case(
        named("margin", beta=BETA - 0.6), lambda *a: formulas.margin(*a, 0.2, BETA.to(a[0]) - 0.6), "cosine"
    ),
    "margin penalty": case(
        named("margin", beta=BETA, nu=0.3, margin=0.1), lambda *a: formulas.margin(*a, 0.1, BETA.to(a[0]), 0.3)
    ),
    "tuplet margin": case(
        losses.tuplet_margin, lambda *a: formulas.tuplet_margin(*a, 5.73, 64.0), "cosine"
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
    values = [float(formula(**problem("self"))) for _, formula in CASES.values()]
    assert min(values) > 0 and len(set(values)) == len(values)
    torch.manual_seed(0)
    given = problem("self")
    u = formulas.matrix(given["x"], None, "euclidean")
    pos, neg = formulas.masks(given["labels"])
    fallbacks = [not (u[i][neg[i]] > u[i, p]).any() for i, p in pos.nonzero().tolist()]
    assert 0 < sum(fallbacks) < len(fallbacks)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("tuplet")])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_duplicates(backend, name):
    """Distances of exactly zero, between rows of one class and of two; the tuplet margin has its own test."""
    ours, formula = CASES[name]
    given = with_duplicates()
    if "semi-hard" in name or "batch hard" in name:
        found = value_and_gradients(ours, given, backend)  # among equals the formula's choice is another
        assert all(v.isfinite().all() for v in found)
        agree(found[:1], value_and_gradients(formula, given)[:1])
    else:
        agree(value_and_gradients(ours, given, backend), value_and_gradients(formula, given))


def test_tuplet_margin_of_equal_and_opposite_rows():
    """The formula's arc cosine has no derivative there, and its value past 1 is NaN."""
    given = with_duplicates()
    value, gradient = value_and_gradients(losses.tuplet_margin, given)
    moved = {**given, "x": given["x"] + 1e-7 * torch.randn_like(given["x"])}
    torch.testing.assert_close(value, CASES["tuplet margin"][1](**moved), rtol=1e-5, atol=0)
    assert gradient.isfinite().all()
    x = torch.randn(8, 5).repeat_interleave(2, 0)
    for row in value_and_gradients(losses.tuplet_margin, {"x": x, "labels": torch.arange(16) // 2}):
        assert row.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_reductions(name):
    ours, _ = CASES[name]
    given = problem("self")
    if name == "margin penalty":
        with pytest.raises(ValueError, match="nu must be 0"):
            ours(**given, reduction="none")
        return
    rows, total, mean = (ours(**given, reduction=r) for r in ("none", "sum", "mean"))
    assert rows.shape == (15,) and mean.shape == ()
    torch.testing.assert_close(rows.sum(), total)
    pos, neg = formulas.masks(given["labels"])
    lonely = ~pos.any(1) if not name.startswith("contrastive") else ~(pos.any(1) | neg.any(1))
    assert (rows[lonely] == 0).all()
    if not name.startswith("contrastive"):  # whose two parts are divided by counts of their own
        count = total / mean
        torch.testing.assert_close(count, count.round())
        assert count >= 1


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
@pytest.mark.parametrize("nu", [0.0, 0.4])
def test_margin_learns_beta(similarity, nu):
    given = problem("self")
    for beta in (torch.tensor(0.9), torch.tensor([0.8]), torch.tensor([0.7, 0.9, 1.0, 1.3, 0.5])):
        per_class = beta.numel() > 1
        labels = given["labels"] % 5
        near = similarity == "cosine"
        u = formulas.matrix(given["x"], None, similarity)
        mine, right = (beta.double().requires_grad_() for _ in range(2))
        loss = losses.margin(given["x"], labels, beta=mine, nu=nu, similarity=similarity)
        wanted = formulas.margin(
            u, near, *formulas.masks(labels), 0.2, right if per_class else right.reshape(()), nu,
            labels if per_class else None,
        )  # fmt: skip
        agree((loss,), (wanted,))
        agree(torch.autograd.grad(loss, mine), torch.autograd.grad(wanted, right))


@pytest.mark.parametrize("pairs", PROBLEMS[4:])
def test_margin_penalty_without_triplets(pairs):
    given = problem(pairs)
    given["labels"] = given["labels"] % 16
    if "ref_labels" in given:
        given["ref_labels"] = given["ref_labels"] % 16
    beta = torch.ones(16, dtype=torch.float64, requires_grad=True)
    for value in value_and_gradients(functools.partial(losses.margin, beta=beta, nu=1.0), given):
        assert value.isfinite().all()
    if pairs in ("one class", "singletons", "nothing"):
        assert losses.margin(**given, beta=beta, nu=1.0) == 0 == losses.margin(**given, nu=1.0)
    assert beta.grad.isfinite().all()


@pytest.mark.parametrize("name", ["triplet", "margin", "semi-hard", "tuplet margin", "contrastive cosine"])
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
    exact = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    found = value_and_gradients(ours, given)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    truth = value_and_gradients(formula, exact)
    if dtype == torch.float32:
        # The peer has the matrix of differences; statistics have the product of the embeddings: of the formula's
        # rounding, some units more.
        peer = value_and_gradients(formula, given)
        for mine, theirs, right in zip(found, peer, truth, strict=True):
            scale = max(float(t.norm()) for t in truth)
            assert_as_accurate(mine, theirs, right, factor=3.0, magnitude=4 * scale)
    else:  # hinges open and close with the rounding of the embeddings
        torch.testing.assert_close(found[0].double(), truth[0], rtol=0.1, atol=0.02)
        assert all(v.isfinite().all() for v in found)


def test_arguments():
    given = problem("self", torch.float32)
    for function, wrong, error, word in (
        (losses.contrastive, {"pos_margin": "1"}, TypeError, "pos_margin"),
        (losses.contrastive, {"mean_over": "rows"}, ValueError, "mean_over"),
        (losses.contrastive, {"similarity": "l1"}, ValueError, "similarity"),
        (losses.triplet, {"mining": "easy"}, ValueError, "mining"),
        (losses.triplet, {"margin": float("nan")}, ValueError, "margin"),
        (losses.triplet, {"labels": given["labels"].int()}, TypeError, "labels"),
        (losses.triplet, {"labels": None}, TypeError, "labels"),
        (losses.triplet, {"x": given["x"].long()}, TypeError, "x"),
        (losses.margin, {"margin": -1.0}, ValueError, "margin"),
        (losses.margin, {"beta": torch.zeros(2, 2)}, ValueError, "beta"),
        (losses.margin, {"beta": "1"}, TypeError, "beta"),
        (losses.tuplet_margin, {"scale": 0.0}, ValueError, "scale"),
        (losses.tuplet_margin, {"reduction": "median"}, ValueError, "reduction"),
    ):
        with pytest.raises(error, match=word):
            function(**{**given, **wrong})


@pytest.mark.parametrize("name", ["contrastive", "contrastive over all", "batch hard", "margin"])
def test_nothing_is_read_on_the_host(name):
    if name == "margin" and _backend.select("pair_mining", torch.device("cpu")) == "reference":
        pytest.skip("the reference reads the offsets of its bins")
    reads_nothing(CASES[name][0])


def test_gradients_of_repeated_indices_add_up():
    index = torch.tensor([3, 0, 3, 3, 1])
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    d = torch.randn(5, dtype=torch.float64)
    (found,) = torch.autograd.grad(take(values, index), values, d)
    torch.testing.assert_close(found, torch.stack([d[1], d[4], d[0] * 0, d[0] + d[2] + d[3], d[0] * 0]))
    with pytest.raises((IndexError, RuntimeError)):
        losses.margin(torch.randn(3, 4), torch.tensor([0, -1, 1]), beta=torch.ones(2))


def test_nan_reaches_the_loss():
    given = problem("self")
    given["x"][3, 2] = torch.nan
    for name in (
        "contrastive cosine", "triplet cosine", "triplet soft dot", "margin cosine", "tuplet margin", "batch hard soft",
        "semi-hard over all",
    ):  # fmt: skip
        assert CASES[name][0](**given).isnan(), name
