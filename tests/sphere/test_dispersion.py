"""Dispersion of points against formulas with the whole matrix of distances, and the cases at the edges."""

import math

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from hyperkernels.sphere import dispersion
from tests.support.pair_softmax_cases import compare, points

S = hk.sphere
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FUNCTIONS = [
    *(lambda x, s=s, r=r: S.riesz_energy(x, s, reduction=r) for s in (0.0, 1.0, 3.0) for r in ("mean", "sum")),
    S.koleo,
    S.mean_nearest_angle,
    S.packing,
]


def distances(x):
    """[N, N], infinite on the diagonal."""
    x = F.normalize(x)
    square = (x[:, None] - x).square().sum(-1)
    return torch.where(torch.eye(len(x), dtype=torch.bool), torch.inf, square).sqrt()


def energy(x, s):
    apart = distances(x)[~torch.eye(len(x), dtype=torch.bool)]
    return apart**-s if s else -apart.log()


@pytest.fixture(params=[1, 70, 10**6])
def block(request, monkeypatch):
    """Pairs a block: one row each, some, all."""
    monkeypatch.setattr(dispersion, "_BLOCK", request.param)


@pytest.mark.parametrize("n", [2, 3, 23])
@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_riesz_energy(n, s, block):
    x = points(n)
    compare(S.riesz_energy(x, s), energy(x, s).mean(), [x])
    compare(S.riesz_energy(x, s, reduction="sum") / n**2, energy(x, s).sum() / n**2, [x])


@pytest.mark.parametrize("s", [0.0, 1.0, 2.5])
def test_riesz_energy_below_the_floor(s):
    """It goes on with its slope in the squared distance: neither value nor gradient jump."""
    x = torch.tensor([[1.0, 0, 0], [1.0, 0.04, 0], [0, 0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: S.riesz_energy(x, s, min_distance=0.2), x)
    near = (F.normalize(x[0], dim=0) - F.normalize(x[1], dim=0)).square().sum()
    floor = torch.tensor(0.04, dtype=torch.float64, requires_grad=True)
    at_floor = floor ** (-s / 2) if s else -floor.log() / 2
    (slope,) = torch.autograd.grad(at_floor, floor)
    rest = energy(x[1:], s).sum() + energy(x[::2], s).sum()
    wanted = rest + 2 * (at_floor.detach() + slope * (near - 0.04))
    compare(S.riesz_energy(x, s, reduction="sum", min_distance=0.2), wanted, [x])


def test_riesz_energy_of_close_points_in_float32():
    """Where 2 - 2 cos has no digits left in float32."""
    x = (torch.ones(2, 6) + 1e-3 * torch.randn(2, 6)).requires_grad_()
    wide = x.detach().double().requires_grad_()
    mine, right = S.riesz_energy(x, 2.0), energy(wide, 2.0).mean()
    assert abs(mine.double() / right - 1) < 1e-6
    (a,), (b,) = torch.autograd.grad(mine, x), torch.autograd.grad(right, wide)
    assert (a.double() - b).norm() < 1e-5 * b.norm()


def test_riesz_energy_keeps_no_matrix(monkeypatch):
    monkeypatch.setattr(dispersion, "_BLOCK", 10000)
    x, kept = points(300), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        S.riesz_energy(x)
    assert max(kept) <= x.numel() < 300 * 300


def test_riesz_energy_has_no_second_derivative():
    x = points(4)
    (first,) = torch.autograd.grad(S.riesz_energy(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("n", [2, 3, 23])
def test_nearest(n):
    x = points(n)
    nearest = distances(x).amin(1)
    compare(S.koleo(x), -(nearest + 1e-8).log().mean(), [x])
    compare(S.mean_nearest_angle(x), (2 * torch.asin(nearest / 2)).mean(), [x])


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("n", [2, 23])
def test_packing(n, temperature):
    x = points(n)
    cosine = (F.normalize(x) @ F.normalize(x).T)[~torch.eye(n, dtype=torch.bool)]
    wanted = temperature * ((cosine / temperature).logsumexp(0) - math.log(n * (n - 1)))
    compare(S.packing(x, temperature), wanted, [x])
    assert S.packing(x, 1e-3).item() == pytest.approx(cosine.max().item(), abs=1e-3 * 8)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(function, dtype):
    """Rows that coincide, are opposite, nearly so, and zero."""
    x = torch.randn(9, 5, dtype=torch.float64)
    x[1], x[2], x[3], x[4] = x[0], -x[0], 2 * x[0] + 1e-7, 0
    x[5] = -x[6] + 1e-4
    for rows in (x, x[:2], x[[0, 2]], 0 * x, x[:1], x[:0]):
        leaf = rows.to(dtype).requires_grad_()
        value = function(leaf)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and value.isfinite()
        (gradient,) = torch.autograd.grad(value, leaf)
        assert gradient.dtype == dtype
        if dtype == torch.float16:  # which ends at 65504, and the energy of close points is steeper than that
            gradient = gradient.nan_to_num(posinf=0, neginf=0)
        assert gradient.isfinite().all()
        if len(rows) < 2:
            assert value == 0 and not gradient.any()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_passes_on(function):
    x = torch.randn(6, 4)
    x[2, 1] = torch.nan
    assert function(x).isnan()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_narrow_types(function):
    x = torch.randn(40, 16).bfloat16()
    torch.testing.assert_close(function(x).double(), function(x.double()), rtol=2e-2, atol=2e-2)
    # The same, and independent of the rows' lengths.
    assert torch.equal(function(x), function(4 * x))


def test_nearest_angle_at_the_ends():
    opposite = torch.tensor([[1.0, 0], [-1.0, 0]])
    assert S.mean_nearest_angle(opposite) == torch.pi
    assert S.mean_nearest_angle(opposite[[0, 0]]) == 0
    close = torch.tensor([[1.0, 0], [1.0, 1e-6]])
    torch.testing.assert_close(S.mean_nearest_angle(close), torch.tensor(1e-6))


def test_descent_spreads_points():
    """From one heap towards the corners of a simplex, 1.91 apart, by every one of them."""
    for function, sign in ((S.riesz_energy, 1), (S.packing, 1), (S.koleo, 1), (S.mean_nearest_angle, -1)):
        x = torch.nn.Parameter(torch.ones(4, 3) + 0.3 * torch.randn(4, 3))
        optimizer = torch.optim.Adam([x], lr=0.05)
        for _ in range(120):
            optimizer.zero_grad()
            (sign * function(x)).backward()
            optimizer.step()
        assert S.mean_nearest_angle(x.detach()) > 1.4


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: S.riesz_energy(x, -1.0), ValueError, "s must be at least 0"),
        (lambda x: S.riesz_energy(x, reduction="none"), ValueError, "reduction must be one of"),
        (lambda x: S.riesz_energy(x, min_distance=0.0), ValueError, "min_distance must be greater"),
        (lambda x: S.riesz_energy(x[0]), ValueError, "x must have 2"),
        (lambda x: S.koleo(x, 0.0), ValueError, "eps must be greater"),
        (lambda x: S.koleo(x.long()), TypeError, "x must have dtype"),
        (lambda x: S.mean_nearest_angle(None), TypeError, "x must be a torch.Tensor"),
        (lambda x: S.packing(x, 0.0), ValueError, "temperature must be greater"),
    ],
)  # fmt: skip
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.ones(2, 3))
