"""Scales, biases, smoothing, sub-centres, absent classes and by-products, against what a user writes in PyTorch."""

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from tests.support.margin_softmax_cases import BACKENDS, problem


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with hk.backend(request.param):
        yield request.param


def full_logits(x, weight, k=1, normalize_x=True, normalize_weight=True):
    x_hat = F.normalize(x) if normalize_x else x
    w_hat = F.normalize(weight) if normalize_weight else weight
    return (x_hat @ w_hat.T).view(len(x), -1, k).amax(2)


def compare(mine, theirs, leaves):
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    upstream = torch.rand_like(mine)
    got = torch.autograd.grad(mine, leaves, upstream)
    for a, b in zip(got, torch.autograd.grad(theirs, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def leaf(*shape):
    return torch.rand(*shape, dtype=torch.float64).add(0.5).requires_grad_()


@pytest.mark.parametrize("normalize_x", [True, False])
@pytest.mark.parametrize("normalize_weight", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_scale_class_scale_and_bias_are_learned(k, normalize_x, normalize_weight, smoothing):
    x, weight, target = problem(14, 30 * k, 6, torch.float64, ignored=2)
    target = torch.where(target < 0, target, target % 30)
    scale, class_scale, bias = leaf(14), leaf(30), leaf(30)
    cos = full_logits(x, weight, k, normalize_x, normalize_weight)
    theirs = F.cross_entropy(
        scale[:, None] * class_scale * cos + bias, target, reduction="none", label_smoothing=smoothing
    )
    mine = hk.margin_softmax_loss(
        x,
        weight,
        target,
        margin=hk.margins.NormFace(),
        scale=scale,
        class_scale=class_scale,
        bias=bias,
        sub_centers=k,
        normalize_x=normalize_x,
        normalize_weight=normalize_weight,
        reduction="none",
        label_smoothing=smoothing,
    )
    compare(mine, theirs, (x, weight, scale, class_scale, bias))


def test_a_scalar_scale_is_learned():
    x, weight, target = problem(9, 20, 5, torch.float64)
    scale = leaf(())
    theirs = F.cross_entropy(scale * (full_logits(x, weight) - 0.2 * F.one_hot(target, 20).double()), target)
    mine = hk.margin_softmax_loss(x, weight, target, margin=hk.margins.CosFace(0.2), scale=scale)
    compare(mine, theirs, (x, weight, scale))


def test_label_smoothing_over_the_others():
    x, weight, target = problem(9, 20, 5, torch.float64)
    logits = 8 * full_logits(x, weight)
    share = torch.full((9, 20), 0.3 / 19, dtype=torch.float64).scatter(1, target[:, None], 0.7)
    theirs = -(share * logits.log_softmax(1)).sum(1).mean()
    mine = hk.margin_softmax_loss(
        x, weight, target, margin=hk.margins.NormFace(), scale=8.0, label_smoothing=0.3, smoothing_over="others"
    )
    compare(mine, theirs, (x, weight))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_sub_centers_give_the_gradient_to_the_nearest_and_ties_to_the_lowest(k):
    x, weight, target = (v.detach() for v in problem(12, 25, 6, torch.float64))
    weight = weight.repeat_interleave(k, dim=0).requires_grad_()  # every class: K equal centres
    loss, statistics = hk.margin_softmax_loss(x, weight, target, sub_centers=k, scale=9.0, return_statistics=True)
    single = weight[::k].detach().requires_grad_()
    torch.testing.assert_close(loss, hk.margin_softmax_loss(x, single, target, scale=9.0))
    (dweight,) = torch.autograd.grad(loss, weight)
    dweight = dweight.view(25, k, 6)
    assert not dweight[:, 1:].any() and dweight[:, 0].any(1).all()
    assert not statistics.target_center.any()


def test_the_nearest_center_of_the_target_is_told():
    x, weight, target = problem(50, 60, 6)
    target %= 20
    s = hk.class_statistics(x, weight, target, sub_centers=3)
    own = F.normalize(weight).view(20, 3, 6)[target]
    assert torch.equal(s.target_center, (own @ F.normalize(x)[..., None])[..., 0].argmax(1))


def test_absent_classes_are_negatives_only():
    x, weight, target = problem(11, 16, 5, torch.float64)
    target[:4] = -1
    target[4] = -100
    s = hk.class_statistics(x, weight, target, scale=7.0, absent_index=-1)
    cos = full_logits(x, weight)
    torch.testing.assert_close(s.neg_lse[:4], (7 * cos[:4]).logsumexp(1))
    assert not s.target_cos[:5].any() and s.neg_lse[4] == -torch.inf
    upstream = torch.rand(4, dtype=torch.float64)
    got = torch.autograd.grad((s.neg_lse[:4] * upstream).sum() + s.target_cos.sum(), (x, weight))
    theirs = ((7 * cos[:4]).logsumexp(1) * upstream).sum() + cos[torch.arange(5, 11), target[5:]].sum()
    for a, b in zip(got, torch.autograd.grad(theirs, (x, weight)), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(IndexError, match="target"):
        hk.class_statistics(x, weight, target)
    for wrong, message in ((-100, "must differ from ignore_index"), (3, "must not be a class")):
        with pytest.raises(ValueError, match=message):
            hk.class_statistics(x, weight, target, absent_index=wrong)


@pytest.mark.parametrize("biased", [False, True])
def test_statistics_come_with_the_loss(biased):
    x, weight, target = problem(60, 30, 6, near=0.6, ignored=5)
    class_scale, bias = (leaf(30).float(), leaf(30).float()) if biased else (None, None)
    options = {"scale": 9.0, "class_scale": class_scale, "bias": bias}
    loss, s = hk.margin_softmax_loss(x, weight, target, return_statistics=True, **options)
    assert torch.equal(loss, hk.margin_softmax_loss(x, weight, target, **options))
    logits = 9 * full_logits(x, weight) * (1 if class_scale is None else class_scale) + (0 if bias is None else bias)
    assert torch.equal(s.correct, logits.argmax(1) == target)
    assert not s.correct[:5].any() and s.correct.any() and not s.correct[5:].all()
    others = logits[5:].scatter(1, target[5:, None], -torch.inf)
    assert torch.equal(s.hardest_class[5:], others.argmax(1))
    torch.testing.assert_close(s.hardest_cos[5:], (others / 9).amax(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(s.x_norm[5:], x[5:].norm(dim=1))
    assert not s.hardest_cos.requires_grad and s.target_cos.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_losses_and_gradients_of_its_own_dtype(dtype):
    x, weight, target = (v.detach() for v in problem(20, 40, 16, near=0.5))
    x, weight = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    loss = hk.margin_softmax_loss(x, weight, target)
    truth = hk.margin_softmax_loss(x.double(), weight.double(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-4, atol=0)
    for mine, right, leaf in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(truth, (x, weight)), (x, weight), strict=True
    ):
        assert mine.dtype == dtype == leaf.dtype
        torch.testing.assert_close(mine, right, rtol=0.05, atol=0.01 * right.abs().max().item())


def test_correct_knows_the_margins_own_scale_and_absent_rows():
    x, weight, target = problem(50, 20, 8, torch.float64)
    bias = 3 * torch.randn(20, dtype=torch.float64)
    margin = hk.margins.AdaCos(20, dynamic=False)
    _, s = hk.margin_softmax_loss(x, weight, target, margin=margin, bias=bias, return_statistics=True)
    logits = float(margin.scale) * full_logits(x, weight) + bias
    assert torch.equal(s.correct, logits.argmax(1) == target)
    away = torch.tensor([[-1.0, 0.1], [-1.0, -0.3]])
    s = hk.class_statistics(torch.tensor([[1.0, 0.0]]), away, torch.tensor([-1]), absent_index=-1)
    assert not s.correct.any()


def test_a_margin_with_its_own_scale_refuses_another():
    x, weight, target = problem(5, 20, 8)
    with pytest.raises(ValueError, match="scale must be a constant"):
        scale = torch.tensor(3.0, requires_grad=True)
        hk.margin_softmax_loss(x, weight, target, margin=hk.margins.AdaCos(20), scale=scale)
    with pytest.raises(ValueError, match="was made for 30 classes; the head has 20"):
        hk.margin_softmax_loss(x, weight, target, margin=hk.margins.AdaCos(30))
    with pytest.raises(ValueError, match="learn_scale must be False"):
        hk.nn.MarginSoftmax(8, 20, margin=hk.margins.AdaCos(20), learn_scale=True)


def test_a_large_scale_with_recomputed_cosines_stays_finite():
    x, weight, target = problem(40, 3000, 16)
    for budget in (0.0, 1e-3):
        loss = hk.margin_softmax_loss(x, weight, target, scale=1e9, skip_budget=budget, workspace=0)
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, weight)))
