"""Radii and features on the sphere against their formulas row by row, and the cases at the edges."""

import re

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from tests.support import ROOT
from tests.support.pair_softmax_cases import compare, points

from .cases import NARROW, finite, special

S = hk.sphere


# Radii


@pytest.mark.parametrize("radius", [0.0, 1.3, 3.6])  # the last of about as many rows inside as outside
@pytest.mark.parametrize("nu", [0.03, 1.0])
def test_svdd_loss(radius, nu):
    x, center = points(20), points(1)[0].detach().requires_grad_()
    d = (x - center).square().sum(1)
    wanted = radius**2 + F.relu(d - radius**2).mean() / nu
    compare(S.svdd_loss(x, center, radius, nu), wanted, [x, center])
    learned = torch.tensor(radius, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(S.svdd_loss(x, center, learned, nu), learned, allow_unused=True) == (None,)


def test_shell_loss():
    x, center = points(40), torch.zeros(7, dtype=torch.float64)
    inner, outer = S.shell_radii(x, center, 0.2)
    d = (x - center).square().sum(1)
    low, high = torch.full_like(d, inner**2), torch.full_like(d, outer**2)
    wanted = (torch.maximum(d, high) - torch.minimum(d, low) - (high - low)).mean()
    compare(S.shell_loss(x, center, inner, outer), wanted, [x])
    compare(S.shell_loss(x, center, inner.item(), outer.item()), wanted, [x])
    beyond, within = (d > high).double()[:, None], (d < low).double()[:, None]
    (gradient,) = torch.autograd.grad(S.shell_loss(x, center, inner, outer), x)
    torch.testing.assert_close(gradient, 2 / 40 * (beyond - within) * (x - center))
    assert beyond.sum() == within.sum() == 8


@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("nu", [0.0, 0.03, 0.5])
def test_shell_radii_are_quantiles(n, nu):
    x, center = points(n), points(1)[0]
    distance = (x - center).norm(dim=1).detach()
    wanted = torch.quantile(distance, torch.tensor([nu, 1 - nu], dtype=torch.float64))
    torch.testing.assert_close(torch.stack(S.shell_radii(x, center, nu)), wanted)


def test_svdd_center():
    x = torch.tensor([[0.05, -0.05, 0.0, 2.0], [0.05, -0.07, 0.0, -1.0]])
    torch.testing.assert_close(S.svdd_center(x), torch.tensor([0.1, -0.1, 0.0, 0.5]))
    torch.testing.assert_close(S.svdd_center(x, 0.0), x.mean(0))


def barrier(u):
    """The mean over positive u."""
    u = u[u > 0]
    return (F.softplus(u, threshold=60) * u.exp().detach()).mean() if len(u) else 0.0


def log_barrier(x, anomalous, target):
    radius = (x.norm(dim=1) + 1).sqrt() - 1
    high = min(0.9 * radius[anomalous].min().item(), 0.4) if anomalous.any() else 0.4
    loss = barrier(radius[~anomalous] - high) + barrier(0.99 * high - radius[~anomalous])
    if anomalous.any() and target is not None:
        mine, theirs = x[anomalous], target[anomalous]
        loss = loss + F.mse_loss(mine, theirs) + (1 - F.cosine_similarity(mine, theirs)).mean()
        loss = loss + barrier(high + 0.1 - radius[anomalous])
    return loss


@pytest.mark.parametrize("size", [0.1, 0.4, 0.8, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("targeted", [False, True])
def test_log_barrier_loss(size, share, targeted):
    x = (size * points(30)).detach().requires_grad_()
    anomalous = torch.rand(30) < share
    target = points(30) if targeted else None
    wanted = log_barrier(x, anomalous, target)
    mine = S.log_barrier_loss(x, anomalous, target)
    if not isinstance(wanted, torch.Tensor):
        assert mine == wanted == 0
        return
    compare(mine, wanted, [x, target] if targeted else [x])


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_radii_at_the_edges(dtype):
    x, target = special(dtype)
    anomalous = torch.arange(9) % 2 == 0
    for mask in (anomalous, ~anomalous, anomalous | True, anomalous & False):
        finite(S.log_barrier_loss(x, mask, target), x, target)
    huge = (x.detach() * torch.finfo(dtype).max ** 0.4).requires_grad_()
    finite(S.log_barrier_loss(huge, anomalous & False), huge)
    center = x.detach()[0].clone()
    loss = S.svdd_loss(x, center)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    finite(loss, x)
    finite(S.shell_loss(x, center, 0.5, 1), x)
    assert S.svdd_loss(x[:0], center) == S.shell_loss(x[:0], center, 0.0, 1.0) == 0
    assert S.log_barrier_loss(x[:0], anomalous[:0], target[:0]) == 0


def test_losses_pass_nan_on():
    x = torch.randn(5, 3)
    x[2] = torch.nan
    center, anomalous = torch.zeros(3), torch.tensor([True, False, False, False, True])
    assert S.svdd_loss(x, center).isnan() and S.shell_loss(x, center, 0, 1).isnan()
    assert S.log_barrier_loss(x, anomalous).isnan() and S.log_barrier_loss(x, anomalous.roll(1)).isnan()
    assert S.alignment(x, x.roll(1, 0)).isnan()


# Features


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment(alpha):
    x, y = points(12), points(12)
    compare(S.alignment(x, y, alpha), (F.normalize(x) - F.normalize(y)).norm(dim=1).pow(alpha).mean(), [x, y])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_alignment_at_the_edges(alpha, dtype):
    x, y = special(dtype)
    finite(S.alignment(x, y, alpha), x, y)
    assert S.alignment(x[:0], y[:0]) == 0
    close = 1e-4 * torch.randn(9, 5) + 1
    a, b = close.requires_grad_(), torch.ones(9, 5)
    right = (F.normalize(a.double()) - F.normalize(b.double())).norm(dim=1).pow(alpha).mean()
    assert abs(S.alignment(a, b, alpha).double() / right - 1) < 1e-3


def test_grounding_index():
    r, q, c = points(8), points(8), points(8)

    def angle(a, b):
        return torch.acos((F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1))

    compare(S.grounding_index(r, q, c), angle(r, q) / (angle(r, c) + 1e-8), [r, q, c])
    wanted = (r - q).norm(dim=1) / ((r - c).norm(dim=1) + 1e-10)
    compare(S.grounding_index(r, q, c, 1e-10, measure="euclidean"), wanted, [r, q, c])
    # Every response with every context; the ratio obeys the paper's bounds.
    index, apart = S.grounding_index(r[:, None], q[:, None], c), angle(q[:, None], c)
    assert index.shape == (8, 8)
    ratio = apart / angle(r[:, None], c)
    assert (ratio - 1 <= index + 1e-6).all() and (index <= ratio + 1 + 1e-6).all()


@pytest.mark.parametrize("measure", ["angle", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_grounding_index_at_the_edges(measure, dtype):
    x, y = special(dtype)
    for other in (x, y, y.roll(1, 0)):
        index = S.grounding_index(x, y, other, measure=measure)
        assert index.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        finite(index, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
@pytest.mark.parametrize("labelled", [False, True])
def test_nearest_residual(dtype, labelled):
    x, ref = torch.randn(60, 8).to(dtype).requires_grad_(), torch.randn(25, 8).to(dtype).requires_grad_()
    y, ref_y = (torch.randint(4, (60,)), torch.randint(3, (25,))) if labelled else (None, None)
    residual, index = S.nearest_residual(x, ref, y, ref_y)
    cosine = F.normalize(x.double()) @ F.normalize(ref.double()).T
    if labelled:
        cosine = cosine.masked_fill(y[:, None] != ref_y, -torch.inf)
        assert index.eq(-1).equal(y == 3)
    some = index >= 0
    at = index.clamp_min(0)
    tolerance = 8 * torch.finfo(dtype).eps
    assert (cosine.amax(1) - cosine.gather(1, at[:, None])[:, 0])[some].max() <= tolerance
    wanted = torch.where(some[:, None], x - ref[at], x)
    assert torch.equal(residual, wanted)
    upstream = torch.randn(60, 8).to(dtype)
    mine = torch.autograd.grad(residual, (x, ref), upstream)
    assert torch.equal(mine[0], upstream)
    taken = torch.zeros(25, 8, dtype=torch.float64).index_add_(0, at[some], -upstream[some].double())
    torch.testing.assert_close(mine[1], taken.to(dtype))


def test_nearest_residual_without_rows():
    x, ref = torch.randn(3, 4, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    residual, index = S.nearest_residual(x, ref)
    assert torch.equal(residual, x) and index.tolist() == [-1] * 3
    residual.sum().backward()
    assert ref.grad.shape == (0, 4)
    residual, index = S.nearest_residual(x[:0], x)
    assert residual.shape == (0, 4) and index.shape == (0,)


# Densely anchored sampling


class Slow:
    """The memory one sample, one class and one difference at a time."""

    def __init__(self, classes, size, largest, kept):
        self.frequency = [[0] * size for _ in range(classes)]
        self.bank = [[] for _ in range(classes)]
        self.largest, self.kept = largest, kept

    def update(self, x, labels):
        for row, label in zip(x, labels.tolist(), strict=True):
            for k in sorted(range(len(row)), key=lambda k: -row[k].item())[: self.largest]:
                self.frequency[label][k] += 1
        for label, bank in enumerate(self.bank):
            rows = x[labels == label]
            bank += [a - b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
            del bank[: max(0, len(bank) - self.kept)]


@pytest.mark.parametrize("kept", [1, 10, 50])
def test_anchor_memory(kept):
    memory, slow = S.AnchorMemory(7, 6, largest=3, transformations=kept), Slow(7, 6, 3, kept)
    for n in (1, 5, 30, 4, 0, 11):
        x, labels = torch.randn(n, 6), torch.randint(6, (n,))  # class 6 never comes
        memory.update(x, labels)
        slow.update(x, labels)
    assert memory.frequency.tolist() == slow.frequency
    for label, bank in enumerate(slow.bank):
        count = min(int(memory.seen[label]), kept)
        assert count == len(bank)
        mine = memory.shifts[label, :count]
        assert sorted(mine.tolist()) == sorted(v.tolist() for v in bank)


def test_perturb_anchors():
    memory = S.AnchorMemory(3, 8, largest=2)
    x, labels = torch.randn(20, 8), torch.randint(2, (20,))
    memory.update(x, labels)
    made, of = S.perturb_anchors(x, labels, memory, copies=4, shift=0.5, normalize=False)
    assert made.shape == (80, 8) and torch.equal(of, labels.repeat(4)) and not made.requires_grad
    best = [sorted(range(8), key=lambda k, c=c: -memory.frequency[c, k].item())[:2] for c in range(3)]
    factors = []
    for row, source, label in zip(made, x.repeat(4, 1), of.tolist(), strict=True):
        others = [k for k in range(8) if k not in best[label]]
        bank = memory.shifts[label][: memory.seen[label].clamp_max(10)]
        # One of the remembered differences explains what happened to all other dimensions.
        left = row - source - 0.5 * bank
        chosen = left[:, others].abs().sum(1).argmin()
        assert left[chosen, others].abs().max() < 1e-5
        factors.append(((row - 0.5 * bank[chosen]) / source)[best[label]])
    factors = torch.cat(factors)
    assert 0.49 < factors.min() < 0.7 and 1.8 < factors.max() < 2.01
    # A class that has not been seen: the lowest dimensions are scaled, nothing is added.
    alone, _ = S.perturb_anchors(x[:1], torch.tensor([2]), memory, copies=1, normalize=False)
    assert torch.equal(alone[:, 2:], x[:1, 2:])


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_perturb_anchors_options(dtype):
    memory = S.AnchorMemory(4, 8)
    x, labels = torch.randn(12, 8).to(dtype).requires_grad_(), torch.randint(4, (12,))
    memory.update(x, labels)
    a, b, c = (
        S.perturb_anchors(x, labels, memory, detach=False, generator=torch.Generator().manual_seed(s))[0]
        for s in (3, 3, 4)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.dtype == dtype
    torch.testing.assert_close(a.float().norm(dim=1), torch.ones(36), rtol=0, atol=4 * torch.finfo(dtype).eps + 1e-6)
    finite(a, x)
    assert S.perturb_anchors(x, labels, memory, copies=0)[0].shape == (0, 8)
    assert S.perturb_anchors(x[:0], labels[:0], memory)[0].shape == (0, 8)
    again = S.AnchorMemory(4, 8)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.shifts, memory.shifts)
    zeros = torch.zeros(12, 8, dtype=dtype, requires_grad=True)
    finite(S.perturb_anchors(zeros, labels, again, detach=False)[0], zeros)


X, C, Y = torch.ones(4, 3), torch.ones(3), torch.zeros(4, dtype=torch.int64)
MEMORY = S.AnchorMemory(2, 3, largest=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: S.frechet_mean(C), ValueError, "x must have 2"),
        (lambda: S.frechet_mean(X, C), ValueError, "weights must have one entry per row"),
        (lambda: S.frechet_mean(X, iterations=1.5), TypeError, "iterations must be an int"),
        (lambda: S.frechet_mean(X.long()), TypeError, "x must have dtype"),
        (lambda: S.circular_variance([1.0]), TypeError, "x must be a torch.Tensor"),
        (lambda: S.kmeans_step(X, X[:0]), ValueError, "centers must have at least one row"),
        (lambda: S.kmeans_step(X, X.double()), TypeError, "must have the dtype of x"),
        (lambda: S.svdd_loss(X, C[:2]), ValueError, "center must have the size"),
        (lambda: S.svdd_loss(X, C, nu=0.0), ValueError, "nu must be greater than 0"),
        (lambda: S.svdd_loss(X, C, -1.0), ValueError, "radius must be at least 0"),
        (lambda: S.svdd_loss(X, C, C), ValueError, "radius must have 0"),
        (lambda: S.shell_loss(X, C, "a", 1.0), TypeError, "inner must be a number"),
        (lambda: S.shell_radii(X, C, 0.6), ValueError, "nu must be in"),
        (lambda: S.shell_radii(X[:0], C), ValueError, "x must have at least one row"),
        (lambda: S.svdd_center(X[:0]), ValueError, "x must have at least one row"),
        (lambda: S.log_barrier_loss(X, Y), TypeError, "anomalous must have dtype bool"),
        (lambda: S.log_barrier_loss(X, Y[:1] == 0), ValueError, "anomalous must have one entry"),
        (lambda: S.log_barrier_loss(X, Y == 0, X[:1]), ValueError, "target must have the shape"),
        (lambda: S.alignment(X, X, 0.0), ValueError, "alpha must be greater"),
        (lambda: S.alignment(X, C[:2]), ValueError, "y must have the last dimension"),
        (lambda: S.grounding_index(X, X, X, measure="chord"), ValueError, "measure must be one of"),
        (lambda: S.grounding_index(X, X, X, -1.0), ValueError, "eps must be greater"),
        (lambda: S.nearest_residual(X, C), ValueError, "ref must have 2"),
        (lambda: S.nearest_residual(X, X, Y), ValueError, "ref_labels must be given"),
        (lambda: S.AnchorMemory(2, 3, largest=4), ValueError, "largest must be at most"),
        (lambda: S.perturb_anchors(X, Y, None), TypeError, "memory must be an AnchorMemory"),
        (lambda: S.perturb_anchors(X, Y[:2], MEMORY), ValueError, "labels must have one entry"),
        (lambda: S.perturb_anchors(X[:, :2], Y, MEMORY), ValueError, "x must have the embedding size"),
        (lambda: S.perturb_anchors(X, Y, MEMORY, scale=(2.0, 1.0)), ValueError, r"scale\[1\] must be at least"),
        (lambda: S.perturb_anchors(X, Y, MEMORY, scale=1.0), TypeError, "scale must be two numbers"),
    ],
)  # fmt: skip
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_document():
    """Its blocks run as they stand there, one after another."""
    page = (ROOT / "docs" / "sphere.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(block, names)
    torch.testing.assert_close(names["again"], F.normalize(names["y"]))
    assert abs(names["estimate"] / 50 - 1) < 0.1
    public = set(re.findall(r"`(?:hk\.sphere\.)?(\w+)", page)) | set(re.findall(r"hk\.sphere\.(\w+)", page))
    assert set(S.__all__) <= public
