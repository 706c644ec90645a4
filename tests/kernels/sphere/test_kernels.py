"""The C++ kernels of the sphere against float64 autograd of the reference, and what ops owe to PyTorch."""

import math

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _backend
from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.sphere import reference
from tests.support import REFUSED
from tests.support.accuracy import assert_as_accurate

pytestmark = pytest.mark.skipif(
    _backend.choose("sphere", "cpu").backend != "cpp", reason="the C++ kernels are not built"
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DIMS = (1, 2, 3, 7, 64, 127, 512, 1000)
ops = torch.ops.hyperkernels
# name: (op, formula, what is asked of it)
OPS = {
    **{kind: (ops.sphere_points, reference.points, kind) for kind in ("angle", "slerp", "log")},
    **{kind: (ops.sphere_vectors, reference.vectors, kind) for kind in ("tangent", "exp", "retract")},
    "residual": (ops.sphere_residual, reference.residual, None),
    "scaled": (ops.scaled_unit_norm, reference.scaled_unit_norm, None),
}


def inputs(name, n, dim, dtype, scales=1):
    """Rows, and what the op takes beside them."""
    wide = accumulate_dtype(dtype)
    x, y = (torch.randn(2, n, dim, dtype=torch.float64) * torch.tensor([3.0, 0.7])[:, None, None]).to(dtype)
    if name == "scaled":
        return x, torch.randn(scales, dim, dtype=wide)
    if name == "residual":
        return x, y, torch.rand(dim, dtype=wide)
    if name == "slerp":
        return x, y, torch.rand(n, dtype=wide) * 2 - 0.5
    if name in ("angle", "log"):
        return x, y, None
    return x, y / dim**0.5


def call(f, name, args):
    kind = OPS[name][2]
    return f(*args) if kind is None else f(*args, kind)


def run(f, name, args, grad=None):
    """(result, gradients of all tensors)."""
    leaves = [None if a is None else a.detach().requires_grad_() for a in args]
    out = call(f, name, leaves)
    tensors = [leaf for leaf in leaves if leaf is not None]
    return out.detach(), torch.autograd.grad(out, tensors, torch.ones_like(out) if grad is None else grad)


def gradient_like(name, args):
    x = args[0]
    rows = torch.randn(x.shape[0] if name == "angle" else x.shape, dtype=torch.float64)
    return rows.to(accumulate_dtype(x.dtype) if name == "angle" else x.dtype)


def wide(value):
    return None if value is None else value.double()


def magnitudes(name, args, grad):
    """Norms of what cancels: in the result, and in the gradients."""
    grad, (x, y) = grad.double(), (a.double() for a in inputs_of_rows(name, args))
    lengths = [v.norm(dim=1, keepdim=True).clamp_min(1e-12) for v in (x, y)]
    if name == "scaled":
        scaled = (grad.reshape(-1, *args[1].shape) * args[1].double()).reshape(grad.shape)
        return 0.0, [(scaled / lengths[0]).norm().item(), 0.0]
    if name == "residual":
        a, b = x / lengths[0], y / lengths[1]
        far = 1 / (a + args[2].double() * (b - a)).norm(dim=1, keepdim=True).clamp_min(1e-12)
        return 0.0, [*((grad * far / length).norm().item() for length in lengths), 2 * (grad * far).norm().item()]
    if OPS[name][0] == ops.sphere_vectors:
        pulled = grad * (1 + lengths[1])
        return y.norm().item() if name == "tangent" else 1.0, [
            (pulled / lengths[0]).norm().item(),
            pulled.norm().item(),
        ]
    # Where points are near or nearly opposite, the rounding of their coordinates is large beside their distance.
    cosine = (x / lengths[0] * y / lengths[1]).sum(1, keepdim=True)
    steep = 1 / (1 - cosine**2).clamp_min(1e-20).sqrt()
    # A gradient that theta / sin(theta) has made large is as much more sensitive.
    far = steep * torch.atan2(1 / steep, cosine)
    terms = steep * (grad[:, None] if name == "angle" else far * grad)
    rows = [(terms / length).norm().item() for length in lengths]
    return (1.0 if name == "angle" else steep.norm().item()), [*rows, terms.norm().item()]


def inputs_of_rows(name, args):
    return (args[0], args[0]) if name == "scaled" else args[:2]


def check(name, args):
    op, formula, _ = OPS[name]
    grad = gradient_like(name, args)
    mine, peer = run(op, name, args, grad), run(formula, name, args, grad)
    truth = run(formula, name, [wide(a) for a in args], grad.double())
    assert mine[0].is_contiguous() and mine[0].dtype == peer[0].dtype
    forward, backward = magnitudes(name, args, grad)
    size = max(forward, truth[0].norm().item())
    assert_as_accurate(mine[0], peer[0], truth[0], what=name, magnitude=size)
    for i, (a, b, c) in enumerate(zip(mine[1], peer[1], truth[1], strict=True)):
        assert a.dtype == b.dtype and a.shape == c.shape
        size = 2 * max(backward[i], c.norm().item())
        assert_as_accurate(a, b, c, what=f"{name}, gradient {i}", magnitude=size)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_accuracy(name, dtype, dim, poisoned_memory):
    check(name, inputs(name, 6 if dim > 8 else 40, dim, dtype))


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name):
    for dim in (1, 2, 5):
        args = [a if a is None else a.detach().requires_grad_() for a in inputs(name, 6, dim, torch.float64, 2)]
        if name == "residual" and dim == 1:
            continue  # on a line it jumps
        assert torch.autograd.gradcheck(lambda *a: call(OPS[name][0], name, a), args, atol=1e-6)


@pytest.mark.parametrize("name", ["angle", "slerp", "log"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("theta", [1e-3, 0.1, 1.0, 1.1, 2.0, 2.2, 3.0, math.pi - 1e-2])
def test_accuracy_at_all_angles(name, dtype, theta):
    x, v = torch.nn.functional.normalize(torch.randn(2, 8, 33, dtype=torch.float64), dim=-1)
    u = torch.nn.functional.normalize(v - (x * v).sum(1, keepdim=True) * x)
    y = math.cos(theta) * x + math.sin(theta) * u
    args = (3 * x.to(dtype), 0.3 * y.to(dtype), torch.rand(8, dtype=dtype) if name == "slerp" else None)
    check(name, args)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float32, (-11, -8, -3, 0, 3, 12, 36)), (torch.float64, (-11, -8, 0, 12, 156, 200, 300))],
)
def test_rows_of_extreme_length(name, dtype, exponents, poisoned_memory):
    """A row whose square leaves the range stands for its direction as well as any other."""
    args = inputs(name, 7, 50, dtype)
    exponents = torch.tensor(exponents, dtype=dtype)[:, None]
    scaled = [
        a * 10**exponents if i == 0 or (i == 1 and name in ("slerp", "angle", "log", "residual")) else a
        for i, a in enumerate(args)
    ]
    grad = gradient_like(name, args)
    mine, usual = run(OPS[name][0], name, scaled, grad), run(OPS[name][0], name, args, grad)
    torch.testing.assert_close(mine[0], usual[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine[1][0] * 10**exponents, usual[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows(name, dtype, poisoned_memory):
    args = inputs(name, 9, 13, dtype)
    args[0][::3] = 0
    if name in ("angle", "slerp", "log", "residual"):
        args[1][1::3] = 0
        args[1][0] = 0
    check(name, args)
    gradients = run(OPS[name][0], name, args)[1]
    assert not gradients[0][::3].any()
    if name in ("angle", "slerp", "log", "residual"):
        assert not gradients[1][1::3].any()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_nan_stays_in_its_row_and_is_not_lost(name, special):
    for which in (0, 1):
        args = inputs(name, 6, 21, torch.float32)
        if which == 1 and name == "scaled":
            continue
        clean = run(OPS[name][0], name, args)
        args[which][2, 5] = special
        out, gradients = run(OPS[name][0], name, args)
        others = torch.arange(6) != 2
        assert out[2].isnan().any()
        assert torch.equal(out[others], clean[0][others])
        for i, gradient in enumerate(gradients):
            rowwise = gradient.shape[0] == 6
            assert gradient[2 if rowwise else slice(None)].isnan().any() or (i, name) == (1, "tangent")
            if rowwise:
                assert torch.equal(gradient[others], clean[1][i][others])


@pytest.mark.parametrize("name", OPS)
def test_expanded_and_strided_rows(name):
    args = inputs(name, 6, 10, torch.float32)
    base = torch.randn(12, 20)
    for first in (base[:1, :10].expand(6, 10), base[::2, 10:], base[:6, ::2], base.t()[:6, :10]):
        for which in (0, 1):
            if which == 1 and name in ("scaled",):
                continue
            given, plain = list(args), list(args)
            given[which], plain[which] = first, first.clone(memory_format=torch.contiguous_format)
            mine, wanted = (run(OPS[name][0], name, a) for a in (given, plain))
            assert torch.equal(mine[0], wanted[0])
            for a, b in zip(mine[1], wanted[1], strict=True):
                assert torch.equal(a, b)


def test_only_what_is_asked_for_is_computed(poisoned_memory):
    for name in OPS:
        args = inputs(name, 20, 8, torch.float32)
        everything = run(OPS[name][0], name, args)[1]
        tensors = [i for i, a in enumerate(args) if a is not None]
        for i in tensors:
            leaves = [a if k != i or a is None else a.clone().requires_grad_() for k, a in enumerate(args)]
            out = call(OPS[name][0], name, leaves)
            (alone,) = torch.autograd.grad(out, leaves[i], torch.ones_like(out))
            assert torch.equal(alone, everything[i])


@pytest.mark.parametrize("name", OPS)
def test_same_bits_on_any_number_of_threads(name):
    args = inputs(name, 4000, 33, torch.float32, scales=5)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        out, gradients = run(OPS[name][0], name, args)
        results.append([out, *gradients])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("n", "scales"), [(0, 1), (6, 3), (400, 1), (400, 400), (640, 4), (90, 45)])
def test_scales(n, scales):
    check("scaled", inputs("scaled", n, 9, torch.float32, scales))


def test_nothing_to_do():
    for name in OPS:
        for n, dim in ((0, 5), (4, 0), (0, 0)):
            args = inputs(name, n, dim, torch.float32)
            out, gradients = run(OPS[name][0], name, args)
            assert out.shape == ((n,) if name == "angle" else (n, dim))
            tensors = [a for a in args if a is not None]
            assert all(g.shape == a.shape and not g.any() for g, a in zip(gradients, tensors, strict=True))


def test_wrong_sizes_are_refused():
    x, t = torch.randn(3, 4), torch.rand(3)
    for bad, error, message in (
        (lambda: ops.sphere_points(x, x[:2], None, "angle"), REFUSED, "y must have shape"),
        (lambda: ops.sphere_points(x, x.double(), None, "log"), REFUSED, "y must have dtype"),
        (lambda: ops.sphere_points(x, x, None, "slerp"), REFUSED, "t must be given"),
        (lambda: ops.sphere_points(x, x, t[:2], "slerp"), REFUSED, "t must have shape"),
        (lambda: ops.sphere_points(x, x, t.double(), "slerp"), REFUSED, "t must have dtype"),
        (lambda: ops.sphere_points(x, x, None, "chord"), REFUSED, "kind must be"),
        (lambda: ops.sphere_points(x.int(), x.int(), None, "log"), REFUSED, "x must have dtype"),
        (lambda: ops.sphere_points_backward(x, x, x, None, "angle", True, True, False), REFUSED, "grad must have"),
        (lambda: ops.sphere_vectors(x, x[0], "exp"), REFUSED, "v must have shape"),
        (lambda: ops.sphere_vectors(x, x, "log"), REFUSED, "kind must be"),
        (lambda: ops.sphere_residual(x, x, t), REFUSED, "alpha must have shape"),
        (lambda: ops.scaled_unit_norm(x, torch.rand(2, 4)), REFUSED, "rows of scale must divide"),
        (lambda: ops.segment_sum(x, t.long(), t.long()[:2], t.long()), REFUSED, "order and labels must have"),
    ):
        with pytest.raises(error, match=message):
            bad()


def sorted_by(labels, segments):
    in_order, order = labels.sort(stable=True)
    return order, torch.searchsorted(in_order, torch.arange(segments + 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "segments"), [(0, 3), (7, 1), (2000, 1), (2000, 7), (500, 900), (64, 64), (9, 0)])
def test_segment_sum(n, segments, dtype, poisoned_memory):
    x, labels = torch.randn(n, 19, dtype=torch.float64).to(dtype), torch.randint(-1, segments + 1, (n,))
    order, offsets = sorted_by(labels, segments)
    args = (labels, order, offsets)
    mine, peer = ops.segment_sum(x, *args), reference.segment_sum(x, *args)
    truth = reference.segment_sum(x.double(), *args)
    assert_as_accurate(mine, peer, truth, magnitude=x.double().norm().item())
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(ops.segment_sum(x, *args), mine)
    torch.set_num_threads(threads)


def test_segment_sum_never_reads_out_of_bounds():
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    order, offsets = sorted_by(labels, 2)
    for bad_order, bad_offsets in ((order + 1, offsets), (order - 1, offsets), (order, offsets + 1), (order, -offsets)):
        with pytest.raises(IndexError, match="must"):
            ops.segment_sum(x, labels, bad_order, bad_offsets)


@pytest.mark.parametrize("name", OPS)
def test_no_second_derivative(name):
    args = [a if a is None else a.detach().requires_grad_() for a in inputs(name, 3, 4, torch.float64)]
    out = call(OPS[name][0], name, args)
    (dx,) = torch.autograd.grad(out.square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


def test_opcheck():
    for name in OPS:
        args = [a if a is None else a.detach().requires_grad_() for a in inputs(name, 6, 5, torch.float32, 2)]
        kind = OPS[name][2]
        torch.library.opcheck(OPS[name][0].default, (*args, *(() if kind is None else (kind,))))
    labels = torch.tensor([1, 0, 1, 5])
    x = torch.randn(4, 3, requires_grad=True)
    torch.library.opcheck(ops.segment_sum.default, (x, labels, *sorted_by(labels, 2)))


def test_compiles_in_one_graph():
    x, y, t = (v.requires_grad_() for v in (torch.randn(9, 17), torch.randn(9, 17), torch.rand(9)))
    labels = torch.randint(0, 3, (9,))

    def f(x, y, t):
        out = hk.sphere.slerp(x * 2, y, t) + hk.sphere.exp_map(x, hk.sphere.log_map(x, y)) + hk.sphere.retract(x, y)
        out = out + hk.sphere.residual(x, y, t.new_ones(17) / 3) + hk.sphere.scaled_unit_norm(x, 2.0)
        return out * hk.sphere.angle(x, y)[:, None], hk.sphere.segment_mean(out, labels, 3, normalize=True)[0]

    def gradients(f):
        a, b = f(x, y, t)
        return a, b, *torch.autograd.grad(a.sum() + b.square().sum(), (x, y, t))

    for mine, eager in zip(gradients(torch.compile(f, fullgraph=True, backend="aot_eager")), gradients(f), strict=True):
        torch.testing.assert_close(mine, eager)
