"""Distance-weighted sampling against its exact distribution, and where the peer's loses its anchors."""

import math

import pytest
import torch

import hyperkernels as hk
from tests.support import report

from .cases import LABELS, SHAPES, Brute, listed, problem

distance_weighted = hk.mining.distance_weighted
OPTIONS = ({}, *({"temperature": t} for t in (0.5, 2.0, 8.0)), {"dim": 8.0}, {"cutoff": 0.9})


def probabilities(d, dim, cutoff=0.5, nonzero_loss_cutoff=1.4, temperature=1.0):
    """Of each negative, from its distance, [M] float64."""
    at_least = d.clamp_min(cutoff)
    log_weight = (2 - dim) * at_least.log() - (dim - 3) / 2 * (1 - at_least.square() / 4).log()
    return torch.where(d < nonzero_loss_cutoff, log_weight / temperature, -torch.inf).softmax(0)


def chi_square(counts, p):
    """The probability of counts that are as far from p or farther; rare columns are taken together."""
    total = counts.sum()
    rare = p * total < 8
    observed, expected = counts[~rare], (p * total)[~rare]
    if (p[rare].sum() * total) > 1:
        observed = torch.cat([observed, counts[rare].sum()[None]])
        expected = torch.cat([expected, p[rare].sum()[None] * total])
    else:
        assert counts[rare].sum() <= 12
    if len(observed) < 2:
        return 1.0
    statistic = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2, dtype=torch.float64), statistic / 2).item()


def near_sphere(n, d):
    """Unit vectors about a common direction, so that the distances lie on both sides of both cutoffs."""
    centre = torch.randn(d, dtype=torch.float64) / d**0.5
    spread = torch.linspace(0.2, 2.5, n, dtype=torch.float64)[:, None]
    return torch.nn.functional.normalize(centre + spread * torch.randn(n, d, dtype=torch.float64) / d**0.5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dim", (64, 512))
@pytest.mark.parametrize("seed", (1, 2))
def test_negatives_follow_the_distribution(seed, dim, options):
    """2000 draws of each of six anchors."""
    torch.manual_seed(seed)
    x, ref = near_sphere(6, dim), near_sphere(40, dim)
    labels, ref_labels = torch.arange(6), torch.arange(40) % 10
    a, p, n = distance_weighted(x, labels, ref, ref_labels, draws=2000, seed=seed, **options)
    assert torch.equal(a, torch.arange(6).repeat_interleave(2000))
    assert (ref_labels[p] == labels[a]).all()
    exact = {"dim": dim, **options}
    for i in range(6):
        negative = ref_labels != labels[i]
        expected = torch.zeros(40, dtype=torch.float64)
        expected[negative] = probabilities((x[i] - ref[negative]).norm(dim=1), **exact)
        counts = n[a == i].bincount(minlength=40).double()
        assert counts[expected == 0].sum() == 0
        assert chi_square(counts, expected) > 1e-4


@pytest.mark.parametrize("temperature", (0.5, 1.0, 2.0))
@pytest.mark.parametrize("dim", (2, 4, 9, 64, 512))
def test_graded_distances(dim, temperature):
    """Negatives at distances whose weights all count, as in many dimensions only nearly equal ones do."""
    distance = 0.6 * torch.linspace(0, min(3 * temperature / dim, 0.6), 30, dtype=torch.float64).exp()
    anchor = torch.nn.functional.normalize(torch.randn(1, dim, dtype=torch.float64))
    across = torch.randn(30, dim, dtype=torch.float64)
    across = torch.nn.functional.normalize(across - (across @ anchor.T) * anchor)
    cos = (1 - distance.square() / 2)[:, None]
    ref = torch.cat([anchor, cos * anchor + (1 - cos.square()).sqrt() * across])
    labels, ref_labels = torch.tensor([0]), torch.arange(31).clamp_max(1)
    _, _, n = distance_weighted(anchor, labels, ref, ref_labels, draws=20000, seed=dim, temperature=temperature)
    expected = probabilities(distance, dim, temperature=temperature)
    assert expected.max() < 0.4
    assert chi_square((n - 1).bincount(minlength=30).double(), expected) > 1e-4


def test_positives_are_alike():
    x, labels = torch.randn(20, 8), torch.arange(20) // 10
    a, p, _ = distance_weighted(x, labels, nonzero_loss_cutoff=None, draws=3000, seed=4)
    for i in range(20):
        counts = p[a == i].bincount(minlength=20).double()
        expected = torch.where((labels == labels[i]) & (torch.arange(20) != i), 1 / 9, 0).double()
        assert counts[expected == 0].sum() == 0
        assert chi_square(counts, expected) > 1e-4


def test_each_positive():
    given = problem((30, None))
    b = Brute(given, "cosine")
    a, p, _ = distance_weighted(*given, nonzero_loss_cutoff=None, positives="each")
    assert listed((a, p)) == [(i, j) for i in range(30) for j in b.positives[i] if b.negatives[i]]


@pytest.mark.parametrize("data", ("random", "ties"))
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_triplets_are_valid(dtype, kind, data):
    for shape in SHAPES:
        given = problem(shape, data, kind, dtype)
        b = Brute(given, "cosine")
        for temperature in (1.0, 3.0):
            found = listed(distance_weighted(*given, nonzero_loss_cutoff=None, temperature=temperature))
            assert [t[0] for t in found] == [i for i in range(b.n) for _ in b.positives[i] if b.negatives[i]]
            assert all(p in b.positives[i] and n in b.negatives[i] for i, p, n in found)


def test_cutoffs():
    """Nearer negatives weigh alike, in a dimension in which distances do not; those of the upper cutoff and beyond are
    not drawn."""
    angles = torch.tensor([0.0, 0.01, 0.1, 0.2, 2 * math.asin(0.7), 3.0], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    labels, ref_labels = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1, 1, 1, 1, 1])
    options = {"draws": 6000, "seed": 3, "nonzero_loss_cutoff": 1.4 - 1e-12, "dim": 5}
    _, _, n = distance_weighted(x[:1], labels, x, ref_labels, **options)
    assert sorted(n.unique().tolist()) == [1, 2, 3]
    even = torch.tensor([0, 1, 1, 1, 0, 0], dtype=torch.float64) / 3
    assert chi_square(n.bincount(minlength=6).double(), even) > 1e-4


@pytest.mark.parametrize("temperature", (0.5, 1.0, 2.0))
def test_draws_are_those_of_the_reference(temperature):
    for shape in SHAPES:
        given = problem(shape)
        found = distance_weighted(*given, temperature=temperature, draws=9, seed=5)
        with hk.backend("reference"):
            wanted = distance_weighted(*given, temperature=temperature, draws=9, seed=5)
        assert all(map(torch.equal, found, wanted))


def test_draws():
    x, labels = torch.randn(12, 8), torch.arange(12) // 3
    labels[-1] = 9  # which has no positive
    a, _, _ = distance_weighted(x, labels, nonzero_loss_cutoff=None, draws=torch.arange(12))
    assert a.tolist() == [i for i in range(11) for _ in range(i)]
    a, _, _ = distance_weighted(x, labels, nonzero_loss_cutoff=None, draws=2)
    assert a.tolist() == [i for i in range(11) for _ in range(2)]
    assert len(distance_weighted(x, labels, draws=0)[0]) == 0


def test_seed_from_the_generator():
    given = problem((30, None))
    torch.manual_seed(3)
    first, second = distance_weighted(*given), distance_weighted(*given)
    torch.manual_seed(3)
    again = distance_weighted(*given)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[2], second[2])
    assert all(map(torch.equal, distance_weighted(*given, seed=-7), distance_weighted(*given, seed=-7)))


def batch_with_a_duplicate(dim, classes=32, of_class=8):
    """Correlated classes, and one image that lies in two of them."""
    centres = torch.randn(classes, dim, dtype=torch.float64) + 1.5 * torch.randn(dim, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(of_class)
    x = centres[labels] + 0.7 * torch.randn(len(labels), dim, dtype=torch.float64)
    x[-1] = x[0] + 1e-3 * torch.randn(dim, dtype=torch.float64)
    return torch.nn.functional.normalize(x).float(), labels


def test_every_anchor_is_kept_beside_a_near_duplicate():
    """Where weights are taken relative to the batch's largest, one pair's leaves nothing of the other rows'."""
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    torch.manual_seed(0)
    x, labels = batch_with_a_duplicate(512)
    a, p, n = distance_weighted(x, labels)
    theirs = miners.DistanceWeightedMiner()(x, labels)
    assert torch.equal(a, torch.arange(256).repeat_interleave(7))
    assert (labels[p] == labels[a]).all()
    assert (p != a).all()
    assert (labels[n] != labels[a]).all()
    kept = len(theirs[0].unique())
    assert kept < 26
    report(f"distance-weighted sampling, D=512, one near-duplicate: 256 of 256 anchors, pytorch-metric-learning {kept}")


def test_as_many_triplets_as_the_peer():
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    x, labels = torch.randn(30, 8), torch.arange(30) // 6
    ref, ref_labels = torch.randn(40, 8), torch.arange(40) // 8
    for given, more in (((x, labels), 1), ((x, labels, ref, ref_labels), 0)):
        theirs = miners.DistanceWeightedMiner(nonzero_loss_cutoff=2.1)(*given)[0]
        positives = distance_weighted(*given, nonzero_loss_cutoff=None)[0].bincount()
        ours = distance_weighted(*given, nonzero_loss_cutoff=None, draws=positives + more)[0]
        assert torch.equal(ours, theirs.sort().values)


def test_errors_name_the_argument():
    x, labels = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    for options, kind, text in (
        ({"cutoff": 0}, ValueError, "cutoff must be greater"),
        ({"nonzero_loss_cutoff": 0.5}, ValueError, "nonzero_loss_cutoff must be greater"),
        ({"temperature": 0.0}, ValueError, "temperature must be greater"),
        ({"dim": "3"}, TypeError, "dim must be a number"),
        ({"positives": "all"}, ValueError, "positives must be one of"),
        ({"draws": -1}, ValueError, "draws must be at least 0"),
        ({"draws": torch.zeros(5, dtype=torch.int64)}, ValueError, "draws must have one entry"),
        ({"draws": torch.zeros(6)}, TypeError, "draws must have dtype"),
        ({"seed": "a"}, TypeError, "seed must be an int"),
        ({"seed": 2**63}, ValueError, "seed must be within 64 bits"),
        ({"ref": x}, TypeError, "ref_labels must be"),
        ({"ref": 3}, TypeError, "ref must be"),
    ):
        with pytest.raises(kind, match=text):
            distance_weighted(x, labels, **options)
