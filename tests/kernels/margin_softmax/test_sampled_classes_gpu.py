"""Sampled classes on a GPU: the numbers of the gathered rows, without the gathered copy."""

import copy

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.margin_softmax.rows import rows_of_classes

from .test_gpu import DTYPES, problem, step

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def triton_backend():
    with hk.backend("triton"):
        yield


def sampled(n, c, d, r, dtype, sub_centers=1):
    """(x, the whole weight, target), (x, the gathered weight, positions), classes; unsampled rows hold NaN."""
    x, few, place = problem(n, r * sub_centers, d, dtype)
    place %= r
    classes = torch.randperm(c, device="cuda")[:r].sort().values
    rows = rows_of_classes(classes, sub_centers)
    weight = torch.full((c * sub_centers, d), torch.nan, dtype=dtype, device="cuda")
    weight[rows] = few.detach()
    return (x, weight.requires_grad_(), classes[place]), (x, few, place), classes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize(("n", "c", "d", "r"), [(1, 50, 64, 1), (33, 3000, 130, 700), (256, 50000, 512, 5000)])
def test_sampled_classes_equal_the_gathered_rows(n, c, d, r, sub_centers, dtype, poisoned_memory):
    whole, gathered, classes = sampled(n, c, d, r, dtype, sub_centers)
    for options in ({}, {"margin": hk.margins.CurricularFace().cuda()}, {"label_smoothing": 0.1}, {"scale": 20.0}):
        heads = [copy.deepcopy(options) | {"sub_centers": sub_centers} for _ in range(2)]
        loss, dx, dweight = step(*whole, classes=classes, **heads[0])
        right, dx_right, dfew = step(*gathered, **heads[1])
        assert dweight.is_sparse and dweight.is_coalesced() and dweight.shape == whole[1].shape
        assert torch.equal(dweight.indices()[0], rows_of_classes(classes, sub_centers))
        close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        for mine, other in ((loss, right), (dx, dx_right), (dweight.values(), dfew)):
            assert (mine.double() - other.double()).norm() <= close * other.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_sampled_classes(dtype):
    """Beyond the sparse gradient nothing is as large as the rows that take part."""
    n, c, d, r = 256, 600_000, 512, 300_000
    whole, gathered, classes = sampled(n, c, d, r, dtype)
    del gathered
    step(*whole, classes=classes)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = step(*whole, classes=classes)[1:]
    assert gradients[1].is_sparse
    extra = torch.cuda.max_memory_allocated() - before - r * (d * dtype.itemsize + 8)
    assert extra < 300 * 2**20 and extra < r * d * 4


def test_sampled_classes_skip_capture_and_repeat():
    whole, gathered, classes = sampled(200, 60_000, 64, 20_000, torch.float16)
    options = {"skip_budget": 0.05, "skip_report": torch.zeros(2, dtype=torch.float64, device="cuda"), "scale": 30.0}
    right = step(*gathered, **options)
    report = options["skip_report"].clone()
    eager = step(*whole, classes=classes, **options)
    assert torch.equal(options["skip_report"], report)
    torch.testing.assert_close(eager[2].values(), right[2], rtol=1e-2, atol=1e-5)
    again = step(*whole, classes=classes, **options)
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(eager, again, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*whole, classes=classes, **options)
    graph.replay()
    assert torch.equal(captured[0], eager[0]) and torch.equal(captured[1], eager[1])
    assert torch.equal(captured[2].values(), eager[2].values())


def test_wrong_sampled_classes_read_nothing_outside(monkeypatch):
    (x, weight, target), _, classes = sampled(20, 500, 64, 100, torch.float32)
    right = hk.margin_softmax_loss(x, weight, target, classes=classes, reduction="none")
    others = torch.ones(500, dtype=torch.bool, device="cuda").index_fill_(0, classes, False).nonzero()[:, 0]
    missing = target.clone()
    missing[3], missing[11], missing[12] = others[0], 500, -5
    loss = hk.margin_softmax_loss(x, weight, missing, classes=classes, reduction="none")
    wrong = torch.tensor([3, 11, 12], device="cuda")
    assert loss[wrong].isnan().all()
    keep = torch.ones(20, dtype=torch.bool, device="cuda").index_fill_(0, wrong, False)
    assert torch.equal(loss[keep], right[keep])
    outside = classes.clone()
    outside[0], outside[-1] = -(10**12), 10**12
    bias = torch.zeros(500, device="cuda")
    hk.margin_softmax_loss(x, weight, target, classes=outside, bias=bias).backward()
    torch.cuda.synchronize()
    assert weight.grad._indices().min() >= 0 and weight.grad._indices().max() < 500
    monkeypatch.setenv("HYPERKERNELS_CHECK", "1")
    for labels, sample in ((missing, classes), (target, outside), (target, classes.flip(0))):
        with pytest.raises((IndexError, ValueError), match=r"target|classes"):
            hk.margin_softmax_loss(x, weight, labels, classes=sample)


def test_sampled_classes_compile_and_take_autocast():
    (x, weight, target), (_, few, place), classes = sampled(33, 700, 64, 300, torch.float32)
    compiled = torch.compile(hk.margin_softmax_loss, fullgraph=True)
    loss, dx, dweight = step(x, weight, target, classes=classes)
    other = compiled(x, weight, target, classes=classes)
    torch.testing.assert_close(other, loss)
    for mine, right in zip(torch.autograd.grad(other, (x, weight)), (dx, dweight), strict=True):
        torch.testing.assert_close(mine.to_dense(), right.to_dense())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = step(x, weight, target, classes=classes)
        wanted = step(x, few, place)
    assert half[2].is_sparse and half[2].dtype == torch.float32
    torch.testing.assert_close(half[0], wanted[0])
    torch.testing.assert_close(half[2].values(), wanted[2])


def test_sampled_classes_do_not_synchronise():
    (x, weight, target), _, classes = sampled(64, 3000, 128, 1000, torch.bfloat16)
    step(x, weight, target, classes=classes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, weight, target, classes=classes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
