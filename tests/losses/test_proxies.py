"""Losses with proxies against their formulas with the whole matrix, and the cases at the edges."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import hyperkernels as hk
from hyperkernels.losses import proxies as proxies_module
from tests.support.accuracy import assert_as_accurate
from tests.support.pair_softmax_cases import compare, labels_of, number, points

from . import formulas_softmax as formulas

LOSSES = hk.losses


@pytest.mark.parametrize("classes", [1, 6, 40])
def test_proxy_anchor(classes):
    x, proxies, y, alpha = points(25), points(classes), labels_of(25, classes), number(32.0)
    theirs = formulas.proxy_anchor(x, y, proxies, 0.1, alpha)
    compare(LOSSES.proxy_anchor(x, y, proxies, alpha=alpha), theirs, [x, proxies, alpha])
    theirs = formulas.proxy_anchor(x, y, proxies, 0.3, 8.0)
    compare(LOSSES.proxy_anchor(x, y, proxies, margin=0.3, alpha=8.0), theirs, [x, proxies])


def test_proxies_may_have_labels_of_their_own():
    x, proxies, y = points(15), points(5), labels_of(15, 5)
    names = torch.tensor([10**12, -7, 3, 0, 99])
    for loss in (LOSSES.proxy_anchor, LOSSES.proxy_nca):
        compare(loss(x, names[y], proxies, names), loss(x, y, proxies), [x, proxies])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("similarity", ["squared_euclidean", "cosine"])
def test_proxy_nca(similarity, normalize):
    x, proxies, y, scale = points(25), points(9), labels_of(25, 11), number(1.7)
    s = formulas.similarities(x, proxies, similarity, normalize)
    theirs = formulas.mean_of(formulas.nca(s, *formulas.pair_masks(y, torch.arange(9)), scale), s)
    mine = LOSSES.proxy_nca(x, y, proxies, similarity=similarity, normalize=normalize, softmax_scale=scale)
    compare(mine, theirs, [x, proxies, scale])


@pytest.fixture(params=[1, 40, 10**6])
def block(request, monkeypatch):
    """Similarities a block: one class each, some, all."""
    monkeypatch.setattr(proxies_module, "_BLOCK", request.param)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("classes", [1, 8])
def test_soft_triple(classes, k, block):
    x, centers, y = points(12), points(classes * k), labels_of(12, classes)
    for options in ({"la": 20.0, "gamma": 0.1, "margin": 0.01}, {"la": 7.0, "gamma": 0.5, "margin": 0.2}):
        theirs = formulas.soft_triple(x, y, centers, k, **options)
        for reduction, wanted in (("none", theirs), ("mean", theirs.mean()), ("sum", theirs.sum())):
            mine = LOSSES.soft_triple(x, y, centers, centers_per_class=k, reduction=reduction, **options)
            compare(mine, wanted, [x, centers])


def test_soft_triple_leaves_out_rows_of_no_class(block):
    x, centers = points(6), points(8)
    y = torch.tensor([0, 3, -1, 4, 10**15, 2])
    mine = LOSSES.soft_triple(x, y, centers, centers_per_class=2)
    counted = (y >= 0) & (y < 4)
    theirs = formulas.soft_triple(x[counted], y[counted], centers, 2, 20.0, 0.1, 0.01).mean()
    compare(mine, theirs, [x, centers])
    mine = LOSSES.soft_triple(x, y.clamp_max(-1), centers, centers_per_class=2)
    assert mine == 0 and not torch.autograd.grad(mine, x)[0].any()


def test_soft_triple_keeps_no_similarities():
    x, centers, y = points(50), points(4000), labels_of(50, 400)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        LOSSES.soft_triple(x, y, centers)
    assert max(kept) <= centers.numel() < 50 * 4000


def test_soft_triple_adds_no_gradient_of_all_centers_for_a_block(monkeypatch):
    monkeypatch.setattr("hyperkernels.losses.proxies._BLOCK", 50 * 10)  # one class a block
    x, centers, y = points(50), points(400), labels_of(50, 40)
    with torch.autograd.profiler.profile() as profile:
        LOSSES.soft_triple(x, y, centers).backward()
    assert not any("slice_backward" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("classes", [None, 50])
def test_nbc_softmax(classes):
    x, y, scale = points(40), labels_of(40, 12, first=5), number(0.7)
    theirs = formulas.nbc(x, y, scale, classes or len(y.unique()))
    compare(LOSSES.nbc_softmax(x, y, scale=scale, num_classes=classes), theirs, [x, scale])


def test_nbc_softmax_of_few_classes():
    for n, classes in ((0, 1), (1, 1), (4, 1)):
        x, y = points(n), labels_of(n, classes)
        loss = LOSSES.nbc_softmax(x, y)
        assert loss == 0
        assert not torch.autograd.grad(loss, x)[0].any()
    x = points(5)  # every row a class
    compare(LOSSES.nbc_softmax(x, torch.arange(5)), formulas.nbc(x, torch.arange(5), 0.2, 5), [x])


@pytest.mark.parametrize("name", ["proxy_anchor", "proxy_nca", "soft_triple"])
def test_without_rows_or_classes_in_the_batch(name):
    centers = points(10)
    for x, y in ((points(0), torch.zeros(0, dtype=torch.int64)), (points(3), torch.full((3,), 10**12))):
        loss = getattr(LOSSES, name)(x, y, centers)
        of_x, of_centers = torch.autograd.grad(loss, (x, centers))
        assert loss.isfinite() and of_x.isfinite().all() and of_centers.isfinite().all()
        if len(x) == 0 or name != "proxy_anchor":
            assert loss == 0 and not of_x.any() and not of_centers.any()


def test_nothing_is_read_on_the_host():
    with FakeTensorMode():
        x, centers = torch.randn(8, 5, requires_grad=True), torch.randn(20, 5, requires_grad=True)
        y = torch.zeros(8, dtype=torch.int64)
        for loss in (LOSSES.proxy_anchor, LOSSES.proxy_nca, LOSSES.soft_triple):
            loss(x, y, centers).backward()
        LOSSES.nbc_softmax(x, y).backward()
        assert x.grad.shape == x.shape and centers.grad.shape == centers.shape


@pytest.mark.parametrize("name", ["proxy_anchor", "proxy_nca", "soft_triple"])
def test_nan_propagates(name):
    x, centers = points(4), points(10)
    with torch.no_grad():
        centers[3, 0] = torch.nan
    assert getattr(LOSSES, name)(x, torch.zeros(4, dtype=torch.int64), centers).isnan()


def test_wrong_arguments_are_named():
    x, y, centers = points(4), labels_of(4, 2), points(10)
    for call, message in (
        (lambda: LOSSES.soft_triple(x, y, centers, centers_per_class=3), "centers must have 3 rows"),
        (lambda: LOSSES.soft_triple(x, y, centers[:0]), "centers must have"),
        (lambda: LOSSES.soft_triple(x, None, centers), "labels must be given"),
        (lambda: LOSSES.soft_triple(x, y, centers, gamma=0.0), "gamma"),
        (lambda: LOSSES.nbc_softmax(x, None), "labels must be given"),
        (lambda: LOSSES.nbc_softmax(x, y, num_classes=0), "num_classes"),
        (lambda: LOSSES.proxy_anchor(x, y, centers, alpha=torch.ones(3)), "alpha"),
        (lambda: LOSSES.proxy_nca(x, y, None), "proxies"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.parametrize("name", ["proxy_anchor", "proxy_nca", "soft_triple", "nbc_softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(name, dtype):
    x, centers, y = points(64, 32, dtype), points(30, 32, dtype), labels_of(64, 10)

    def loss(x, centers):
        if name == "proxy_anchor":
            return formulas.proxy_anchor(x, y, centers, 0.1, 8.0)
        if name == "proxy_nca":
            masks = formulas.pair_masks(y, torch.arange(30))
            return torch.stack(formulas.nca(2 * formulas.similarities(x, centers) - 2, *masks, 3.0)).sum()
        if name == "soft_triple":
            return formulas.soft_triple(x, y, centers, 3, 5.0, 0.1, 0.01).sum()
        return formulas.nbc(x, y, 0.9, 10)

    mine = {
        "proxy_anchor": lambda: LOSSES.proxy_anchor(x, y, centers, alpha=8.0),
        "proxy_nca": lambda: LOSSES.proxy_nca(x, y, centers, softmax_scale=3.0, reduction="sum"),
        "soft_triple": lambda: LOSSES.soft_triple(x, y, centers, centers_per_class=3, la=5.0, reduction="sum"),
        "nbc_softmax": lambda: LOSSES.nbc_softmax(x, y, scale=0.9),
    }[name]()
    assert mine.dtype == torch.float32
    exact = [v.detach().double().requires_grad_() for v in (x, centers)]
    truth, theirs = loss(*exact), loss(x, centers)
    grain = 8 * truth.item() * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    assert_as_accurate(mine.detach(), theirs.float().detach(), truth.detach(), magnitude=grain)
    got, other, right = (
        torch.autograd.grad(v, at, allow_unused=True)
        for v, at in ((mine, (x, centers)), (theirs, (x, centers)), (truth, exact))
    )
    for a, b, c in zip(got, other, right, strict=True):
        if c is not None:
            assert_as_accurate(a, b, c, what="gradient", magnitude=c.norm().item())


def test_gradcheck():
    y = torch.tensor([0, 1, 1, 2])
    x, proxies, alpha = points(4, 3), points(3, 3), number(4.0)
    assert torch.autograd.gradcheck(lambda x, p, a: LOSSES.proxy_anchor(x, y, p, alpha=a), (x, proxies, alpha))
