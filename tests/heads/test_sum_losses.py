"""SFace, SphereFace2 and UniFace against their papers' formulas over the full matrix, in float64."""

import math

import pytest
import torch

import hyperkernels as hk
from tests.support import head_formulas as authors
from tests.support.margin_softmax_cases import BACKENDS

from .cases import agree, forced, hard_problem, value_and_gradients

BIAS = torch.tensor(-2.0, dtype=torch.float64)
# name: (the package's loss, the formula), both of (x, weight, target, bias); one loss a row.
LOSSES = {
    "sface": (
        lambda x, w, y, b, **options: hk.sface_loss(x, w, y, **options),
        lambda x, w, y, b: authors.sface(x, w, y, 64.0, 80.0, 0.8, 1.23),
    ),
    "sface soft": (
        lambda x, w, y, b, **options: hk.sface_loss(x, w, y, scale=10.0, k=3.0, a=0.5, b=1.0, **options),
        lambda x, w, y, b: authors.sface(x, w, y, 10.0, 3.0, 0.5, 1.0),
    ),
    "sphereface2": (
        hk.sphereface2_loss,
        lambda x, w, y, b: authors.sphereface2(x, w, y, b, 0.7, 40.0, 0.4, 3, 50.0, True),
    ),
    "sphereface2 exact": (
        lambda *a, **o: hk.sphereface2_loss(
            *a, alpha=0.6, scale=8.0, m=0.2, t=4, loss_weight=3.0, gradient="exact", **o
        ),
        lambda x, w, y, b: authors.sphereface2(x, w, y, b, 0.6, 8.0, 0.2, 4, 3.0, False),
    ),
    "uniface": (hk.uniface_loss, lambda x, w, y, b: authors.uniface(x, w, y, b, 0.4, 64.0, 1.0)),
    "uniface soft": (
        lambda *a, **o: hk.uniface_loss(*a, m=0.1, scale=3.0, l=0.3, **o),
        lambda x, w, y, b: authors.uniface(x, w, y, b, 0.1, 3.0, 0.3),
    ),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with forced(request.param):
        yield request.param


def leaves_of(name, x, weight):
    return (x, weight) if name.startswith("sface") else (x, weight, BIAS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients(name, seed, backend):
    ours, formula = LOSSES[name]
    torch.manual_seed(seed)
    x, weight, target = hard_problem()
    keep = target != -100
    leaves = leaves_of(name, x, weight)
    found = value_and_gradients(lambda x, w, b=None: ours(x, w, target, b), *leaves)
    wanted = value_and_gradients(lambda x, w, b=None: formula(x[keep], w, target[keep], b).mean(), *leaves)
    agree(found, wanted)
    assert (found[1][~keep] == 0).all()


def test_uniface_clips_both_ways():
    """Otherwise the test above shows less than it says: the target's logit and the others' leave [-s, s]."""
    x, weight, target = hard_problem(ignored=0)
    cos = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(weight).T
    own = 3.0 * (authors.own(cos, target) - 0.1) + 2.0
    others = 3.0 * cos + 2.0
    assert (own > 3).any() and (others > 3).any() and (others.abs() < 3).any()
    low = 64.0 * (authors.own(cos, target) - 0.4) + 2.0
    assert (low < -64).any()


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_and_sub_centers(name, backend):
    ours, formula = LOSSES[name]
    x, weight, target = hard_problem()
    keep = target != -100
    rows = ours(x, weight, target, BIAS, reduction="none")
    wanted = formula(x[keep], weight, target[keep], BIAS)
    torch.testing.assert_close(rows[keep], wanted)
    assert rows.shape == (16,) and (rows[~keep] == 0).all()
    torch.testing.assert_close(ours(x, weight, target, BIAS, reduction="sum"), wanted.sum())
    twice = weight.repeat_interleave(2, 0)
    torch.testing.assert_close(ours(x, twice, target, BIAS, sub_centers=2), wanted.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_poles_are_finite(name, dtype, backend):
    """On the centre, opposite to it, on another's, zero rows, ignored NaN; the authors' acos is NaN past 1."""
    weight = torch.cat([torch.eye(5), -2 * torch.eye(5), torch.zeros(1, 5), 3 * torch.ones(1, 5)]).to(dtype)
    target = torch.tensor([0, 1, 2, 6, 10, 3, 11, -100])
    x = torch.stack([*torch.eye(5)[:2], -torch.eye(5)[2], torch.eye(5)[0], torch.eye(5)[1], torch.zeros(5)])
    x = torch.cat([x, 0.3 * torch.ones(1, 5), torch.full((1, 5), torch.nan)]).to(dtype)
    leaves = leaves_of(name, x, weight)
    for tensor in value_and_gradients(lambda x, w, b=None: LOSSES[name][0](x, w, target, b), *leaves):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_few_rows_and_classes(name, backend):
    ours, formula = LOSSES[name]
    for rows, classes in ((0, 11), (1, 11), (3, 1)):
        x, weight, _ = hard_problem(max(rows, 1), ignored=0)
        x, weight, target = x[:rows], weight[:classes], torch.zeros(rows, dtype=torch.int64)
        leaves = leaves_of(name, x, weight)
        found = value_and_gradients(lambda x, w, b=None: ours(x, w, target, b), *leaves)  # noqa: B023
        if rows == 0:
            assert all((tensor == 0).all() for tensor in found)
        else:
            agree(found, value_and_gradients(lambda x, w, b=None: formula(x, w, target, b).mean(), *leaves))  # noqa: B023
    x, weight, target = hard_problem(4, ignored=4)
    assert ours(x, weight, target, BIAS) == 0


@pytest.mark.parametrize("name", ["sphereface2 exact", "uniface soft"])
def test_exact_gradients_are_those_of_the_value(name):
    x, weight, target = hard_problem(5, 4, 3, ignored=1)
    target[1:] = target[1:] % 4
    leaves = [leaf.clone().requires_grad_() for leaf in (x / x.norm(dim=1, keepdim=True), weight, BIAS)]
    with hk.backend("reference"):
        assert torch.autograd.gradcheck(lambda x, w, b: LOSSES[name][0](x, w, target, b), leaves)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_forms_of_the_bias(shape, backend):
    x, weight, target = hard_problem()
    bias = torch.full(shape, -2.0, dtype=torch.float32, requires_grad=True)
    for loss in (hk.sphereface2_loss, hk.uniface_loss):
        found = loss(x, weight, target, bias)
        assert torch.equal(found, loss(x, weight, target, -2.0))
        (gradient,) = torch.autograd.grad(found, bias)
        assert gradient.shape == shape and gradient.dtype == torch.float32 and gradient != 0


@pytest.mark.parametrize("make", [hk.nn.SFace, hk.nn.SphereFace2, hk.nn.UniFace])
def test_modules(make):
    """They call the functions with their own settings, learn, and round trip."""
    module = make(8, 12, scale=16.0, sub_centers=2, ignore_index=3, dtype=torch.float64)
    assert module.weight.shape == (24, 8) and "num_classes=12" in repr(module) and "scale=16.0" in repr(module)
    x, target = torch.randn(30, 8, dtype=torch.float64), torch.arange(30) % 12
    other = make(8, 12, scale=16.0, sub_centers=2, ignore_index=3, dtype=torch.float64)
    other.load_state_dict(module.state_dict())
    loss = module(x, target)
    assert torch.equal(loss, other(x, target))
    function = {"SFace": hk.sface_loss, "SphereFace2": hk.sphereface2_loss, "UniFace": hk.uniface_loss}[make.__name__]
    bias = [] if make is hk.nn.SFace else [module.bias]
    assert torch.equal(loss, function(x, module.weight, target, *bias, scale=16.0, sub_centers=2, ignore_index=3))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        value = module(x, target)
        value.backward()
        optimiser.step()
    assert value < loss - 0.1 * loss.abs()


@pytest.mark.parametrize(("classes", "alpha"), [(1000, 0.7), (4, 0.7), (2, 0.7), (2, 0.5), (10**7, 0.9)])
def test_the_bias_of_sphereface2_starts_in_balance(classes, alpha):
    """With all cosines 0 the gradients of the two terms to it cancel."""
    torch.manual_seed(0)
    with torch.device("meta"):
        weight = hk.nn.SphereFace2(4, 2).weight
    assert weight.is_meta
    module = hk.nn.SphereFace2(1, classes, alpha=alpha, scale=20.0, dtype=torch.float64)
    bias = module.bias.detach()
    own, other = (20.0 * (2 * 0.5**3 - 1 + sign * 0.4) + bias for sign in (-1, 1))
    pull, push = alpha * torch.sigmoid(-own), (1 - alpha) * (classes - 1) * torch.sigmoid(other)
    torch.testing.assert_close(pull, push)


def test_the_bias_of_uniface_starts_as_the_authors():
    assert hk.nn.UniFace(4, 300, dtype=torch.float64).bias.item() == pytest.approx(math.log(3000))


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_whole(name):
    torch._dynamo.reset()
    x, weight, target = hard_problem()
    leaves = leaves_of(name, x, weight)
    ours = LOSSES[name][0]
    step = torch.compile(lambda x, w, b=None: ours(x, w, target, b), fullgraph=True, backend="aot_eager")
    agree(value_and_gradients(step, *leaves), value_and_gradients(lambda x, w, b=None: ours(x, w, target, b), *leaves))


X, W, T = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hk.sface_loss(X, W, T, scale=0.0), ValueError, "scale must be greater than 0"),
        (lambda: hk.sface_loss(X, W, T, scale=torch.tensor(3.0)), TypeError, "scale must be a number"),
        (lambda: hk.sface_loss(X, W, T, k=-1.0), ValueError, "k must be at least 0"),
        (lambda: hk.sface_loss(X, W, T, a=4.0), ValueError, "a must be in"),
        (lambda: hk.sface_loss(X, W, T, b=-1.0), ValueError, "b must be in"),
        (lambda: hk.sface_loss(X, W, T, reduction="max"), ValueError, "reduction must be one of"),
        (lambda: hk.sface_loss(X, W, T.int()), TypeError, "target must have dtype int64"),
        (lambda: hk.sphereface2_loss(X, W, T, torch.zeros(4)), ValueError, "bias must be a number or a tensor of one"),
        (lambda: hk.sphereface2_loss(X, W, T, torch.tensor(1)), TypeError, "bias must have dtype"),
        (lambda: hk.sphereface2_loss(X, W, T, 0.0, t=9), ValueError, r"t must be in \[1, 8\]; got 9"),
        (lambda: hk.sphereface2_loss(X, W, T, 0.0, t=0), ValueError, "t must be at least 1"),
        (lambda: hk.sphereface2_loss(X, W, T, 0.0, alpha=1.5), ValueError, "alpha must be in"),
        (lambda: hk.sphereface2_loss(X, W, T, 0.0, gradient="none"), ValueError, "gradient must be one of"),
        (lambda: hk.uniface_loss(X, W, T, "0"), TypeError, "bias must be a number"),
        (lambda: hk.uniface_loss(X, W, T, 0.0, l=-1.0), ValueError, "l must be at least 0"),
        (lambda: hk.nn.SphereFace2(3, 1), ValueError, "num_classes must be at least 2"),
        (lambda: hk.nn.SphereFace2(3, 4, alpha=1.0), ValueError, "alpha must be below 1"),
        (lambda: hk.nn.UniFace(0, 4), ValueError, "embedding_size must be at least 1"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
