"""Losses that spread or align points, against their formulas with the whole matrix, and the cases at the edges."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import hyperkernels as hk
from hyperkernels.losses import spread as spread_module
from tests.support.accuracy import assert_as_accurate
from tests.support.pair_softmax_cases import compare, labels_of, number, points

from . import formulas_softmax as formulas

LOSSES = hk.losses


@pytest.mark.parametrize("t", [2.0, 0.5, 30.0])
def test_uniformity(t):
    x = points(21)
    compare(LOSSES.uniformity(x, t=t), formulas.uniformity(F.normalize(x), t), [x])
    compare(LOSSES.uniformity(x, t=t, similarity="squared_euclidean"), formulas.uniformity(x, t), [x])


def test_uniformity_of_two_sets():
    x, ref = points(11), points(14)
    theirs = (-2.0 * torch.cdist(F.normalize(x), F.normalize(ref)).square()).exp().mean().log()
    compare(LOSSES.uniformity(x, ref), theirs, [x, ref])
    number_of, of_ref = torch.arange(11), torch.arange(14)
    keep = number_of[:, None] != of_ref
    theirs = (-2.0 * torch.cdist(F.normalize(x), F.normalize(ref)).square()).exp()[keep].mean().log()
    compare(LOSSES.uniformity(x, ref, ids=number_of, ref_ids=of_ref), theirs, [x, ref])


@pytest.fixture(params=[1, 60, 10**6])
def block(request, monkeypatch):
    """Similarities a block: one row each, some, all."""
    monkeypatch.setattr(spread_module, "_BLOCK", request.param)


@pytest.mark.parametrize("n", [2, 3, 19])
@pytest.mark.parametrize("high", [0.8, 0.3])
def test_calibrated_uniformity(n, high, block):
    x, fused = points(n), points(n, 4)
    theirs = formulas.calibrated_uniformity(x, fused, 2.0, 0.0, high)
    compare(LOSSES.calibrated_uniformity(x, fused, max_sim=high), theirs, [x, fused])


def test_calibrated_uniformity_without_calibration_is_uniformity():
    x, fused = points(9), points(9)
    mine = LOSSES.calibrated_uniformity(x, fused, min_sim=1.0, max_sim=1.0)
    compare(mine, LOSSES.uniformity(x), [x])


def test_calibrated_uniformity_keeps_no_similarities(monkeypatch):
    monkeypatch.setattr(spread_module, "_BLOCK", 10000)
    x, fused, kept = points(300), points(300), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        LOSSES.calibrated_uniformity(x, fused)
    assert max(kept) <= x.numel() < 300 * 300


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("m", [None, 1, 12])
def test_nearest_pair_packing(n, m):
    x, gallery = points(n), None if m is None else points(m)
    theirs = formulas.hyperface(x, gallery, 0.5)
    leaves = [x] if gallery is None else [x, gallery]
    compare(LOSSES.nearest_pair_packing(x, gallery), theirs, leaves)


def test_nearest_pair_packing_moves_one_pair():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(LOSSES.nearest_pair_packing(x), x)
    assert gradient.norm(dim=1).ne(0).tolist() == [True, False, True, False]  # the first of two equally close pairs


@pytest.mark.parametrize("m", [10, 16])
def test_siglip(m):
    x, ref, t, b = points(10), points(m), number(10.0), number(-10.0)
    s = formulas.similarities(x, ref)
    theirs = formulas.siglip(s, *formulas.paired_masks(10, m), t, b)
    for reduction, wanted in (("none", theirs), ("mean", theirs.mean()), ("sum", theirs.sum())):
        compare(LOSSES.siglip(x, ref, t=t, b=b, reduction=reduction), wanted, [x, ref, t, b])
    y, ref_y = labels_of(10, 4), labels_of(m, 6)
    theirs = formulas.siglip(s, *formulas.pair_masks(y, ref_y), t, b).mean()
    compare(LOSSES.siglip(x, ref, y, ref_y, t=t, b=b), theirs, [x, ref, t, b])
    ids, ref_ids = labels_of(10, 5), labels_of(m, 5)
    theirs = formulas.siglip(s, *formulas.pair_masks(y, ref_y, ids, ref_ids), t, b).mean()
    compare(LOSSES.siglip(x, ref, y, ref_y, ids=ids, ref_ids=ref_ids, t=t, b=b), theirs, [x, ref, t, b])


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_meow(columns):
    x, ref, t = points(15), points(15), number(0.6)
    y = torch.stack([labels_of(15, 3) for _ in range(columns)], 1)
    theirs = formulas.meow(formulas.similarities(x, ref), y, t)
    for reduction, wanted in (("none", theirs), ("mean", theirs.mean())):
        compare(LOSSES.meow(x, y, ref, temperature=t, reduction=reduction), wanted, [x, ref, t])


def test_meow_of_rows_that_nothing_tells_apart():
    x, ref = points(4), points(4)
    loss = LOSSES.meow(x, torch.zeros(4, 2, dtype=torch.int64), ref)
    assert loss == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, ref)))


CALLS = {
    "uniformity": lambda x, other: LOSSES.uniformity(x),
    "uniformity_of_two_sets": lambda x, other: LOSSES.uniformity(x, other),
    "calibrated_uniformity": lambda x, other: LOSSES.calibrated_uniformity(x, other),
    "nearest_pair_packing": lambda x, other: LOSSES.nearest_pair_packing(x, other),
    "siglip": lambda x, other: LOSSES.siglip(x, other),
    "meow": lambda x, other: LOSSES.meow(x, torch.arange(2 * len(x)).view(-1, 2), other),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows(name, n):
    x, other = points(n), points(n)
    loss = CALLS[name](x, other)
    gradients = torch.autograd.grad(loss, (x, other), allow_unused=True)
    assert loss.isfinite() and all(g is None or g.isfinite().all() for g in gradients)
    if n == 0:
        assert loss == 0


@pytest.mark.parametrize("name", ["uniformity", "calibrated_uniformity", "nearest_pair_packing"])
def test_one_row_is_no_pair(name):
    x = points(1)
    loss = LOSSES.calibrated_uniformity(x, x) if name == "calibrated_uniformity" else getattr(LOSSES, name)(x)
    assert loss == 0
    assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("name", CALLS)
def test_duplicates(name):
    x, other = (torch.ones(4, 3, dtype=torch.float64).requires_grad_() for _ in range(2))
    loss = CALLS[name](x, other)
    gradients = torch.autograd.grad(loss, (x, other), allow_unused=True)
    assert loss.isfinite() and all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_read_on_the_host(name):
    with FakeTensorMode():
        x, other = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5, requires_grad=True)
        CALLS[name](x, other).backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("name", CALLS)
def test_nan_propagates(name):
    x, other = points(5), points(5)
    with torch.no_grad():
        x[2, 1] = torch.nan
    assert CALLS[name](x, other).isnan()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(name, dtype):
    x, other = points(40, 32, dtype), points(40, 32, dtype)

    def loss(x, other):
        if name == "uniformity":
            s = formulas.similarities(x)[~torch.eye(40, dtype=torch.bool)]
            return (4 * s - 4).logsumexp(0) - torch.tensor(40.0 * 39).log().to(s)
        if name == "uniformity_of_two_sets":
            return (4 * formulas.similarities(x, other) - 4).flatten().exp().mean().log()
        if name == "calibrated_uniformity":
            return formulas.calibrated_uniformity(x, other, 2.0, 0.0, 0.8)
        if name == "nearest_pair_packing":
            return formulas.hyperface(x, other, 0.5)
        s = formulas.similarities(x, other)
        if name == "siglip":
            return formulas.siglip(s, *formulas.paired_masks(40, 40), 10.0, -10.0).mean()
        return formulas.meow(s, torch.arange(80).view(-1, 2), 0.5).mean()

    mine = CALLS[name](x, other)
    assert mine.dtype == torch.float32
    exact = [v.detach().double().requires_grad_() for v in (x, other)]
    truth, theirs = loss(*exact), loss(x, other)
    grain = 8 * (1 + abs(truth.item())) * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    assert_as_accurate(mine.detach(), theirs.float().detach(), truth.detach(), magnitude=grain)
    got, peers, right = (
        torch.autograd.grad(v, at, allow_unused=True)
        for v, at in ((mine, (x, other)), (theirs, (x, other)), (truth, exact))
    )
    for a, b, c in zip(got, peers, right, strict=True):
        if c is not None:
            assert_as_accurate(a, b, c, what="gradient", magnitude=4 * c.norm().item())


def test_gradcheck():
    x, ref, t, b = points(4, 3), points(4, 3), number(2.0), number(-1.0)
    assert torch.autograd.gradcheck(lambda *v: LOSSES.siglip(v[0], v[1], t=v[2], b=v[3]), (x, ref, t, b))
    assert torch.autograd.gradcheck(LOSSES.uniformity, (x, ref))
    assert torch.autograd.gradcheck(LOSSES.calibrated_uniformity, (x, ref))


def test_wrong_arguments_are_named():
    x, y = points(4), labels_of(4, 2)
    for call, message in (
        (lambda: LOSSES.uniformity(x, similarity="dot"), "similarity"),
        (lambda: LOSSES.uniformity(x, t=0.0), "t must be"),
        (lambda: LOSSES.calibrated_uniformity(x, x[:2]), "fused must have one row"),
        (lambda: LOSSES.calibrated_uniformity(x, x, min_sim=0.9), "max_sim"),
        (lambda: LOSSES.nearest_pair_packing(x, alpha="1"), "alpha"),
        (lambda: LOSSES.siglip(x, x[:2]), "ref must have a row for each"),
        (lambda: LOSSES.siglip(x, x, None, y), "labels must be given"),
        (lambda: LOSSES.siglip(x, x, b=torch.ones(4)), "b must be"),
        (lambda: LOSSES.meow(x, y, x), "labels must have 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_autocast():
    x, ref = points(8, dtype=torch.float32), points(8, dtype=torch.float32)
    for loss in (LOSSES.siglip, LOSSES.uniformity, lambda x, ref: LOSSES.info_nce(x, ref=ref)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mine = loss(x, ref)
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, loss(x, ref), rtol=0.05, atol=0.05)
        assert torch.autograd.grad(mine, x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["calibrated_uniformity", "soft_triple"])
def test_autocast_rounds_the_embeddings_and_nothing_else(name):
    x, other, y = points(40, dtype=torch.float32), points(40, dtype=torch.float32), torch.arange(40) % 4
    a, b = (F.normalize(v).bfloat16().double() for v in (x, other))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if name == "soft_triple":
            mine = LOSSES.soft_triple(x, y, other)
            s = (a @ b.T).view(40, 4, 10)
            relaxed = (torch.softmax(s / 0.1, 2) * s).sum(2)
            wanted = F.cross_entropy(20 * (relaxed - 0.01 * F.one_hot(y, 4)), y)
        else:
            mine = LOSSES.calibrated_uniformity(x, other)
            i, j = torch.triu_indices(40, 40, 1)
            wanted = (4 * ((a @ a.T) - (b @ b.T).clamp(0, 0.8)))[i, j].exp().mean().log()
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(mine, x)[0].dtype == torch.float32
