"""The von Mises-Fisher functions against mpmath, and the samplers against the moments that they must have."""

import math

import mpmath
import pytest
import torch

import hyperkernels as hk

DIMENSIONS = [2, 3, 4, 8, 16, 31, 64, 65, 67, 512, 4096]
KAPPAS = [0.0, 1e-8, 1e-3, 0.1, 1.0, 3.0, 31.0, 100.0, 1e3, 1e4, 1e6]


def truth(kappa, d):
    """log C, A and A' to 50 digits."""
    with mpmath.workdps(50):
        order = mpmath.mpf(d) / 2 - 1
        if not kappa:
            area = mpmath.log(2) + (order + 1) * mpmath.log(mpmath.pi) - mpmath.loggamma(order + 1)
            return -area, mpmath.mpf(0), mpmath.mpf(1) / d
        kappa = mpmath.mpf(kappa)
        bessel = mpmath.besseli(order, kappa)
        log_norm = order * mpmath.log(kappa) - (order + 1) * mpmath.log(2 * mpmath.pi) - mpmath.log(bessel)
        length = mpmath.besseli(order + 1, kappa) / bessel
        return log_norm, length, 1 - length**2 - (d - 1) * length / kappa


def error(mine, right):
    """Relative; absolute where the truth is 0."""
    return float(abs(mpmath.mpf(mine) - right) / (abs(right) or 1))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_against_mpmath(d):
    kappa = torch.tensor(KAPPAS, dtype=torch.float64, requires_grad=True)
    log_norm, length = hk.sphere.vmf_log_norm(kappa, d), hk.sphere.vmf_mean_length(kappa, d)
    (first,) = torch.autograd.grad(log_norm.sum(), kappa, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), kappa)
    (slope,) = torch.autograd.grad(length.sum(), kappa)
    for i, k in enumerate(KAPPAS):
        right, right_length, right_slope = truth(k, d)
        assert error(log_norm[i].item(), right) < 2e-14
        assert error(length[i].item(), right_length) < 5e-15
        assert error(-first[i].item(), right_length) < 5e-15
        assert error(-second[i].item(), right_slope) < 1e-8
        assert error(slope[i].item(), right_slope) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [2, 3, 31, 512])
def test_narrow_types_are_rounded_once(d, dtype):
    kappa = torch.tensor(KAPPAS[:-1], dtype=torch.float64).to(dtype)
    for function in (hk.sphere.vmf_log_norm, hk.sphere.vmf_mean_length):
        found = function(kappa, d)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(kappa.double(), d).float())


def test_a_plane_of_log_norms_holds_one_density():
    d, kappa = 3, torch.tensor([0.0, 0.5, 20.0], dtype=torch.float64)
    w = torch.linspace(-1, 1, 200001, dtype=torch.float64)
    density = torch.exp(hk.sphere.vmf_log_norm(kappa, d)[:, None] + kappa[:, None] * w) * 2 * math.pi
    torch.testing.assert_close(torch.trapezoid(density, w), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("d", [2, 3, 64])
def test_gradcheck(d):
    kappa = torch.tensor([0.0, 0.3, 7.0, 200.0], dtype=torch.float64, requires_grad=True)
    for function in (hk.sphere.vmf_log_norm, hk.sphere.vmf_mean_length):
        assert torch.autograd.gradcheck(lambda k, f=function: f(k, d), kappa)
        assert torch.autograd.gradgradcheck(lambda k, f=function: f(k, d), kappa)
    length = torch.tensor([0.0, 0.1, 0.5, 0.95], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: hk.sphere.vmf_concentration(r, d), length)
    (first,) = torch.autograd.grad(hk.sphere.vmf_concentration(length, d).sum(), length, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), length)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_concentration_is_the_inverse(d):
    length = torch.cat([torch.linspace(0, 0.99, 50).double(), 1 - torch.logspace(-3, -12, 10).double()])
    kappa = hk.sphere.vmf_concentration(length, d)
    torch.testing.assert_close(hk.sphere.vmf_mean_length(kappa, d), length, rtol=1e-14, atol=1e-15)
    assert (kappa.diff() > 0).all()
    # Its gradient is 1 / A', up to what a float64 at 1 - 1e-6 still knows of the length.
    length = length[length < 1 - 1e-6].requires_grad_()
    kappa = hk.sphere.vmf_concentration(length, d)
    (gradient,) = torch.autograd.grad(kappa.sum(), length)
    at = kappa.detach().requires_grad_()
    (slope,) = torch.autograd.grad(hk.sphere.vmf_mean_length(at, d).sum(), at)
    torch.testing.assert_close(gradient, 1 / slope, rtol=1e-7, atol=0)


def test_concentration_at_the_end():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        length = torch.tensor([1.0, 1.01, 0.0], dtype=dtype, requires_grad=True)
        kappa = hk.sphere.vmf_concentration(length, 16)
        kappa.sum().backward()
        assert kappa.isfinite().all() and kappa[0] == kappa[1] > 1e6 and kappa[2] == 0
        assert length.grad.isfinite().all()


def test_log_prob():
    x, mu = torch.randn(9, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    kappa = torch.rand(9, dtype=torch.float64) * 9
    unit, direction = x / x.norm(dim=1, keepdim=True), mu / mu.norm()
    wanted = hk.sphere.vmf_log_norm(kappa, 5) + kappa * (unit @ direction)
    torch.testing.assert_close(hk.sphere.vmf_log_prob(x, mu, kappa), wanted)
    torch.testing.assert_close(hk.sphere.vmf_log_prob(x, mu.expand(9, 5), kappa), wanted)
    assert hk.sphere.vmf_log_prob(x.bfloat16(), mu.bfloat16(), 3.0).dtype == torch.float32
    leaves = [v.requires_grad_() for v in (x, mu, kappa)]
    assert torch.autograd.gradcheck(hk.sphere.vmf_log_prob, leaves)


def test_the_fit_of_a_sample():
    """Maximum likelihood from the samples' own mean."""
    generator, mu = torch.Generator().manual_seed(1), torch.randn(8)
    x = hk.sphere.sample_vmf(mu, 25.0, 20000, generator=generator).double()
    mean = x.mean(0)
    kappa = hk.sphere.vmf_concentration(mean.norm(), 8)
    assert abs(kappa.item() / 25 - 1) < 0.02
    assert hk.sphere.angle(mean, mu.double()) < 0.01


@pytest.mark.parametrize("d", [2, 3, 5, 64, 512])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 10.0, 500.0, 1e6])
def test_samples_have_the_moments(d, kappa):
    n, mu = 4000, torch.randn(d)
    x = hk.sphere.sample_vmf(mu, kappa, n, generator=torch.Generator().manual_seed(7))
    assert x.shape == (n, d) and x.dtype == torch.float32
    torch.testing.assert_close(x.norm(dim=1), torch.ones(n))
    mu, x = mu.double() / mu.double().norm(), x.double()
    along = x @ mu
    at = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    length = hk.sphere.vmf_mean_length(at, d)
    (variance,) = torch.autograd.grad(length, at)  # of the component along mu
    spread = (variance / n).sqrt()
    # Of points at 1 - 1e-6 float32 keeps little of the distance to 1.
    assert (along.mean() - length).abs() < 5 * spread + 1e-7
    if kappa < 1e3:
        assert abs(along.var() / variance - 1) < 0.25
    around = x - along[:, None] * mu
    around = around / around.norm(dim=1, keepdim=True)
    # Uniform around mu: the mean vanishes, and so does what the second moments have beyond 1 / (d - 1).
    assert around.mean(0).norm() < 5 / math.sqrt(n)
    moments = around.T @ around / n - (torch.eye(d) - mu[:, None] * mu) / (d - 1)
    assert moments.norm() < 5 / math.sqrt(n)


@pytest.mark.parametrize("d", [2, 3, 4, 40])
def test_the_component_along_the_mean_has_its_distribution(d):
    """Kolmogorov's distance to the distribution function, integrated by the trapezoid rule."""
    n, kappa = 20000, 4.0
    mu = torch.zeros(d, dtype=torch.float64)
    mu[0] = -1
    x = hk.sphere.sample_vmf(mu, kappa, n, generator=torch.Generator().manual_seed(3))
    along = torch.sort(-x[:, 0]).values
    theta = torch.linspace(math.pi, 0, 100001, dtype=torch.float64)
    density = torch.exp(kappa * (torch.cos(theta) - 1)) * torch.sin(theta) ** (d - 2)
    below = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, -theta)])
    below = below / below[-1]
    at = below[torch.searchsorted(torch.cos(theta).contiguous(), along).clamp_max(100000)]
    assert (at - torch.arange(n) / n).abs().max() < 1.95 / math.sqrt(n)  # 1e-3 of all samples go beyond


@pytest.mark.parametrize("mu", [[1.0, 0, 0], [1.0, 1e-7, 0], [-1.0, 0, 0], [0, 0, 3e30], [1e-11, 0, 0]])
def test_no_bias_near_an_axis(mu):
    mu = torch.tensor(mu)
    x = hk.sphere.sample_vmf(mu, 1e5, 2000, generator=torch.Generator().manual_seed(5))
    assert x.isfinite().all()
    assert hk.sphere.angle(x.double().mean(0), mu.double()) < 5 * math.sqrt(2 / 1e5 / 2000)


def test_samples_of_many_means():
    mu, kappa = torch.randn(2, 3, 6), torch.tensor([0.0, 10.0, 1e4])
    x = hk.sphere.sample_vmf(mu.double(), kappa.double(), 3000)
    assert x.shape == (3000, 2, 3, 6)
    along = (x * (mu / mu.norm(dim=-1, keepdim=True))).sum(-1).mean(0)
    wanted = hk.sphere.vmf_mean_length(kappa.double(), 6).expand(2, 3)
    torch.testing.assert_close(along, wanted, rtol=0, atol=0.04)
    assert hk.sphere.sample_vmf(mu, kappa, 0).shape == (0, 2, 3, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_seeds_reproduce(dtype):
    mu = torch.randn(4, 6).to(dtype)
    draws = [
        (
            hk.sphere.sample_vmf(mu, 9.0, 5, generator=g),
            hk.sphere.sample_uniform(5, 6, generator=g, dtype=dtype),
        )
        for g in (torch.Generator().manual_seed(s) for s in (1, 1, 2))
    ]
    assert all(v.dtype == dtype for v in draws[0])
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


def test_uniform_samples():
    x = hk.sphere.sample_uniform(20000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(20000, dtype=torch.float64))
    assert x.mean(0).norm() < 5 / math.sqrt(20000)
    assert (x.T @ x / 20000 - torch.eye(5) / 5).norm() < 5 / math.sqrt(20000)
    assert hk.sphere.sample_uniform(0, 3).shape == (0, 3)
    torch.testing.assert_close(hk.sphere.sample_uniform(4, 1).abs(), torch.ones(4, 1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: hk.sphere.vmf_log_norm(torch.ones(2), 1), ValueError, "d must be at least 2"),
        (lambda: hk.sphere.vmf_log_norm(torch.ones(2), 2.0), TypeError, "d must be an int"),
        (lambda: hk.sphere.vmf_mean_length(torch.ones(2, dtype=torch.int64), 2), TypeError, "kappa must have dtype"),
        (lambda: hk.sphere.vmf_mean_length("1", 2), TypeError, "kappa must be a number"),
        (lambda: hk.sphere.vmf_concentration(None, 2), TypeError, "mean_length must be a number"),
        (lambda: hk.sphere.vmf_log_prob(torch.ones(2, 3), torch.ones(2), 1.0), ValueError, "mu must be"),
        (lambda: hk.sphere.vmf_log_prob(torch.ones(2, 3), torch.ones(3), torch.ones(3)), ValueError, "kappa must be"),
        (lambda: hk.sphere.sample_uniform(-1, 2), ValueError, "n must be at least 0"),
        (lambda: hk.sphere.sample_uniform(1, 2, dtype=torch.int32), TypeError, "dtype must be"),
        (lambda: hk.sphere.sample_vmf(torch.ones(1), 1.0, 2), ValueError, "mu must be"),
        (lambda: hk.sphere.sample_vmf(torch.ones(2), -1.0, 2), ValueError, "kappa must be at least 0"),
        (lambda: hk.sphere.sample_vmf(torch.ones(2), torch.ones(3), 2), ValueError, "kappa must broadcast"),
    ],
)  # fmt: skip
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
