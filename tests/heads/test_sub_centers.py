"""The tools that clean a training set with sub-centres, against loops over samples."""

import math

import pytest
import torch

import hyperkernels as hk
from hyperkernels.heads import sub_centers as tools


def problem(n=60, classes=7, k=3, d=6, dtype=torch.float64):
    x, weight = torch.randn(n, d, dtype=dtype) * 3, torch.randn(classes * k, d, dtype=dtype)
    target = torch.randint(classes, (n,))
    target[:4] = -100
    return x, weight, target


@pytest.mark.parametrize("piece", [1, 50, 2**22])
def test_a_pass_over_a_set(piece, monkeypatch):
    """Counts, dominant centres, angles and outliers, whatever the size of the pieces."""
    monkeypatch.setattr(tools, "_PIECE", piece)
    x, weight, target = problem()
    counts = torch.zeros(7, 3, dtype=torch.int64)
    for row, y in zip(x, target, strict=True):
        if y != -100:
            cos = torch.cosine_similarity(row[None], weight[y * 3 : y * 3 + 3])
            counts[y, cos.argmax()] += 1
    half = [hk.sub_centers.nearest_counts(x[i::2], weight, target[i::2], sub_centers=3) for i in (0, 1)]
    assert torch.equal(half[0] + half[1], counts) and counts.sum() == 56
    dominant = hk.sub_centers.dominant(counts)
    assert torch.equal(dominant, torch.tensor([row.index(max(row)) for row in counts.tolist()]))
    angles = hk.sub_centers.angles(x, weight, target, dominant, sub_centers=3)
    assert angles[:4].isnan().all()
    kept = hk.sub_centers.keep(weight, dominant, sub_centers=3)
    assert kept.shape == (7, 6)
    wanted = torch.cosine_similarity(x[4:], kept[target[4:]]).acos()
    torch.testing.assert_close(angles[4:], wanted)
    outliers = hk.sub_centers.outliers(angles)
    assert torch.equal(outliers[4:], wanted > 75 * math.pi / 180) and not outliers[:4].any() and outliers.any()
    assert torch.equal(hk.sub_centers.outliers(angles, 30.0)[4:], wanted > math.pi / 6)


def test_ties_go_to_the_lowest():
    weight = torch.ones(4, 3)
    counts = hk.sub_centers.nearest_counts(torch.ones(5, 3), weight, torch.tensor([0, 0, 1, 1, 1]), sub_centers=2)
    assert counts.tolist() == [[2, 0], [3, 0]]
    assert hk.sub_centers.dominant(torch.tensor([[2, 2, 1], [0, 0, 0], [1, 3, 3]])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("theta", [1e-6, 1e-4, 0.5, math.pi / 2, math.pi - 1e-4])
def test_angles_are_accurate_near_the_poles(theta):
    """In float32, where the arc cosine of a product knows nothing below 3e-4."""
    x = torch.tensor([[math.cos(theta), math.sin(theta)]], dtype=torch.float32) * 5
    zero = torch.zeros(1, dtype=torch.int64)
    found = hk.sub_centers.angles(x, torch.tensor([[2.0, 0.0]]), zero, zero, sub_centers=1)
    assert found.item() == pytest.approx(theta, rel=1e-6, abs=2e-7 if theta > 3 else 0)


def test_a_sample_is_nearest_as_the_head_has_it():
    x, weight, target = problem(dtype=torch.float32)
    statistics = hk.class_statistics(x, weight, target, sub_centers=3)
    counts = hk.sub_centers.nearest_counts(x, weight, target, sub_centers=3)
    keep = target != -100
    wanted = torch.zeros(7, 3, dtype=torch.int64)
    wanted.index_put_((target[keep], statistics.target_center[keep]), torch.ones(56, dtype=torch.int64), True)
    assert torch.equal(counts, wanted)


def test_no_gradient_and_no_rows():
    x, weight, target = problem()
    dominant = torch.zeros(7, dtype=torch.int64)
    weight.requires_grad_()
    assert not hk.sub_centers.angles(x, weight, target, dominant, sub_centers=3).requires_grad
    assert not hk.sub_centers.keep(weight, dominant, sub_centers=3).requires_grad
    assert hk.sub_centers.nearest_counts(x[:0], weight, target[:0], sub_centers=3).sum() == 0
    assert hk.sub_centers.angles(x[:0], weight, target[:0], dominant, sub_centers=3).shape == (0,)


X, W, T, ZERO = torch.randn(2, 3), torch.randn(6, 3), torch.tensor([0, 1]), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tools.nearest_counts(X, W, T, sub_centers=4), ValueError, "weight must have sub_centers=4 rows per"),
        (lambda: tools.nearest_counts(X, W, T, sub_centers=0), ValueError, "sub_centers must be at least 1"),
        (lambda: tools.nearest_counts(X, W, T + 2, sub_centers=2), IndexError, r"target must lie in \[0, 3\)"),
        (lambda: tools.nearest_counts(X, W[:, :2], T, sub_centers=2), ValueError, "embedding size of x"),
        (lambda: tools.nearest_counts(X, W, T[:1], sub_centers=2), ValueError, "one entry per row of x"),
        (lambda: tools.angles(X, W, T, ZERO[:2], sub_centers=2), ValueError, "dominant must have one entry per class"),
        (lambda: tools.angles(X, W, T, ZERO.int(), sub_centers=2), TypeError, "dominant must have dtype int64"),
        (lambda: tools.dominant(ZERO), ValueError, "counts must have 2 dimension"),
        (lambda: tools.outliers(torch.zeros(2), 200.0), ValueError, "degrees must be in"),
        (lambda: tools.keep(W, ZERO, sub_centers=1), ValueError, "dominant must have one entry per class"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
