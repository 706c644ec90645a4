"""Sampled classes: the same numbers as the head over the rows gathered from the weight, without the gathered copy."""

import subprocess
import sys
from functools import partial

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.margin_softmax import statistics
from hyperkernels.kernels.margin_softmax.rows import rows_of_classes
from tests.support import COMPILERS, ROOT
from tests.support.accuracy import assert_as_accurate
from tests.support.margin_softmax_cases import BACKENDS, problem, textbook_loss_and_gradients
from tests.support.sampled_classes_cases import FLOAT64, C, R, sample, sampled_problem, spread

# Each makes a head of its own: some margins keep state.
HEADS = {
    "arcface": lambda: partial(hk.margin_softmax_loss, margin=hk.margins.ArcFace(0.5)),
    "curricularface": lambda: partial(hk.margin_softmax_loss, margin=hk.margins.CurricularFace()),
    "adaface": lambda: partial(hk.margin_softmax_loss, margin=hk.margins.AdaFace()),
    "mvsoftmax": lambda: partial(hk.margin_softmax_loss, margin=hk.margins.MVSoftmax()),
    "smoothed": lambda: partial(hk.margin_softmax_loss, label_smoothing=0.1),
    "smoothed others": lambda: partial(
        hk.margin_softmax_loss, label_smoothing=0.1, smoothing_over="others", reduction="none"
    ),
    "raw rows": lambda: partial(
        hk.margin_softmax_loss, margin=hk.margins.NormFace(), scale=0.3, normalize_x=False, normalize_weight=False
    ),
    "all cosines kept": lambda: partial(hk.margin_softmax_loss, workspace=2**30),
    "sface": lambda: hk.sface_loss,
    "sphereface2": lambda: partial(hk.sphereface2_loss, bias=torch.tensor(-3.0)),
    "uniface": lambda: partial(hk.uniface_loss, bias=2.0),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with hk.backend(request.param):
        yield request.param


def gradients(loss, *leaves):
    return [loss.detach(), *(g.to_dense() for g in torch.autograd.grad(loss.sum(), leaves))]


def assert_same(found, wanted, classes, sub_centers=1):
    """The loss, dx and further gradients, the last that of the weight."""
    *found, dweight = found
    *wanted, dfew = wanted
    rows = rows_of_classes(classes, sub_centers)
    for mine, right in (*zip(found, wanted, strict=True), (dweight[rows], dfew)):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-14)
    dweight[rows] = 0
    assert not dweight.any()


@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_equals_the_gathered_rows(name, sub_centers, backend, poisoned_memory):
    whole, gathered, classes = sampled_problem(sub_centers=sub_centers)
    found = gradients(HEADS[name]()(*whole, sub_centers=sub_centers, classes=classes), *whole[:2])
    wanted = gradients(HEADS[name]()(*gathered, sub_centers=sub_centers), *gathered[:2])
    assert_same(found, wanted, classes, sub_centers)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_numbers_per_class_keep_their_index(smoothing, backend):
    whole, gathered, classes = sampled_problem()
    numbers = [torch.rand(R, dtype=FLOAT64).add(0.5), torch.randn(R, dtype=FLOAT64), torch.rand(R, dtype=FLOAT64)]
    found, wanted = (
        gradients(
            hk.margin_softmax_loss(
                *arguments,
                class_scale=scale,
                bias=bias,
                margin=hk.margins.ClassMargin(margins),
                label_smoothing=smoothing,
                **options,
            ),
            arguments[0],
            scale,
            bias,
            margins,
            arguments[1],
        )
        for arguments, (scale, bias, margins), options in (
            (whole, [spread(v, classes, C) for v in numbers], {"classes": classes}),
            (gathered, [v.requires_grad_() for v in numbers], {}),
        )
    )
    for i in (2, 3, 4):
        found[i] = found[i][classes]
    assert_same(found, wanted, classes)


@pytest.mark.parametrize("absent", [None, -7])
@pytest.mark.parametrize("sub_centers", [1, 2])
def test_statistics(sub_centers, absent, backend):
    (x, weight, target), (_, few, place), classes = sampled_problem(sub_centers=sub_centers)
    if absent is not None:
        target[3:6] = place[3:6] = absent
    options = {"sub_centers": sub_centers, "absent_index": absent}
    found = hk.class_statistics(x, weight, target, classes=classes, **options)
    wanted = hk.class_statistics(x, few, place, **options)
    for name, mine, right in zip(found._fields, found, wanted, strict=True):
        if name == "hardest_class":
            right = torch.where(right < 0, right, classes[right.clamp_min(0)])
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-14, msg=lambda m, name=name: f"{name}: {m}")
    assert (found.hardest_class[:3] == -1).all() and (found.hardest_class[3:] >= 0).all()


def test_an_ignored_class_may_be_a_sampled_one(backend):
    (x, weight, target), _, classes = sampled_problem(ignored=0)
    ignored = target[4].item()
    loss = hk.margin_softmax_loss(x, weight, target, classes=classes, ignore_index=ignored, reduction="none")
    assert torch.equal(loss == 0, target == ignored)
    position = int((classes == ignored).nonzero())
    other = hk.margin_softmax_loss(x, weight, target, classes=classes, ignore_index=position - 100, reduction="none")
    assert (other > 0).all()


@pytest.mark.parametrize("budget", [1e-3, 0.3])
@pytest.mark.parametrize("sub_centers", [1, 2])
def test_skipping(sub_centers, budget):
    x, few, place = problem(64, 6000, 16, FLOAT64, near=0.5)
    count = len(few) // sub_centers
    place %= count
    classes = sample(20_000, count)
    weight = spread(few, classes, 20_000, sub_centers)
    seen = torch.zeros(2, 2, dtype=FLOAT64)
    options = {"sub_centers": sub_centers, "skip_budget": budget, "scale": 30.0}
    loss = hk.margin_softmax_loss(x, weight, classes[place], classes=classes, skip_report=seen[0], **options)
    right = hk.margin_softmax_loss(x, few, place, skip_report=seen[1], **options)
    assert_same(gradients(loss, x, weight), gradients(right, x, few), classes, sub_centers)
    assert torch.equal(*seen) and 0 < seen[0, 0] <= budget and seen[0, 1] > 0


def test_the_gradient_is_a_coalesced_sparse_tensor_of_the_sampled_rows(backend):
    for dtype in (FLOAT64, torch.float32, torch.bfloat16, torch.float16):
        (x, weight, target), _, classes = sampled_problem(sub_centers=2, dtype=dtype)
        loss = hk.margin_softmax_loss(x, weight, target, classes=classes, sub_centers=2)
        dx, dweight = torch.autograd.grad(loss, (x, weight))
        assert dx.layout == torch.strided and dweight.layout == torch.sparse_coo
        assert dweight.is_coalesced() and dweight.dtype == dtype and dweight.shape == weight.shape
        assert torch.equal(dweight.indices(), rows_of_classes(classes, 2)[None])
        assert dweight.values().shape == (2 * R, 12)
    assert torch.equal(rows_of_classes(torch.tensor([1, 4]), 2), torch.tensor([2, 3, 8, 9]))


def test_a_step_moves_the_sampled_rows_alone(backend):
    (x, weight, target), _, classes = sampled_problem()
    weight = torch.nn.Parameter(torch.where(weight.isnan(), 1.0, weight.detach()))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(2):  # accumulated
        hk.margin_softmax_loss(x, weight, target, classes=classes).backward()
    assert weight.grad.is_sparse
    optimizer.step()
    moved = (weight != before).any(1)
    assert torch.equal(moved.nonzero()[:, 0], classes)
    plain = before.clone().requires_grad_()
    hk.margin_softmax_loss(x, plain, target, classes=classes).backward()
    torch.testing.assert_close(weight.detach(), before - 0.2 * plain.grad.to_dense())


class Dense(torch.autograd.Function):
    """The identity; its gradient is dense, as gradcheck wants it."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to_dense()


@pytest.mark.parametrize("sub_centers", [1, 2])
def test_gradcheck(sub_centers, backend):
    x, weight, _ = problem(4, 14 * sub_centers, 3, FLOAT64)
    classes = torch.tensor([1, 2, 6, 9, 13])
    target = torch.tensor([9, 1, -100, 13])
    bias = torch.randn(14, dtype=FLOAT64, requires_grad=True)

    def loss(x, weight, bias):
        return hk.margin_softmax_loss(
            x, Dense.apply(weight), target, classes=classes, bias=bias, sub_centers=sub_centers, scale=3.0
        )

    assert torch.autograd.gradcheck(loss, (x, weight, bias))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(loss, (x, weight, bias))
        tangents = tuple(torch.randn_like(v) for v in (x, weight))

        def plain(x, weight):
            return hk.margin_softmax_loss(x, weight, target, classes=classes, sub_centers=sub_centers, scale=3.0)

        slope = torch.func.jvp(plain, (x.detach(), weight.detach()), tangents)[1]
        found = torch.autograd.grad(plain(x, weight), (x, weight))
        torch.testing.assert_close(slope, sum((g.to_dense() * t).sum() for g, t in zip(found, tangents, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accuracy(dtype):
    (x, weight, target), (_, few, place), classes = sampled_problem(n=200, d=130, dtype=dtype, ignored=0)
    margin = hk.margins.ArcFace(0.5)
    loss = hk.margin_softmax_loss(x, weight, target, classes=classes, margin=margin, reduction="none")
    found = gradients(loss, x, weight)
    found[2] = found[2][classes]
    truth = textbook_loss_and_gradients(x.double(), few.double(), place, margin)
    peers = textbook_loss_and_gradients(x, few, place, margin)
    for mine, peer, right in zip(found, peers, truth, strict=True):
        assert_as_accurate(mine, peer.to(mine.dtype), right)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiles_in_one_graph(compiler):
    (x, weight, target), _, classes = sampled_problem(dtype=torch.float32)
    bias = torch.randn(C, requires_grad=True)

    def step(f):
        loss = f(x, weight, target, classes=classes, bias=bias, skip_budget=0.01)
        return gradients(loss, x, bias, weight)

    compiled = torch.compile(hk.margin_softmax_loss, fullgraph=True, backend=compiler)
    for mine, right in zip(step(compiled), step(hk.margin_softmax_loss), strict=True):
        torch.testing.assert_close(mine, right)
    with pytest.raises(IndexError, match="classes"):
        hk.margin_softmax_loss(x, weight, target, classes=classes + C)


def check_autocast(head):
    (x, weight, target), _, classes = sampled_problem(dtype=torch.float32)
    halves = [v.detach().bfloat16().requires_grad_() for v in (x, weight)]
    wanted = hk.margin_softmax_loss(*halves, target, classes=classes, margin=hk.margins.MVSoftmax())
    right = torch.autograd.grad(wanted, halves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(x, weight, target, classes=classes, margin=hk.margins.MVSoftmax())
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-3)  # the compiler may round less
    for mine, half in zip(torch.autograd.grad(loss, (x, weight)), right, strict=True):
        assert mine.dtype == torch.float32 and mine.layout == half.layout
        torch.testing.assert_close(mine.to_dense(), half.to_dense().float(), rtol=0.02, atol=1e-3)


def test_autocast(backend):
    check_autocast(hk.margin_softmax_loss)
    (x, weight, target), _, classes = sampled_problem(dtype=torch.float32)
    with pytest.raises(TypeError, match="dtype"):
        hk.margin_softmax_loss(x.bfloat16(), weight, target, classes=classes)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_autocast_compiled(compiler):
    check_autocast(torch.compile(hk.margin_softmax_loss, fullgraph=True, backend=compiler))


def test_backward_twice():
    (x, weight, target), _, classes = sampled_problem()
    loss = hk.margin_softmax_loss(x, weight, target, classes=classes)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, (x, weight)), strict=True):
        assert torch.equal(a.to_dense(), b.to_dense())


def test_errors(backend):
    (x, weight, target), _, classes = sampled_problem()
    outside = int((~torch.isin(torch.arange(C), classes)).nonzero()[0])

    def call(classes=classes, target=target, **options):
        return hk.margin_softmax_loss(x, weight, target, classes=classes, **options)

    for wrong, error, message in (
        (classes.tolist(), TypeError, "torch.Tensor"),
        (classes.int(), TypeError, "int64"),
        (classes[:, None], ValueError, "dimension"),
        (classes[:0], ValueError, "at least one"),
        (classes.flip(0), ValueError, "increasing"),
        (classes.repeat_interleave(2), ValueError, "increasing"),
        (classes.to("meta"), ValueError, "device"),
        (torch.cat([classes, torch.tensor([C])]), IndexError, "classes"),
        (torch.cat([torch.tensor([-1]), classes]), IndexError, "classes"),
    ):
        with pytest.raises(error, match=message):
            call(wrong)
    for wrong in (outside, C, -1, 2**40):
        with pytest.raises(IndexError, match="target"):
            call(target=target.index_fill(0, torch.tensor([7]), wrong))
    with pytest.raises(ValueError, match="one entry per class"):
        call(bias=torch.zeros(R, dtype=FLOAT64))
    for head in (hk.sface_loss, partial(hk.uniface_loss, bias=1.0), partial(hk.sphereface2_loss, bias=1.0)):
        with pytest.raises(IndexError, match="target"):
            head(x, weight, target.index_fill(0, torch.tensor([7]), outside), classes=classes)


def test_rows_that_are_not_contiguous(backend):
    (x, weight, target), (_, few, place), classes = sampled_problem()
    leaf = weight.detach().T.contiguous().requires_grad_()
    loss = hk.margin_softmax_loss(x, leaf.T, target, classes=torch.stack([classes, classes], 1)[:, 0])
    assert torch.equal(loss.detach(), hk.margin_softmax_loss(x, few, place).detach())


MEMORY = """
import sys, torch
import hyperkernels as hk
from bench.memory import peak_bytes
n, count, sampled, d, training = 64, 120_000, 60_000, 256, bool(int(sys.argv[1]))
x, weight = torch.randn(n, d, requires_grad=True), torch.randn(count, d, requires_grad=True)
classes = torch.randperm(count)[:sampled].sort().values
target = classes[torch.randint(sampled, (n,))]
def step(size=sampled):
    with torch.set_grad_enabled(training):
        loss = hk.margin_softmax_loss(x, weight, target, classes=classes, workspace=0)
        return torch.autograd.grad(loss, (x, weight)) if training else loss
step()
print(peak_bytes(step) / (sampled * d * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
def test_memory(training):
    """In gathered copies: none in the forward; in the backward the gradient, which is as large, and no other."""
    command = [sys.executable, "-c", MEMORY, str(int(training))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3 + training


def test_the_plan_is_that_of_the_sampled_classes(monkeypatch):
    (x, weight, target), _, classes = sampled_problem()
    seen = []
    plan = statistics.plan_cpp
    monkeypatch.setattr(statistics, "plan_cpp", lambda *sizes: seen.append(sizes[1]) or plan(*sizes))
    hk.margin_softmax_loss(x, weight, target, classes=classes)
    assert seen == [R]
