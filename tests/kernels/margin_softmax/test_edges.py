"""The class softmax where it hurts: degenerate rows and targets, extreme norms, NaN, and wrong arguments."""

import math

import pytest
import torch

import hyperkernels as hk
from tests.support.margin_softmax_cases import (
    BACKENDS,
    MARGINS,
    backward_arguments,
    loss_and_gradients,
    op_arguments,
    problem,
)


@pytest.fixture
def backend(request):
    with hk.backend(request.param):
        yield request.param


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [*MARGINS, hk.margins.ArcFace(0.5, past_pi="wrap")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "edit",
    [
        "zero row",
        "zero centre",
        "tiny row",
        "on centre",
        "opposite",
        "one class",
        "one row",
        "all ignored",
        "empty",
    ],
)
def test_finite(backend, dtype, margin, smoothing, edit):
    n, c = {"one row": (1, 40), "one class": (8, 1), "empty": (0, 40)}.get(edit, (8, 40))
    x, weight, target = (v.detach() for v in problem(n, c, 16, dtype))
    if edit == "zero row":
        x[0] = 0
    elif edit == "zero centre":
        weight[target[0]] = 0
    elif edit == "tiny row":
        x[0] = 1e-20
    elif edit == "on centre":
        x[:] = weight[target] * 7
    elif edit == "opposite":
        x[:] = -weight[target]
    elif edit == "all ignored":
        target[:] = -100
    loss, dx, dweight = loss_and_gradients(x, weight, target, margin=margin, label_smoothing=smoothing)
    assert loss.isfinite() and dx.isfinite().all() and dweight.isfinite().all()
    if edit in ("zero row", "tiny row"):
        assert not dx[0].any() and dx[1:].any()
    if edit == "zero centre":
        assert not dweight[target[0]].any() and dweight.any()
    if edit in ("all ignored", "empty"):
        assert loss == 0 and not dx.any() and not dweight.any()


def test_learned_samples_keep_their_relative_precision():
    """Where p_y -> 1 the usual lse - z_y has cancelled to zero in float32."""
    x, weight, target = problem(6, 20, 64, near=50.0)
    loss = hk.margin_softmax_loss(x, weight, target, reduction="none", margin=hk.margins.NormFace())
    truth = hk.margin_softmax_loss(x.double(), weight.double(), target, reduction="none", margin=hk.margins.NormFace())
    assert (truth < 1e-9).any()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-4, atol=0)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-11, 1e11, 1e30])
def test_norms_neither_overflow_nor_vanish(backend, magnitude):
    x, weight, target = problem(9, 50, 24)
    big = weight.detach() * magnitude
    wanted = loss_and_gradients(x.double(), big.double(), target, eps=1e-37)
    got = loss_and_gradients(x, big, target, eps=1e-37)
    torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(got[1].double(), wanted[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got[2].double() * magnitude, wanted[2] * magnitude, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_ignored_rows_cannot_poison(backend):
    x, weight, target = problem(5, 30, 8)
    clean = loss_and_gradients(x[1:], weight, target[1:])
    x = x.detach().clone()
    x[0], target[0] = math.nan, -100
    loss, dx, dweight = loss_and_gradients(x, weight, target)
    torch.testing.assert_close(loss, clean[0])
    torch.testing.assert_close(dweight, clean[2])
    assert not dx[0].any()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_data_shows(backend, bad):
    x, weight, target = (v.detach() for v in problem(5, 600, 8))
    x[3, 2] = bad
    loss = hk.margin_softmax_loss(x, weight, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, False, True, False]
    weight[(target[0] + 1) % 600, 0] = bad
    assert hk.margin_softmax_loss(x, weight, target).isnan()


def test_targets_out_of_range():
    x, weight, target = problem(5, 30, 8)
    for backend in BACKENDS:
        for wrong in (30, -1, 2**40):
            target[4] = wrong
            with hk.backend(backend), pytest.raises(IndexError, match="target"):
                hk.margin_softmax_loss(x, weight, target)


def test_second_and_forward_mode_derivatives_are_refused_not_dropped():
    x, weight, target = problem(5, 30, 8)
    (dx,) = torch.autograd.grad(hk.margin_softmax_loss(x, weight, target), x, create_graph=True)
    with pytest.raises(RuntimeError, match="class_statistics has no second derivative"):
        torch.autograd.grad(dx.square().sum(), x)

    scale = torch.tensor(5.0, requires_grad=True)
    loss = hk.margin_softmax_loss(x, weight, target, scale=scale, margin=hk.margins.NormFace())
    (dscale,) = torch.autograd.grad(loss, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="class_statistics has no second derivative"):
        torch.autograd.grad(dscale, scale)

    def loss(x):
        return hk.margin_softmax_loss(x, weight.detach(), target, scale=4.0)

    arguments = (x.detach(),), (torch.randn(5, 8),)
    with pytest.raises(RuntimeError, match="class_statistics has no forward-mode derivative"):
        torch.func.jvp(loss, *arguments)
    with hk.backend("reference"):
        assert torch.func.jvp(loss, *arguments)[1] != 0
        (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
        assert torch.autograd.grad(dx.square().sum(), x)[0].any()


def test_a_learned_margin_survives_an_ignored_row():
    x, weight, target = problem(5, 30, 8)
    x = x.detach().clone()
    x[0], target[0] = math.nan, -100
    p = torch.tensor(0.1, requires_grad=True)
    hk.margin_softmax_loss(x, weight, target, margin=lambda cos, norm: cos - p * norm).backward()
    assert p.grad.isfinite() and p.grad != 0


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_operands_and_rounds_no_logit(backend, half):
    x, weight, target = problem(5, 30, 8)
    wanted = hk.margin_softmax_loss(x.to(half).float(), weight.to(half).float(), target)
    with torch.autocast("cpu", dtype=half):
        loss = hk.margin_softmax_loss(x, weight, target)
        mixed = hk.margin_softmax_loss(x.to(half), weight, target)
        kept = hk.margin_softmax_loss(x.double(), weight.double(), target)
    assert loss.dtype == torch.float32 and kept.dtype == torch.float64
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(mixed, loss)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, (x, weight)))


def test_without_an_error_a_target_out_of_range_is_nan():
    """Where no device-side error can be raised, here under torch.compile."""
    x, weight, target = problem(5, 30, 8)
    target[4] = 30
    with hk.backend("reference"):
        loss = torch.compile(hk.margin_softmax_loss, backend="eager")(x, weight, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, False, False, True]


def test_the_backward_op_reads_nothing_out_of_bounds():
    x, weight, target = (v.detach() for v in problem(6, 40, 5))
    forward = op_arguments(x, weight, target, 8.0, 16, 2, class_scale=torch.ones(40), bias=torch.zeros(40))
    out = torch.ops.hyperkernels.class_statistics(*forward)
    arguments = backward_arguments(forward, out, [torch.randn(6) for _ in range(4)], needs=(True,) * 4)
    torch.ops.hyperkernels.class_statistics_backward(*arguments)
    for position in (*range(4), *range(6, 10), *range(12, 18)):
        short = [a[:1] if i == position else a for i, a in enumerate(arguments)]
        with pytest.raises((ValueError, TypeError)):
            torch.ops.hyperkernels.class_statistics_backward(*short)


def test_backward_twice():
    x, weight, target = problem(5, 3000, 8)
    loss = hk.margin_softmax_loss(x, weight, target, workspace=2**40)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, (x, weight)), strict=True):
        assert torch.equal(a, b)


def test_only_one_side_needs_a_gradient():
    x, weight, target = problem(5, 30, 8)
    both = torch.autograd.grad(hk.margin_softmax_loss(x, weight, target), (x, weight))
    (dx,) = torch.autograd.grad(hk.margin_softmax_loss(x, weight.detach(), target), x)
    (dweight,) = torch.autograd.grad(hk.margin_softmax_loss(x.detach(), weight, target), weight)
    assert torch.equal(dx, both[0]) and torch.equal(dweight, both[1])


X, W, T = torch.randn(4, 3), torch.randn(5, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1], W, T), {}, TypeError, "x must be a torch.Tensor; got list"),
        ((X.int(), W.int(), T), {}, TypeError, "x must have dtype float64, float32, bfloat16, float16; got int32"),
        ((X[0], W, T), {}, ValueError, r"x must have 2 dimension\(s\); got shape \(3,\)"),
        ((X, W.double(), T), {}, TypeError, "weight must have the dtype of x"),
        ((X, W[:, :2], T), {}, ValueError, r"weight must have the embedding size of x \(3\)"),
        ((X, W[:0], T), {}, ValueError, "weight must have at least one row"),
        ((X, W, T.int()), {}, TypeError, "target must have dtype int64; got int32"),
        ((X, W, T[:3]), {}, ValueError, r"target must have one entry per row of x \(4\)"),
        ((X, W.to("meta"), T), {}, ValueError, "weight must be on the device of x"),
        ((X, W, T), {"scale": 0}, ValueError, "scale must be greater than 0.0; got 0"),
        ((X, W, T), {"scale": math.inf}, ValueError, "scale must be finite"),
        ((X, W, T), {"scale": 1e39}, ValueError, "scale must be in"),
        ((X, W, T), {"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum'; got 'avg'"),
        ((X, W, T), {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0.0, 1.0\]; got 1.5"),
        ((X, W, T), {"margin": 0.5}, TypeError, "margin must be callable"),
        ((X, W, T), {"margin": lambda t, n: t.sum()}, ValueError, r"margin must return shape \(4,\)"),
        ((X, W, T), {"workspace": -1}, ValueError, "workspace must be at least 0"),
        ((X, W, T), {"workspace": 1.5}, TypeError, "workspace must be an int"),
        ((X, W, T), {"ignore_index": None}, TypeError, "ignore_index must be an int"),
        ((X, W, T), {"eps": 0}, ValueError, "eps must be greater than 0.0"),
        ((X, W, T), {"scale": torch.ones(3)}, ValueError, r"scale must be a number, a scalar or \[N\] with N = 4"),
        ((X, W, T), {"scale": torch.ones(4).int()}, TypeError, "scale must have dtype"),
        ((X, W, T), {"class_scale": torch.ones(4)}, ValueError, r"class_scale must have one entry per class \(5\)"),
        ((X, W, T), {"bias": torch.ones(5, device="meta")}, ValueError, "bias must be on the device of x"),
        ((X, W, T), {"sub_centers": 2}, ValueError, "weight must have sub_centers=2 rows per class; got 5 rows"),
        ((X, W, T), {"sub_centers": 0}, ValueError, "sub_centers must be at least 1"),
        ((X, W, T), {"smoothing_over": "none"}, ValueError, "smoothing_over must be one of 'all', 'others'"),
        ((X, W, T), {"skip_budget": 2.0}, ValueError, r"skip_budget must be in \[0.0, 1.0\]"),
        ((X, W, T), {"skip_budget": 0.1, "label_smoothing": 0.1}, ValueError, "skip_budget must be 0 with"),
        ((X, W, T), {"skip_report": torch.zeros(2)}, TypeError, "skip_report must have dtype float64"),
        ((X, W, T), {"skip_report": torch.zeros(3).double()}, ValueError, r"skip_report must be \[2\]"),
        ((X, W, T), {"normalize_x": False}, ValueError, "works on cosines"),
    ],
)
def test_wrong_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        hk.margin_softmax_loss(*arguments, **options)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("magnitude", [1e-290, 1e-160, 1e155, 1e200, 1e290])
@pytest.mark.parametrize("sub_centers", [1, 2])
def test_long_and_short_rows_of_doubles(backend, magnitude, sub_centers):
    x, weight, target = (v.detach() for v in problem(9, 50 * sub_centers, 24, torch.float64))
    target = target % 50
    wanted = loss_and_gradients(x, weight, target, sub_centers=sub_centers)
    loss, dx, dweight = loss_and_gradients(
        x * magnitude, weight * magnitude, target, sub_centers=sub_centers, eps=1e-305
    )
    torch.testing.assert_close(loss, wanted[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(dx * magnitude, wanted[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dweight * magnitude, wanted[2], rtol=1e-9, atol=1e-12)
