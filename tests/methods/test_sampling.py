"""The draws of docs/methods.md that are a matter of chance, against the laws that the papers state."""

import functools

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk

SEEDS, ANCHORS = 200, 8  # the anchors of a call are one and the same row


def log_weights(d, *, dim, cutoff=0.5, farthest=1.4, power=1.0):
    """Of distance-weighted sampling (arXiv 1706.07567), before the normalisation of a row."""
    near = d.clamp_min(cutoff)
    log_density = (dim - 2) * near.log() + (dim - 3) / 2 * (1 - near.square() / 4).log()
    return torch.where(d < farthest, -power * log_density, -torch.inf)


def chi_square(counts, law):
    """The probability of counts as far from the law, or farther; what is expected less than 8 times goes together."""
    if counts[law == 0].any():
        return 0.0
    expected = law * counts.sum()
    rare = expected < 8
    counts, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected).square() / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


def around(x, distances):
    """Unit rows at those distances of the unit vector x [D]."""
    across = torch.randn(len(distances), len(x), dtype=torch.float64)
    across = F.normalize(across - (across @ x)[:, None] * x)
    cos = (1 - distances.square() / 2)[:, None]
    return cos * x + (1 - cos.square()).sqrt() * across


@functools.cache
def frequencies(dim):
    """How often each negative of one anchor is drawn, over many seeds, and how far it is. In 512 dimensions only
    negatives of nearly equal distances are all drawn at times."""
    torch.manual_seed(dim)
    anchor = F.normalize(torch.randn(dim, dtype=torch.float64), dim=0)
    inner = torch.linspace(0.3, 0.55, 8, dtype=torch.float64)
    spread = 0.5 * torch.linspace(0, 4 / dim, 24, dtype=torch.float64).exp()
    outer = torch.tensor([1.39, 1.399, 1.401, 1.45, 1.9], dtype=torch.float64)
    rows = torch.cat([anchor[None], around(anchor, torch.cat([inner, spread, outer])), anchor[None] + 0.01])
    labels, numbers = torch.tensor([0] + [1] * (len(rows) - 2) + [0]), torch.arange(len(rows))
    counts, none = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(ANCHORS, dtype=torch.int64)
    for seed in range(SEEDS):
        a, p, n = hk.mining.distance_weighted(
            anchor.expand(ANCHORS, -1),
            none,
            rows,
            labels,
            ids=none,
            ref_ids=numbers,
            draws=25,
            seed=seed,
        )
        assert torch.equal(a, torch.arange(ANCHORS).repeat_interleave(25)) and (p == len(rows) - 1).all()
        counts += n.bincount(minlength=len(rows))
    return counts[1:-1], (rows[1:-1] - anchor).norm(dim=1)


DIMS = [3, 4, 16, 512]


@pytest.mark.parametrize("dim", DIMS)
def test_negatives_are_drawn_by_the_density_of_their_distances(dim):
    counts, distance = frequencies(dim)
    assert counts.sum() == 25 * SEEDS * ANCHORS
    law = log_weights(distance, dim=dim).softmax(0)
    assert (law * counts.sum() > 8).sum() >= 5, "the draws tell little"
    assert chi_square(counts, law) > 1e-4


@pytest.mark.parametrize(
    "altered",
    [{"cutoff": 0.52}, {"farthest": 1.395}, {"farthest": 1.405}, {"power": 1.1}, {"dim": 1.2}],
    ids=str,
)
def test_an_altered_law_is_seen(altered):
    seen = []
    for dim in DIMS:
        counts, distance = frequencies(dim)
        law = {"dim": dim} | altered | ({"dim": dim * altered["dim"]} if "dim" in altered else {})
        seen.append(chi_square(counts, log_weights(distance, **law).softmax(0)) < 1e-8)
    assert any(seen)


@pytest.mark.parametrize("drawn", [1, 5])
def test_semi_hard_negatives_are_drawn_evenly_from_the_pool(drawn):
    """InterCLR (arXiv 2008.11702): of the rows of the pool with another label each is drawn as often."""
    torch.manual_seed(drawn)
    x, bank = torch.randn(1, 6, dtype=torch.float64), torch.randn(60, 6, dtype=torch.float64)
    labels, bank_labels = torch.tensor([2]), torch.arange(60) % 4
    pool = (F.normalize(x) @ F.normalize(bank).T)[0].topk(20).indices
    left = pool[bank_labels[pool] != 2]
    assert len(left) < 20
    counts, labels = torch.zeros(60, dtype=torch.float64), labels.expand(10 * ANCHORS)
    for seed in range(SEEDS // drawn):
        _, negatives = hk.mining.semi_hard_pool(
            x.expand(10 * ANCHORS, -1), labels, bank, bank_labels, pool=20, num_negatives=drawn, seed=seed
        )
        assert all(len(row.unique()) == drawn for row in negatives)
        counts += negatives.flatten().bincount(minlength=60)
    assert counts.sum() == counts[left].sum() == 10 * ANCHORS * SEEDS
    law = torch.full((len(left),), 1 / len(left), dtype=torch.float64)
    assert chi_square(counts[left], law) > 1e-4
    law[: len(left) // 2] *= 1.25
    assert chi_square(counts[left], law / law.sum()) < 1e-8
