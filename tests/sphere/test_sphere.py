"""Public functions of hyperkernels.sphere: textbook formulas, special angles, broadcasting, refused arguments."""

import math

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from hyperkernels import sphere

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("cpp", "reference")
ANGLES = (0.0, 1e-7, 1e-4, 1.0, math.pi - 1e-4, math.pi)
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with hk.backend(request.param):
        yield request.param


def pair(n=5, d=7, dtype=torch.float64):
    return (torch.randn(n, d, dtype=torch.float64) * 3).to(dtype), torch.randn(n, d, dtype=torch.float64).to(dtype)


def at_angle(theta, dim, dtype, rows=4):
    """Rows x and y, each of its own length, that are theta apart."""
    x, v = F.normalize(torch.randn(rows, dim, dtype=torch.float64)), torch.randn(rows, dim, dtype=torch.float64)
    u = F.normalize(v - (x * v).sum(1, keepdim=True) * x)
    y = -x if theta == math.pi else math.cos(theta) * x + math.sin(theta) * u
    return (x * 2).to(dtype), (y * 2).to(dtype)


def dot(a, b):
    return (a * b).sum(-1, keepdim=True)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float64, 1e160), (torch.float64, 1e300)])
def test_rows_whose_squares_leave_their_range(dtype, size):
    x, y = pair(dtype=dtype)
    for function in (sphere.angle, sphere.log_map, sphere.tangent, lambda a, b: sphere.slerp(a, b, 0.3)):
        leaves = [x.clone().requires_grad_(), (x * size).requires_grad_()]
        usual, far = (function(leaf, y) for leaf in leaves)
        torch.testing.assert_close(far, usual, rtol=1e-5, atol=1e-6)
        of_usual, of_far = (torch.autograd.grad(f.sum(), leaf)[0] for f, leaf in zip((usual, far), leaves, strict=True))
        torch.testing.assert_close(of_far * size, of_usual, rtol=1e-4, atol=1e-5)


def test_textbook():
    x, y = pair()
    t, alpha, scale = torch.rand(5, dtype=torch.float64), torch.rand(7, dtype=torch.float64), torch.rand(5, 7).double()
    a, b = F.normalize(x), F.normalize(y)
    theta = torch.acos(dot(a, b))
    w = y - dot(a, y) * a
    n = w.norm(dim=1, keepdim=True)
    log = theta / theta.sin() * (b - theta.cos() * a)
    for mine, right in (
        (sphere.angle(x, y), theta.squeeze(1)),
        (
            sphere.slerp(x, y, t),
            ((1 - t[:, None]) * theta).sin() / theta.sin() * a + (t[:, None] * theta).sin() / theta.sin() * b,
        ),
        (sphere.slerp(x, y, 1.7), (-0.7 * theta).sin() / theta.sin() * a + (1.7 * theta).sin() / theta.sin() * b),
        (sphere.log_map(x, y), log),
        (sphere.tangent(x, y), w),
        (sphere.exp_map(x, y), n.cos() * a + n.sin() / n * w),
        (sphere.retract(x, y), F.normalize(a + w)),
        (sphere.residual(x, y, alpha), F.normalize(a + alpha * (b - a))),
        (sphere.residual(x, y, 0.3), F.normalize(a + 0.3 * (b - a))),
        (sphere.scaled_unit_norm(x, scale), scale * a),
        (sphere.transport(x, y, w), w - dot(b, w) / (1 + dot(a, b)) * (a + b)),
    ):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-13)


def test_there_and_back():
    x, y = pair(6, 9)
    torch.testing.assert_close(sphere.exp_map(x, sphere.log_map(x, y)), F.normalize(y))
    torch.testing.assert_close(sphere.log_map(x, y).norm(dim=1), sphere.angle(x, y))
    middle = sphere.slerp(x, y, 0.5)
    torch.testing.assert_close(sphere.angle(x, middle), sphere.angle(middle, y))
    torch.testing.assert_close(sphere.slerp(x, y, 0.25), sphere.slerp(y, x, 0.75))


def test_transport_keeps_lengths_and_angles():
    x, y = pair(6, 9)
    v, w = sphere.tangent(x, torch.randn(6, 9).double()), sphere.tangent(x, torch.randn(6, 9).double())
    moved, other = sphere.transport(x, y, v), sphere.transport(x, y, w)
    torch.testing.assert_close(dot(moved, other), dot(v, w))
    torch.testing.assert_close(moved.norm(dim=1), v.norm(dim=1))
    torch.testing.assert_close(dot(moved, y), torch.zeros(6, 1, dtype=torch.float64), rtol=0, atol=1e-13)


def test_bezier():
    points = torch.randn(3, 4, 6, dtype=torch.float64)
    p, q, r = points
    wanted = sphere.slerp(sphere.slerp(p, q, 0.3), sphere.slerp(q, r, 0.3), 0.3)
    torch.testing.assert_close(sphere.bezier(points, 0.3), wanted)
    torch.testing.assert_close(sphere.bezier(points[:2], 0.3), sphere.slerp(p, q, 0.3))
    torch.testing.assert_close(sphere.bezier(points[:1], 0.3), F.normalize(p))


def grad_of(f, *inputs):
    leaves = [v.detach().clone().requires_grad_() for v in inputs]
    out = f(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves, torch.randn(out.shape, dtype=torch.float64).to(out.dtype))


@pytest.mark.parametrize("theta", ANGLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 3, 33])
def test_special_angles(dim, dtype, theta):
    x, y = at_angle(theta, dim, dtype)
    right = sphere.angle(x.double(), y.double())
    t = torch.tensor([0.0, 0.3, 1.0, 1.5], dtype=sphere.angle(x, y).dtype)
    for f, inputs in (
        (sphere.angle, (x, y)),
        (sphere.slerp, (x, y, t)),
        (sphere.log_map, (x, y)),
        (sphere.tangent, (x, y)),
        (sphere.exp_map, (x, y)),
        (sphere.retract, (x, y)),
        (lambda x, y: sphere.residual(x, y, 0.5), (x, y)),
        (lambda x, y: sphere.transport(x, y, y), (x, y)),
    ):
        out, gradients = grad_of(f, *inputs)
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)
    wide = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    torch.testing.assert_close(sphere.angle(x, y).double(), right, rtol=8 * wide, atol=20 * wide)
    # Even where the geodesic is hard to find, results lie on the sphere, and the logarithm is tangent.
    one = torch.ones(4, dtype=torch.float64)
    hard = 1 / max(math.sin(theta), 1e-4) if wide > 1e-10 else 1
    for unit in (sphere.slerp(x, y, t), sphere.exp_map(x, y), sphere.retract(x, y)):
        torch.testing.assert_close(unit.double().norm(dim=1), one, rtol=0, atol=EPS[dtype] + 4 * wide * hard)
    log = sphere.log_map(x, y).double()
    torch.testing.assert_close(log.norm(dim=1), right, rtol=EPS[dtype] + 4 * wide * hard, atol=40 * wide)


def test_coinciding_points():
    x = torch.randn(3, 5, dtype=torch.float64)
    for scale in (1.0, 2.0, 0.25):
        y = scale * x
        assert torch.equal(sphere.angle(x, y), torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(sphere.slerp(x, y, 0.4), F.normalize(x))
        g = torch.randn(3, 5, dtype=torch.float64)
        leaves = [v.clone().requires_grad_() for v in (x, y)]
        dx, dy = torch.autograd.grad(sphere.slerp(*leaves, 0.4), leaves, g)
        flat = (g - dot(g, F.normalize(x)) * F.normalize(x)) / x.norm(dim=1, keepdim=True)
        torch.testing.assert_close(dx, 0.6 * flat)
        torch.testing.assert_close(dy, 0.4 * flat / scale)
        dx, dy = torch.autograd.grad(sphere.log_map(*leaves), leaves, g)
        torch.testing.assert_close(dx, -flat)
        torch.testing.assert_close(dy, flat / scale)
        for d in torch.autograd.grad(sphere.angle(*leaves).sum(), leaves):
            assert torch.equal(d, torch.zeros_like(d))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_opposite_points(dim, dtype):
    x = torch.randn(3, dim, dtype=torch.float64).to(dtype)
    y = -2 * x
    torch.testing.assert_close(sphere.angle(x, y).double(), torch.full((3,), math.pi).double(), rtol=1e-6, atol=0)
    leaves = [v.clone().requires_grad_() for v in (x, y)]
    out = sphere.slerp(*leaves, 0.5)
    for d in torch.autograd.grad(out, leaves, torch.ones_like(out)):
        assert torch.equal(d, torch.zeros_like(d))
    if dim > 1:
        middle = out.detach().double()
        torch.testing.assert_close(middle.norm(dim=1), torch.ones(3).double(), rtol=0, atol=4 * EPS[dtype])
        torch.testing.assert_close(dot(middle, x.double()), torch.zeros(3, 1).double(), rtol=0, atol=8 * EPS[dtype])
        smallest = x.abs().argmin(1)
        assert torch.equal(middle.abs().argmax(1), smallest) or dim == 2
        assert (middle.gather(1, smallest[:, None]) > 0).all()
        log = sphere.log_map(x, y).double()
        torch.testing.assert_close(log, math.pi * middle, rtol=4 * EPS[dtype], atol=8 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows(dtype):
    x, y = torch.zeros(2, 4, dtype=dtype), torch.randn(2, 4, dtype=torch.float64).to(dtype)
    right = torch.full((2,), math.pi / 2, dtype=sphere.angle(x, y).dtype)
    torch.testing.assert_close(sphere.angle(x, y), right)
    torch.testing.assert_close(sphere.angle(y, x), right)
    torch.testing.assert_close(sphere.slerp(y, x, 0.5), F.normalize(y) * 0.5**0.5, rtol=4 * EPS[dtype], atol=0)
    torch.testing.assert_close(sphere.log_map(y, x), torch.zeros_like(x), rtol=0, atol=1e-6)
    assert torch.equal(sphere.scaled_unit_norm(x, 2.0), torch.zeros_like(x))
    for f in (sphere.angle, lambda a, b: sphere.slerp(a, b, 0.5), sphere.log_map, sphere.exp_map, sphere.retract):
        for inputs, zero in (((x, y), 0), ((y, x), 1), ((x, x), 0)):
            out, gradients = grad_of(f, *inputs)
            assert out.isfinite().all() and all(g.isfinite().all() for g in gradients)
            if zero == 0 or f in (sphere.angle, sphere.log_map):
                assert not gradients[zero].any()
    out, gradients = grad_of(lambda a, b: sphere.residual(a, b, 0.5), y, -y)
    assert not out.any() and not any(g.any() for g in gradients)


def test_broadcasting():
    x, y = torch.randn(2, 1, 5), torch.randn(3, 5)
    wide = torch.broadcast_tensors(x, y)
    t = torch.rand(2, 1)
    for f in (sphere.angle, lambda a, b: sphere.slerp(a, b, t), sphere.log_map, sphere.exp_map):
        out, gradients = grad_of(f, x, y)
        torch.testing.assert_close(out, f(*(v.clone() for v in wide)))
        assert gradients[0].shape == x.shape and gradients[1].shape == y.shape
    one = torch.randn(5)
    torch.testing.assert_close(sphere.slerp(one, y, 0.5), sphere.slerp(one.repeat(3, 1), y, 0.5))
    torch.testing.assert_close(sphere.residual(y, one, 0.5), sphere.residual(y, one.repeat(3, 1), 0.5))
    assert sphere.angle(one, one).shape == ()
    many = torch.randn(4, 3, 5)
    torch.testing.assert_close(sphere.scaled_unit_norm(many, y), F.normalize(many, dim=-1) * y)
    assert sphere.slerp(torch.randn(2, 5).t(), torch.randn(5, 2), 0.5).is_contiguous()


def test_nothing_to_do():
    for shape in ((0, 3), (3, 0), (0, 0)):
        x = torch.randn(shape, requires_grad=True)
        for f in (sphere.tangent, sphere.exp_map, sphere.retract, sphere.log_map):
            out = f(x, x)
            assert out.shape == shape
            assert torch.autograd.grad(out.sum(), x)[0].shape == shape
        assert sphere.angle(x, x).shape == shape[:1]
        assert torch.autograd.grad(sphere.slerp(x, x, 0.5).sum(), x)[0].shape == shape
        assert sphere.residual(x, x, 0.5).shape == sphere.scaled_unit_norm(x, 2.0).shape == shape


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: sphere.angle([1.0], x), TypeError, "x must be a torch.Tensor; got list"),
        (lambda x: sphere.angle(x, x.double()), TypeError, "y must have the dtype of x"),
        (lambda x: sphere.slerp(x, x[:, :2], 0.5), ValueError, "y must have the last dimension of x"),
        (lambda x: sphere.slerp(x, x[:2], 0.5), ValueError, "y must broadcast with x"),
        (lambda x: sphere.slerp(x, x, "half"), TypeError, "t must be a number; got str"),
        (lambda x: sphere.slerp(x, x, torch.rand(2)), ValueError, r"t must broadcast to \(3,\)"),
        (lambda x: sphere.tangent(x, torch.tensor(1.0)), ValueError, "v must have at least one dimension"),
        (lambda x: sphere.exp_map(x.int(), x), TypeError, "x must have dtype"),
        (lambda x: sphere.residual(x, x, torch.rand(3)), ValueError, "alpha must be a number or of shape"),
        (lambda x: sphere.residual(x, x, math.inf), ValueError, "alpha must be finite"),
        (lambda x: sphere.scaled_unit_norm(x, torch.rand(2, 4)), ValueError, "scale must have the last dimensions"),
        (lambda x: sphere.bezier(x[0], 0.5), ValueError, "points must be"),
        (lambda x: sphere.segment_mean(x[0], torch.zeros(4).long(), 1), ValueError, "x must have 2 dimension"),
        (lambda x: sphere.segment_mean(x, torch.zeros(3), 1), TypeError, "labels must have dtype int64"),
        (lambda x: sphere.segment_mean(x, torch.zeros(2).long(), 1), ValueError, "labels must have one entry per row"),
        (lambda x: sphere.segment_mean(x, torch.zeros(3).long(), -1), ValueError, "num_segments must be at least 0"),
        (lambda x: sphere.segment_mean(x, torch.zeros(3).long(), 1, normalize=1), TypeError, "normalize must be True"),
    ],
)
def test_wrong_arguments(f, error, message):
    with pytest.raises(error, match=message):
        f(torch.randn(3, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "segments"), [(0, 3), (40, 7), (1000, 3), (300, 400), (5, 0)])
def test_segment_mean(n, segments, dtype):
    x = torch.randn(n, 6, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(-2, segments + 2, (n,))
    labels[: n // 10] = 2**62
    means, counts = sphere.segment_mean(x, labels, segments)
    directions, _ = sphere.segment_mean(x, labels, segments, normalize=True)
    assert means.dtype == directions.dtype == dtype and means.shape == (segments, 6)
    g = torch.randn(segments, 6, dtype=torch.float64).to(dtype)
    (dx,) = torch.autograd.grad(means, x, g)
    for k in range(segments):
        rows = x.detach()[labels == k].double()
        assert counts[k] == len(rows)
        mean = rows.mean(0) if len(rows) else torch.zeros(6, dtype=torch.float64)
        torch.testing.assert_close(means[k].detach(), mean.to(dtype), rtol=2 * EPS[dtype], atol=2 * EPS[dtype])
        torch.testing.assert_close(directions[k].detach(), F.normalize(mean, dim=0).to(dtype), rtol=1e-2, atol=1e-3)
        wanted = (g[k].double() / max(1, len(rows))).to(dtype).expand(len(rows), 6)
        torch.testing.assert_close(dx[labels == k], wanted, rtol=2 * EPS[dtype], atol=0)
    assert not dx[(labels < 0) | (labels >= segments)].any()


def test_segment_mean_twice_differentiable():
    labels = torch.tensor([2, 0, 2, -1, 1, 2])
    f = lambda v: sphere.segment_mean(v, labels, 4)[0].square().sum()  # noqa: E731
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)


def test_geoopt():
    manifold = pytest.importorskip("geoopt").Sphere()
    x, y = (F.normalize(v) for v in pair(8, 11))
    v = manifold.proju(x, torch.randn(8, 11, dtype=torch.float64))
    for mine, theirs in (
        (sphere.exp_map(x, v), manifold.expmap(x, v)),
        (sphere.retract(x, v), manifold.retr(x, v)),
        (sphere.log_map(x, y), manifold.logmap(x, y)),
        (sphere.tangent(x, y), manifold.proju(x, y)),
        (sphere.angle(x, y), manifold.dist(x, y)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    # geoopt transports by projection, which shortens; on the way of the geodesic both agree.
    across = manifold.transp(x, y, v)
    torch.testing.assert_close(sphere.tangent(y, v), across)
