"""The recogniser's metrics against brute force and scores made by hand."""

import numpy as np
import pytest
import torch

from examples.recognizer import metrics
from examples.recognizer.evaluate import rank1


def brute_tar_at_far(scores, same, far):
    """Every score and +inf as a threshold, one after the other."""
    best = 0.0
    for threshold in [np.inf, *scores]:
        if (scores[~same] >= threshold).mean() <= far:
            best = max(best, (scores[same] >= threshold).mean())
    return best


@pytest.mark.parametrize("levels", [5, 40, 10**6])  # few levels make many ties
@pytest.mark.parametrize("seed", range(4))
def test_metrics_against_brute_force(levels, seed):
    rng = np.random.default_rng(seed)
    same = rng.random(300) < 0.4
    scores = np.round((rng.normal(size=300) + same) * levels) / levels
    curve = metrics.roc(scores, same)
    for far in (0.0, 1e-2, 0.05, 0.3, 1.0):
        tar, threshold = metrics.tar_at_far(curve, far)
        assert tar == brute_tar_at_far(scores, same, far)
        assert (scores[same] >= threshold).mean() == tar
        assert (scores[~same] >= threshold).mean() <= far
    # The equal error rate lies between the two errors at the thresholds on either side of the crossing.
    points = [((scores[~same] >= t).mean(), (scores[same] < t).mean()) for t in [np.inf, *np.unique(scores)[::-1]]]
    after = next(i for i, (far, frr) in enumerate(points) if far >= frr)
    low, high = points[after - 1][0], points[after][0]
    assert low <= metrics.equal_error_rate(curve) <= high
    assert min(points[after]) - 1e-12 <= metrics.equal_error_rate(curve) <= points[after - 1][1] + 1e-12


def test_metrics_of_scores_made_by_hand():
    same = np.array([True, True, True, True, False, False, False, False])
    perfect = metrics.roc(np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]), same)
    assert metrics.equal_error_rate(perfect) == 0
    assert metrics.tar_at_far(perfect, 0.0) == (1.0, 0.6)
    # One of four on the wrong side each: 25 % of both errors at a threshold between.
    crossed = metrics.roc(np.array([0.9, 0.8, 0.7, 0.4, 0.6, 0.3, 0.2, 0.1]), same)
    assert metrics.equal_error_rate(crossed) == pytest.approx(0.25)
    assert metrics.tar_at_far(crossed, 0.0) == (0.75, 0.7)
    assert metrics.tar_at_far(crossed, 0.25) == (1.0, 0.4)
    # All tied: nothing can be accepted without everything.
    tied = metrics.roc(np.full(8, 0.5), same)
    assert metrics.equal_error_rate(tied) == pytest.approx(0.5)
    assert metrics.tar_at_far(tied, 0.99) == (0.0, np.inf)


def test_accuracy_over_folds():
    same = np.arange(400) < 100
    assert metrics.fold_accuracy(same.astype(float), same) == (1.0, 0.0)
    assert metrics.fold_accuracy(np.zeros(400), same)[0] == pytest.approx(0.5)
    scores = np.random.default_rng(0).normal(size=400) + 2 * same
    assert 0.8 < metrics.fold_accuracy(scores, same)[0] < 0.88  # two unit normals 2 apart: 0.841


def test_a_far_that_too_few_pairs_can_show_is_left_out():
    same = np.arange(300) < 100
    result = metrics.verify(np.linspace(1, 0, 300), same)
    assert result.tar_at_far == {"0.01": 1.0, "0.001": None}
    with pytest.raises(ValueError, match="one pair of the same class"):
        metrics.roc(np.zeros(3), np.ones(3, bool))


def test_rank1():
    references = torch.eye(4)
    probes = torch.tensor([[0.9, 0.1, 0, 0], [0, 1, 0, 0], [0, 0.8, 0.2, 0]])
    assert rank1(probes, references, torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)
    assert rank1(probes[:0], references, torch.tensor([])) is None
