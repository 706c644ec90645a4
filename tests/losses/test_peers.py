"""The same values and gradients as pytorch-metric-learning, and by name where and why another one."""

import functools

import pytest
import torch

from hyperkernels import losses

from .cases import agree, problem, value_and_gradients, with_duplicates

pml = pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances, miners, reducers  # noqa: E402
from pytorch_metric_learning import losses as theirs  # noqa: E402

COSINE = {"distance": distances.CosineSimilarity()}
RAW = {"distance": distances.LpDistance(normalize_embeddings=False)}
SQUARED = {"distance": distances.LpDistance(power=2)}
ALL = {"reducer": reducers.MeanReducer()}


def ours(name, **options):
    return functools.partial(getattr(losses, name), **options)


# Ours, theirs, their miner, and whether they take a ref.
CASES = {
    "contrastive": (ours("contrastive"), theirs.ContrastiveLoss(), None, True),
    "contrastive cosine": (
        ours("contrastive", similarity="cosine", neg_margin=0.3),
        theirs.ContrastiveLoss(pos_margin=1, neg_margin=0.3, **COSINE), None, True,
    ),
    "contrastive over all": (
        ours("contrastive", mean_over="all", pos_margin=0.2, normalize=False),
        theirs.ContrastiveLoss(pos_margin=0.2, **ALL, **RAW), None, True,
    ),
    "triplet": (ours("triplet"), theirs.TripletMarginLoss(), None, True),
    "triplet cosine": (
        ours("triplet", similarity="cosine", margin=0.2, mean_over="all"),
        theirs.TripletMarginLoss(margin=0.2, **ALL, **COSINE), None, True,
    ),
    "triplet soft": (ours("triplet", soft=True), theirs.TripletMarginLoss(smooth_loss=True), None, True),
    "batch hard": (
        ours("triplet", mining="batch_hard", margin=0.3),
        theirs.TripletMarginLoss(margin=0.3), miners.BatchHardMiner(), True,
    ),
    # Theirs keeps beta in float32: it is a number that float32 has.
    "margin": (ours("margin", beta=1.25), theirs.MarginLoss(beta=1.25), None, True),
    "margin cosine": (
        ours("margin", beta=0.375, similarity="cosine"), theirs.MarginLoss(beta=0.375, **COSINE), None, True
    ),
    "margin penalty": (
        ours("margin", beta=torch.tensor([1.0]), nu=0.2, margin=0.1),
        theirs.MarginLoss(beta=1.0, nu=0.2, margin=0.1, learn_beta=True), None, True,
    ),
    "tuplet margin": (ours("tuplet_margin"), theirs.TupletMarginLoss(), None, True),
    "multi-similarity of all": (ours("multi_similarity", epsilon=None), theirs.MultiSimilarityLoss(), None, True),
    "multi-similarity": (
        ours("multi_similarity"), theirs.MultiSimilarityLoss(), miners.MultiSimilarityMiner(), True
    ),
    "multi-similarity narrow": (
        ours("multi_similarity", epsilon=-0.3), theirs.MultiSimilarityLoss(), miners.MultiSimilarityMiner(-0.3), True
    ),
    "multi-similarity euclidean": (
        ours("multi_similarity", similarity="euclidean", base=1.0, beta=20.0, epsilon=0.2),
        theirs.MultiSimilarityLoss(base=1.0, beta=20, distance=distances.LpDistance()),
        miners.MultiSimilarityMiner(0.2, distance=distances.LpDistance()), True,
    ),
    "circle": (ours("circle", m=0.25, gamma=2.0), theirs.CircleLoss(m=0.25, gamma=2), None, True),
    "circle over all": (ours("circle", gamma=3.0, mean_over="all"), theirs.CircleLoss(gamma=3, **ALL), None, True),
    "lifted": (ours("lifted"), theirs.LiftedStructureLoss(), None, False),
    "lifted cosine": (
        ours("lifted", similarity="cosine", neg_margin=0.6, pos_margin=0.9),
        theirs.LiftedStructureLoss(neg_margin=0.6, pos_margin=0.9, **COSINE), None, False,
    ),
    "generalized lifted": (ours("generalized_lifted"), theirs.GeneralizedLiftedStructureLoss(), None, True),
    "generalized lifted squared": (
        ours("generalized_lifted", similarity="squared_euclidean"),
        theirs.GeneralizedLiftedStructureLoss(**SQUARED), None, True,
    ),
    "ranked list": (ours("ranked_list", margin=0.4, Tn=3.0), theirs.RankedListLoss(margin=0.4, Tn=3), None, False),
    "ranked list weighted": (
        ours("ranked_list", margin=0.6, Tn=4.0, Tp=2.0, imbalance=0.3, alpha=1.3),
        theirs.RankedListLoss(margin=0.6, Tn=4, Tp=2, imbalance=0.3, alpha=1.3), None, False,
    ),
    "fast ap": (losses.fast_ap, theirs.FastAPLoss(), None, False),
    "fast ap of 25 bins": (ours("fast_ap", num_bins=25), theirs.FastAPLoss(num_bins=25), None, False),
}  # fmt: skip


def of_peer(loss, miner, x, labels, ref=None, ref_labels=None):
    with torch.no_grad():
        found = None if miner is None else miner(x, labels, ref, ref_labels)
    # Their batch without pairs may not lead back to the leaves.
    return loss(x, labels, found, ref, ref_labels) + 0 * x.sum() + (0 if ref is None else 0 * ref.sum())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("pairs", ["self", "ref", "one row", "one column", "pairs"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name, pairs, seed):
    mine, loss, miner, takes_ref = CASES[name]
    torch.manual_seed(seed)
    given = problem(pairs)
    if "ref" in given and not takes_ref:
        pytest.skip("theirs takes no ref, or misreads it")
    peer = functools.partial(of_peer, loss.double(), miner)
    agree(value_and_gradients(mine, given), value_and_gradients(peer, given), rtol=1e-9)


@pytest.mark.parametrize("pairs", ["one class", "singletons"])
@pytest.mark.parametrize("name", CASES)
def test_batches_of_one_kind_of_pair(name, pairs):
    mine, loss, miner, _ = CASES[name]
    given = problem(pairs)
    found, wanted = (value_and_gradients(f, given) for f in (mine, functools.partial(of_peer, loss.double(), miner)))
    agree(found, wanted, rtol=1e-9)


def test_margin_learns_beta_by_class():
    given = problem("self")
    labels = given["labels"] % 5
    loss = theirs.MarginLoss(nu=0.3, beta=1.1, learn_beta=True, num_classes=5).double()
    beta = loss.beta.detach().clone().requires_grad_()
    mine, wanted = losses.margin(given["x"], labels, beta=beta, nu=0.3), loss(given["x"], labels)
    agree((mine, *torch.autograd.grad(mine, beta)), (wanted, *torch.autograd.grad(wanted, loss.beta)))


def test_circle_of_a_large_scale():
    """Their softplus turns into the identity at 20, 2e-9 from it."""
    given = problem("self")
    peer = functools.partial(of_peer, theirs.CircleLoss(), None)
    agree(value_and_gradients(losses.circle, given), value_and_gradients(peer, given), rtol=3e-9, atol=1e-8)


def test_lifted_with_a_ref_is_another():
    """Theirs takes the number of a row of ref for one of x, to find the negatives of the second end."""
    given = problem("ref")
    assert (losses.lifted(**given) - of_peer(theirs.LiftedStructureLoss(), None, **given)).abs() > 1e-3


def test_tuplet_margin_of_equal_rows_is_finite():
    """Theirs has the derivative of the arc cosine at 1, which is infinite."""
    given = with_duplicates()
    peer = functools.partial(of_peer, theirs.TupletMarginLoss(), None)
    assert not value_and_gradients(peer, given)[1].isfinite().all()
    assert value_and_gradients(losses.tuplet_margin, given)[1].isfinite().all()


def test_ranked_list_counts_negatives_at_no_distance():
    """Theirs drops them, as it marks with 0 what does not count."""
    given = {"x": torch.eye(3, dtype=torch.float64)[[0, 0, 1]], "labels": torch.tensor([0, 1, 2])}
    mine = losses.ranked_list(**given, margin=0.4, Tn=0.0, reduction="none")
    assert (mine[:2] > 0.5).all() and mine[2] == 0
    assert of_peer(theirs.RankedListLoss(margin=0.4, Tn=0), None, **given) == 0
