"""unit_norm on the CPU: C++ and reference against float64 PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperkernels as hk
from tests.support.accuracy import assert_as_accurate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("cpp", "reference")
ops = torch.ops.hyperkernels


def with_grad(f, x, g):
    leaf = x.detach().clone().requires_grad_()
    y = f(leaf)
    (dx,) = torch.autograd.grad(y, leaf, g)
    return y.detach(), dx


def check(x, eps=1e-12, dim=-1):
    """Forward and backward of each backend against F.normalize in float64 and in the dtype of x."""
    with hk.backend("reference"):
        check_one(x, eps, dim)
    return check_one(x, eps, dim)


def check_one(x, eps, dim):
    g = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    ours = with_grad(lambda v: hk.unit_norm(v, dim=dim, eps=eps), x, g)
    peer = with_grad(lambda v: F.normalize(v, dim=dim, eps=eps), x, g)
    truth = with_grad(lambda v: F.normalize(v, dim=dim, eps=eps), x.double(), g.double())
    assert ours[0].dtype == x.dtype
    assert_as_accurate(ours[0], peer[0], truth[0], what="y")
    terms = g.double() / torch.linalg.vector_norm(x.double(), dim=dim, keepdim=True).clamp_min(eps)
    magnitude = terms[terms.isfinite()].norm().item()
    assert_as_accurate(ours[1], peer[1], truth[1], magnitude=magnitude, what="dx")
    return ours


def test_reference_equals_a_loop():
    x = torch.randn(5, 7, dtype=torch.float64)
    for row, unit in zip(x.tolist(), hk_reference(x).tolist(), strict=True):
        norm = math.sqrt(math.fsum(v * v for v in row))
        assert unit == pytest.approx([v / norm for v in row], rel=1e-14)


def hk_reference(x, eps=1e-12):
    with hk.backend("reference"):
        return hk.unit_norm(x, eps=eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 64), (5, 129), (2, 3, 1025), (1, 5000), (300, 33)])
def test_accuracy(dtype, shape, poisoned_memory):
    check((torch.randn(shape, dtype=torch.float64) * 3).to(dtype))


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 4.0]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_dim_stride_and_eps(shape, data, dtype, eps, seed):
    torch.manual_seed(seed)
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    step = data.draw(st.integers(1, 3))
    x = torch.randn([n * step for n in shape], dtype=torch.float64).to(dtype)
    x = x[tuple(slice(None, None, step) for _ in shape)].permute(*order)
    before = x.clone()
    y, dx = check(x, eps=eps, dim=dim)
    assert y.shape == x.shape == dx.shape
    assert torch.equal(x, before)
    assert torch.equal(hk.unit_norm_(x, dim=dim, eps=eps), y)
    assert torch.equal(x, y)


@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1e-30, 1e-15, 1e15, 1e30, 3e38])
@pytest.mark.parametrize("eps", [0.0, 1e-40, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_rows(dtype, magnitude, eps):
    x = ((torch.rand(3, 512, dtype=torch.float64) + 0.5) / 1.6 * magnitude).to(dtype)
    if eps == 0 and not x.any():  # 0 / 0, of which F.normalize gives other gradients from torch 2.14 on
        assert all(v.isnan().all() for v in with_grad(lambda v: hk.unit_norm(v, eps=eps), x, torch.ones_like(x)))
        return
    y, _ = check(x, eps=eps)
    if magnitude > 1e-11 or eps == 0:
        torch.testing.assert_close(y.double().norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("magnitude", [1e-320, 1e-300, 1e-170, 1e155, 1e200, 1e306])
@pytest.mark.parametrize("backend", BACKENDS)
def test_doubles_whose_squares_leave_their_range(backend, magnitude):
    x = torch.randn(5, 64, dtype=torch.float64)
    x = (x * magnitude) / magnitude if magnitude > 1e-305 else (x * 1e3).round()
    g = torch.randn(5, 64, dtype=torch.float64)
    far = x * magnitude
    with hk.backend(backend):
        y, dx = with_grad(lambda v: hk.unit_norm(v, eps=0.0), far, g)
    truth = with_grad(F.normalize, far / magnitude, g)
    rounding = 5e-324 / (x.norm(dim=1).min().item() * magnitude)  # of a length that is a subnormal number
    torch.testing.assert_close(y, truth[0], rtol=1e-12 + rounding, atol=1e-14)
    if magnitude > 1e-305:  # below, the gradient itself leaves their range
        torch.testing.assert_close(dx * magnitude, truth[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [0.0, math.inf, -math.inf, math.nan])
def test_special_rows(dtype, special):
    x = torch.randn(4, 37, dtype=torch.float64).to(dtype)
    x[1, 5] = special
    x[2] = special
    check(x)


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_keeps_its_graph_is_the_same(magnitude, backend):
    x = (torch.randn(3, 8) * magnitude).requires_grad_()
    with hk.backend(backend):
        y = hk.unit_norm(x, eps=0.0)
        (plain,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (kept,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert plain.isfinite().all() and plain.any()
    torch.testing.assert_close(kept.detach(), plain, rtol=1e-4, atol=1e-6 / magnitude)


def test_forward_mode_is_refused_not_dropped():
    x, v = torch.randn(3, 4), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="unit_norm has no forward-mode derivative"):
        torch.func.jvp(hk.unit_norm, (x,), (v,))
    with hk.backend("reference"):
        _, mine = torch.func.jvp(hk.unit_norm, (x,), (v,))
    torch.testing.assert_close(mine, torch.func.jvp(F.normalize, (x,), (v,))[1])


def test_vmap_and_inference_mode():
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(torch.func.vmap(hk.unit_norm)(x), F.normalize(x, dim=-1))
    with torch.inference_mode():
        torch.testing.assert_close(hk.unit_norm(x), F.normalize(x, dim=-1))
        hk.unit_norm_(x.clone())


def test_contiguous_input_gives_contiguous_output():
    assert hk.unit_norm(torch.randn(2, 3, 4), dim=1).is_contiguous()
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert hk.unit_norm(images, dim=1).is_contiguous(memory_format=torch.channels_last)


def test_zero_rows_divide_by_eps():
    y, dx = with_grad(hk.unit_norm, torch.zeros(2, 3), torch.ones(2, 3))
    assert torch.equal(y, torch.zeros(2, 3))
    torch.testing.assert_close(dx, torch.full((2, 3), 1e12))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    with hk.backend(backend):
        for eps in (1e-12, 1.5, 100.0):
            assert torch.autograd.gradcheck(lambda v, eps=eps: hk.unit_norm(v, eps=eps), x)
            assert torch.autograd.gradgradcheck(lambda v, eps=eps: hk.unit_norm(v, eps=eps), x)
        assert torch.autograd.gradcheck(lambda v: hk.unit_norm(v, dim=0), x)


def test_opcheck():
    x = torch.randn(4, 6)
    torch.library.opcheck(ops.unit_norm.default, (x.clone().requires_grad_(), 1e-12))
    torch.library.opcheck(ops.unit_norm_backward.default, (torch.randn(4, 6), x, 1e-12))
    torch.library.opcheck(ops.unit_norm_.default, (x.clone(), 1e-12))


@pytest.mark.parametrize("dim", [pytest.param(0, marks=pytest.mark.slow), -1])
def test_compiles_in_one_graph(dim):
    x, g = torch.randn(9, 17), torch.randn(9, 17)
    f = lambda v: hk.unit_norm(v * 2, dim=dim).tanh()  # noqa: E731
    for mine, eager in zip(with_grad(torch.compile(f, fullgraph=True), x, g), with_grad(f, x, g), strict=True):
        torch.testing.assert_close(mine, eager)


def test_in_place_serves_parameters_and_counts_as_a_change():
    weight = torch.nn.Parameter(torch.randn(5, 8))
    hk.unit_norm_(weight)
    assert weight.requires_grad and weight.grad_fn is None
    torch.testing.assert_close(weight.detach().norm(dim=1), torch.ones(5))
    x = torch.randn(3, 3, requires_grad=True)
    y = x * 2
    z = y.square()
    hk.unit_norm_(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_same_bits_on_any_number_of_threads():
    x = torch.randn(2000, 130)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(with_grad(hk.unit_norm, x, x.flip(0)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_under_autocast_keeps_the_dtype():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hk.unit_norm(torch.randn(2, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "x must be a torch.Tensor; got list"),
        ((torch.ones(2, dtype=torch.int64),), TypeError, "x must have dtype .*; got int64"),
        ((torch.ones(()),), ValueError, "x must have at least one dimension"),
        ((torch.ones(2, 2), 2), ValueError, r"dim must be in \[-2, 1\]"),
        ((torch.ones(2, 2), 1.0), TypeError, "dim must be an int; got float"),
        ((torch.ones(2, 2), 1, -1.0), ValueError, "eps must be at least 0"),
        ((torch.ones(2, 2), 1, math.nan), ValueError, "eps must be finite"),
        ((torch.ones(2, 2), 1, "small"), TypeError, "eps must be a number; got str"),
    ],
)
@pytest.mark.parametrize("function", [hk.unit_norm, hk.unit_norm_])
def test_wrong_arguments(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
