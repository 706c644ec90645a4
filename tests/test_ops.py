"""Which results of the ops carry a gradient: an extreme or a count that did would pass on zeros in silence."""

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.pair_mining import op, selections
from hyperkernels.pairs.pairs import LINEAR, SOFTPLUS, Pairs, Transform

LABELS = torch.tensor([0, 1, 0, 1, 0])


def rows(n=5):
    return torch.randn(n, 4, requires_grad=True)


def reached(results):
    return {name for name, value in results._asdict().items() if value.requires_grad}


def test_class_statistics():
    found = hk.class_statistics(rows(), rows(3), torch.tensor([0, 1, 2, 0, 1]))
    assert reached(found) == {"neg_lse", "target_cos", "x_norm", "neg_cos_sum"}


@pytest.mark.parametrize(
    ("transform", "more"),
    [(LINEAR, {"lse", "d_scale"}), (SOFTPLUS, {"lse"}), (Transform("circle", 0.2, -0.1), {"lse"})],
)
def test_pair_statistics(transform, more):
    problem = Pairs(rows(), LABELS).problem("negative")
    found, _ = op.pair_statistics(problem, torch.ones(5), None, True, True, transform)
    assert reached(found) == {"sum", "sum_squares"} | more


def test_bins():
    problem = Pairs(rows(), LABELS).problem("negative")
    found = selections.binned(problem, torch.zeros(5), torch.arange(6))
    assert reached(found) == {"sum"}


def test_miners():
    assert not any(found.requires_grad for found in hk.mining.topk_negatives(rows(), LABELS, k=2))
