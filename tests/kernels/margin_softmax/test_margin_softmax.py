"""The class softmax: the reference against a double loop, the C++ kernels against the reference and float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperkernels as hk
from hyperkernels.kernels.margin_softmax import statistics as family
from hyperkernels.kernels.margin_softmax.problem import SMALL
from tests.support.accuracy import assert_as_accurate
from tests.support.margin_softmax_cases import (
    BACKENDS,
    MARGINS,
    backward_arguments,
    loss_and_gradients,
    op_arguments,
    problem,
    reference_statistics,
    textbook_loss_and_gradients,
)

ops = torch.ops.hyperkernels


def unit(v):
    norm = math.sqrt(math.fsum(a * a for a in v))
    return [a / norm for a in v]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_a_double_loop(backend, margin, smoothing):
    x, weight, target = problem(5, 7, 4, torch.float64)
    scale, wanted = 9.0, []
    for row, y in zip(x.tolist(), target.tolist(), strict=True):
        logits = []
        for j, centre in enumerate(weight.tolist()):
            cos = math.fsum(a * b for a, b in zip(unit(row), unit(centre), strict=True))
            if j == y and isinstance(margin, hk.margins.CosFace):
                cos -= margin.m
            if j == y and isinstance(margin, hk.margins.ArcFace):
                theta = math.acos(cos)
                below = theta + margin.m < math.pi
                cos = math.cos(theta + margin.m) if below else cos - margin.m * math.sin(margin.m)
            logits.append(scale * cos)
        lse = math.log(math.fsum(math.exp(z) for z in logits))
        mean = math.fsum(logits) / len(logits)
        wanted.append(lse - (1 - smoothing) * logits[y] - smoothing * mean)
    with hk.backend(backend):
        loss = hk.margin_softmax_loss(
            x, weight, target, margin=margin, scale=scale, reduction="none", label_smoothing=smoothing
        )
        mean = hk.margin_softmax_loss(x, weight, target, margin=margin, scale=scale, label_smoothing=smoothing)
    assert loss.tolist() == pytest.approx(wanted, rel=1e-13)
    assert mean.item() == pytest.approx(math.fsum(wanted) / 5, rel=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_equal_a_double_loop(backend):
    x, weight, target = problem(6, 5, 3, torch.float64)
    target[2] = -7
    with hk.backend(backend):
        s = hk.class_statistics(x, weight, target, scale=5.0, ignore_index=-7)
    for i, (row, y) in enumerate(zip(x.tolist(), target.tolist(), strict=True)):
        cos = [math.fsum(a * b for a, b in zip(unit(row), unit(w), strict=True)) for w in weight.tolist()]
        others = {j: v for j, v in enumerate(cos) if j != y}
        if y == -7:
            wanted = (-math.inf, 0.0, -math.inf, -1, 0.0)
        else:
            hardest = max(others, key=others.__getitem__)
            lse = math.log(math.fsum(math.exp(5 * v) for v in others.values()))
            wanted = (lse, cos[y], others[hardest], hardest, math.fsum(others.values()))
        got = (s.neg_lse[i], s.target_cos[i], s.hardest_cos[i], s.hardest_class[i], s.neg_cos_sum[i])
        assert [v.item() for v in got] == pytest.approx(wanted, rel=1e-12, abs=1e-14)
        norm = 0.0 if y == -7 else math.sqrt(math.fsum(v * v for v in row))
        assert s.x_norm[i].item() == pytest.approx(norm)


@pytest.mark.parametrize(("block", "kept_blocks"), [(32, 0), (5, 0), (5, 2), (5, 3), (13, 1), (4, 4)])
def test_gradcheck_of_the_op(block, kept_blocks):
    x, weight, target = problem(4, 13, 3, torch.float64, ignored=1)

    def statistics(x, weight):
        out = ops.class_statistics(*op_arguments(x, weight, target, 4.0, block, kept_blocks))
        rows = slice(1, None)  # neg_lse of the ignored row is -inf
        return out[0][rows], out[1], out[2][rows], out[5]

    assert torch.autograd.gradcheck(statistics, (x, weight))
    assert torch.autograd.gradcheck(lambda x: statistics(x, weight.detach()), (x,))
    assert torch.autograd.gradcheck(lambda w: statistics(x.detach(), w), (weight,))


@pytest.mark.parametrize("margin", [*MARGINS, hk.margins.ArcFace(0.5, gradient="straight_through")])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck_of_the_loss(margin, smoothing):
    x, weight, target = problem(4, 9, 3, torch.float64, ignored=1)
    options = {"margin": margin, "scale": 3.0, "label_smoothing": smoothing}
    if getattr(margin, "gradient", "exact") == "exact":
        assert torch.autograd.gradcheck(lambda x, w: hk.margin_softmax_loss(x, w, target, **options), (x, weight))
    with hk.backend("reference"):
        wanted = loss_and_gradients(x, weight, target, **options)
    for mine, right in zip(loss_and_gradients(x, weight, target, **options), wanted, strict=True):
        torch.testing.assert_close(mine, right)


SHAPES = [(3, 33, 8), (17, 513, 31), (257, 100, 64), (300, 1030, 16), (64, 9001, 65)]


def check_accuracy(shape, margin, near, dtype, scale):
    """Over enough draws that neither side's luck decides."""
    problems = [problem(*shape, dtype, near=near) for _ in range(max(1, 200 // shape[0]))]

    def stacked(f):
        return [torch.cat([v.flatten() for v in parts]) for parts in zip(*map(f, problems), strict=True)]

    truth = stacked(lambda p: textbook_loss_and_gradients(p[0].double(), p[1].double(), p[2], margin, scale))
    peer = stacked(lambda p: textbook_loss_and_gradients(*p, margin, scale))
    ours = stacked(lambda p: loss_and_gradients(*p, margin=margin, scale=scale, reduction="none"))
    for mine, theirs, right, what in zip(ours, peer, truth, ("loss", "dx", "dweight"), strict=True):
        assert_as_accurate(mine, theirs.to(mine.dtype), right, what=what)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("near", [0.0, 30.0])
def test_accuracy(shape, margin, near, poisoned_memory):
    check_accuracy(shape, margin, near, torch.float32, 64.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [16.0, 30.0, 64.0])
@pytest.mark.parametrize("shape", SHAPES[1:4])
@pytest.mark.parametrize("near", [0.0, 3.0])
def test_accuracy_in_every_precision(shape, near, scale, dtype, poisoned_memory):
    for margin in MARGINS:
        check_accuracy(shape, margin, near, dtype, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("edit", ["on centre", "opposite", "zero row", "zero centre"])
def test_half_precision_is_finite_where_it_hurts(dtype, edit):
    x, weight, target = (v.detach() for v in problem(8, 40, 16, dtype))
    if edit == "zero centre":
        weight[target[0]] = 0
    else:
        x[:] = {"on centre": 4.0, "opposite": -1.0, "zero row": 0.0}[edit] * weight[target]
    for margin in MARGINS:
        results = loss_and_gradients(x, weight, target, margin=margin, scale=64.0)
        assert all(v.isfinite().all() for v in results)


@pytest.mark.parametrize("shape", [(1, 2, 3), *SHAPES])
@pytest.mark.parametrize("margin", MARGINS)
def test_float64_equals_the_textbook(shape, margin, poisoned_memory):
    x, weight, target = problem(*shape, torch.float64)
    wanted = textbook_loss_and_gradients(x, weight, target, margin)
    got = loss_and_gradients(x, weight, target, margin=margin, reduction="none")
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (300, 20_000, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_workspace_buys_speed_and_changes_no_bit(shape, dtype, poisoned_memory):
    x, weight, target = problem(*shape, dtype)
    wanted = loss_and_gradients(x, weight, target, workspace=0)
    for workspace in (None, 2**22, 2**40):
        got = loss_and_gradients(x, weight, target, workspace=workspace)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 40),
    c=st.integers(1, 90),
    d=st.integers(2, 20),
    scale=st.floats(0.5, 80.0),
    smoothing=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    margin=st.sampled_from(MARGINS),
    workspace=st.sampled_from([0, None, 3000, 2**40]),
    ignored=st.floats(0.0, 1.0),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_problem_equals_the_reference(
    n, c, d, scale, smoothing, reduction, margin, workspace, ignored, strided, seed
):
    torch.manual_seed(seed)
    x, weight, target = problem(n, c, d, torch.float64)
    target[torch.rand(n) < ignored] = -1
    if strided:
        x = x.detach().repeat_interleave(2, dim=0)[::2]
        weight = weight.detach().T.contiguous().T
        target = target.repeat_interleave(3)[::3]
    options = {
        "scale": scale,
        "margin": margin,
        "reduction": reduction,
        "label_smoothing": smoothing,
        "ignore_index": -1,
    }
    with hk.backend("reference"):
        wanted = loss_and_gradients(x, weight, target, **options)
    got = loss_and_gradients(x, weight, target, workspace=workspace, **options)
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-7, atol=1e-11)


def test_every_tile_size_and_every_share_of_kept_tiles_agree():
    x, weight, target = problem(300, 331, 12, torch.float64, ignored=3)
    wanted = reference_statistics(x, weight, target, 20.0)
    incoming = [torch.randn(300, dtype=torch.float64) for _ in range(4)]
    incoming[0][:3] = 0
    differentiable = [wanted[i] for i in (0, 1, 2, 5)]
    gradients = torch.autograd.grad(differentiable, (x, weight), incoming)
    for block in (1, 7, 32, 100, 331, 500):
        blocks = -(-331 // block)
        for kept in {0, 1, blocks // 2, blocks}:
            out = ops.class_statistics(*op_arguments(x, weight, target, 20.0, block, kept))
            for mine, right in zip(out, wanted, strict=False):
                torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)
            got = torch.autograd.grad([out[i] for i in (0, 1, 2, 5)], (x, weight), incoming)
            for mine, right in zip(got, gradients, strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-11)


def test_ties_go_to_the_lowest_class():
    weight = torch.eye(4).repeat(100, 1)
    s = hk.class_statistics(torch.eye(4), weight, torch.tensor([0, 1, 3, 2]))
    assert s.hardest_class.tolist() == [4, 5, 2, 3]
    assert s.hardest_cos.tolist() == [1.0] * 4


def test_training_accuracy_comes_from_the_statistics():
    x, weight, target = problem(50, 40, 6, near=2.0)
    s = hk.class_statistics(x, weight, target)
    predicted = (F.normalize(x) @ F.normalize(weight).T).argmax(1)
    assert torch.equal(s.target_cos > s.hardest_cos, predicted == target)


def test_opcheck():
    x, weight, target = problem(6, 40, 5, ignored=1)
    arguments = op_arguments(x, weight, target, 8.0, 16, 2)
    torch.library.opcheck(ops.class_statistics.default, arguments)
    detached = tuple(v.detach() if isinstance(v, torch.Tensor) else v for v in arguments)
    out = ops.class_statistics(*detached)
    incoming = [torch.randn(6) for _ in range(4)]
    torch.library.opcheck(ops.class_statistics_backward.default, backward_arguments(detached, out, incoming))


@pytest.mark.parametrize("workspace", [pytest.param(0, marks=pytest.mark.slow), None])
def test_compiles_in_one_graph(workspace):
    x, weight, target = problem(20, 300, 16, ignored=2)
    head = torch.compile(hk.margin_softmax_loss, fullgraph=True)
    for smoothing in (0.0, 0.1):
        options = {"label_smoothing": smoothing, "workspace": workspace}
        eager = loss_and_gradients(x, weight, target, **options)
        compiled = head(x, weight, target, **options)
        torch.testing.assert_close(compiled.detach(), eager[0])
        for mine, right in zip(torch.autograd.grad(compiled, (x, weight)), eager[1:], strict=True):
            torch.testing.assert_close(mine, right)


def test_a_changing_batch_size_does_not_compile_again_and_again():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    head = torch.compile(hk.margin_softmax_loss, backend=counter, dynamic=True)
    _, weight, _ = problem(1, 20_000, 16)
    for n in range(300, 900, 60):
        x, _, target = problem(n, 20_000, 16)
        loss = head(x, weight, target)
        torch.testing.assert_close(loss, hk.margin_softmax_loss(x, weight, target))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("shape", [(300, 4000, 96), (256, 10, 512), (8, 10, 4096), (5, 129, 64)])
def test_same_bits_every_run_and_on_any_number_of_threads(shape):
    x, weight, target = problem(*shape)
    threads, results = torch.get_num_threads(), []
    for n in (1, 2, 3, 1):
        torch.set_num_threads(n)
        results.append(loss_and_gradients(x, weight, target))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_workspace_bounds_the_kept_cosines():
    for n, c, d, k in [(256, 100_000, 512, 1), (8, 1000, 64, 3), (4096, 1000, 128, 1), (1, 1, 1, 1)]:
        for workspace in (0, 1000, 10**6, 10**9, None):
            block, kept = family.plan_cpp(n, c, k, d, torch.float32, workspace)
            budget = max(c * k * d, SMALL) if workspace is None else workspace
            assert kept * n * block * k * 4 <= budget
            assert 0 <= kept <= -(-c // block)
    block, kept = family.plan_cpp(256, 100_000, 1, 512, torch.float32, 10**9)
    assert kept == -(-100_000 // block)


def test_nothing_is_kept_without_a_backward(monkeypatch):
    x, weight, target = problem(6, 40, 5)
    plan, kept = family.plan_cpp, []

    def spy(*arguments):
        kept.append(plan(*arguments)[1])
        return plan(*arguments)

    monkeypatch.setattr(family, "plan_cpp", spy)
    hk.margin_softmax_loss(x, weight, target)
    with torch.no_grad():
        hk.margin_softmax_loss(x, weight, target)
    hk.margin_softmax_loss(x.detach(), weight.detach(), target)
    assert kept == [1, 0, 0]
