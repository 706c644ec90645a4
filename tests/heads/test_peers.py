"""The same values and gradients as the heads that people use today, where the definition is the same."""

import math

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from tests.support.margin_softmax_cases import loss_and_gradients, problem

peers = pytest.importorskip("pytorch_metric_learning.losses")


def peer_loss_and_gradients(peer, x, weight, target):
    """Of a head of pytorch-metric-learning, whose weight is [D, C]."""
    peer.W = torch.nn.Parameter(weight.detach().T.clone())
    x = x.detach().requires_grad_()
    loss = peer(x, target)
    dx, dw = torch.autograd.grad(loss, (x, peer.W))
    return loss.detach(), dx, dw.T


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [16, 30, 64])
@pytest.mark.parametrize(
    ("name", "margin", "options"),
    [
        ("ArcFaceLoss", hk.margins.ArcFace(0.5), {"margin": math.degrees(0.5)}),
        ("CosFaceLoss", hk.margins.CosFace(0.35), {"margin": 0.35}),
        ("SubCenterArcFaceLoss", hk.margins.ArcFace(0.5), {"margin": math.degrees(0.5), "sub_centers": 3}),
    ],
)
def test_pytorch_metric_learning(name, margin, options, scale, dtype):
    k = options.get("sub_centers", 1)
    x, weight, target = problem(40, 90 * k, 24, dtype, near=1.0)
    target %= 90
    peer = getattr(peers, name)(num_classes=90, embedding_size=24, scale=scale, **options)
    wanted = peer_loss_and_gradients(peer, x, weight, target)
    got = loss_and_gradients(x, weight, target, margin=margin, scale=scale, sub_centers=k)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_pytorch_metric_learning_past_pi():
    """Both continue with cos(theta) - m sin(m) there."""
    _, weight, target = problem(8, 9, 6, torch.float64)
    x = -weight[target].detach() + 0.1 * torch.randn(8, 6, dtype=torch.float64)
    peer = peers.ArcFaceLoss(num_classes=9, embedding_size=6, margin=math.degrees(0.5), scale=30)
    wanted = peer_loss_and_gradients(peer, x, weight, target)
    got = loss_and_gradients(x, weight, target, margin=hk.margins.ArcFace(0.5), scale=30)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_known_difference_on_the_centre():
    """A sample on its centre: theirs divides by sin(0) and its gradient is not finite; ours takes the limit."""
    _, weight, target = problem(4, 9, 6, torch.float64)
    weight = torch.eye(9, 6, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3])
    x = weight[target] * 2
    peer = peers.ArcFaceLoss(num_classes=9, embedding_size=6, scale=30)
    _, theirs, _ = peer_loss_and_gradients(peer, x, weight, target)
    _, dx, dweight = loss_and_gradients(x, weight, target, margin=hk.margins.ArcFace(0.5), scale=30)
    assert not theirs.isfinite().all()
    assert dx.isfinite().all() and dweight.isfinite().all()


def test_known_difference_where_p_is_one():
    """A learned sample in float32: theirs is exactly 0, ours keeps its relative precision."""
    x, weight, target = problem(6, 20, 64, near=50.0)
    peer = peers.CosFaceLoss(num_classes=20, embedding_size=64, margin=0.0, scale=64)
    theirs = peer_loss_and_gradients(peer, x, weight, target)[0]
    options = {"margin": hk.margins.CosFace(0.0), "scale": 64.0}
    mine = hk.margin_softmax_loss(x, weight, target, **options)
    truth = hk.margin_softmax_loss(x.double(), weight.double(), target, **options)
    assert theirs == 0 < truth
    torch.testing.assert_close(mine.double(), truth, rtol=1e-4, atol=0)


PLAIN = {"margin": hk.margins.NormFace(), "normalize_x": False, "normalize_weight": False, "scale": 1.0}


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_cross_entropy(dtype, smoothing, biased, reduction):
    x, weight, target = problem(30, 50, 12, dtype, ignored=3)
    bias = torch.randn(50, dtype=dtype).requires_grad_() if biased else None
    leaves = [x, weight, *([bias] if biased else [])]
    options = {"reduction": reduction, "label_smoothing": smoothing}
    theirs = F.linear_cross_entropy(x, weight, target, linear_bias=bias, **options)
    mine = hk.margin_softmax_loss(x, weight, target, bias=bias, **PLAIN, **options)
    torch.testing.assert_close(mine, theirs)
    gradients = (torch.autograd.grad(loss.sum(), leaves) for loss in (mine, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_known_difference_mean_over_no_rows():
    """All rows ignored: theirs is 0 / 0, ours 0."""
    x, weight, target = problem(3, 5, 4, ignored=3)
    assert F.cross_entropy(F.linear(x, weight), target).isnan()
    assert hk.margin_softmax_loss(x, weight, target, **PLAIN) == 0
