"""Means and clusters on the sphere against their formulas row by row, and the cases at the edges."""

import math

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from tests.support.pair_softmax_cases import compare, points

from .cases import NARROW, finite, near, special

S = hk.sphere


def stationary(mu, x, weights):
    """The length of the mean of the logarithms, which vanishes at the Frechet mean."""
    unit = F.normalize(x)
    cosine = (unit @ mu).clamp(-1, 1)
    tangents = unit - cosine[:, None] * mu
    angle = torch.acos(cosine)
    return (weights[:, None] * tangents * (angle / torch.sin(angle))[:, None]).sum(0).norm() / weights.sum()


@pytest.mark.parametrize("spread", [1e-2, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_frechet_mean(spread, weighted):
    x = near(40, 6, spread)
    weights = torch.rand(40, dtype=torch.float64) if weighted else torch.ones(40, dtype=torch.float64)
    mu = S.frechet_mean(x, weights if weighted else None)
    assert abs(mu.norm() - 1) < 1e-12
    assert stationary(mu, x, weights) < 1e-10
    assert S.frechet_mean(x, weights, iterations=0) @ F.normalize(weights @ F.normalize(x), dim=0) > 1 - 1e-12


def test_frechet_mean_of_two_is_the_midpoint():
    x, y = torch.randn(2, 7, dtype=torch.float64)
    x, y = x / x.norm(), y / y.norm()
    torch.testing.assert_close(S.frechet_mean(torch.stack([x, y])), S.slerp(x, y, 0.5))
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    torch.testing.assert_close(S.frechet_mean(torch.stack([x, y]), weights, iterations=60), S.slerp(x, y, 0.25))


def test_frechet_mean_gradient():
    with hk.backend("reference"):
        x, weights = near(6, 4, 0.8).requires_grad_(), torch.rand(6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(S.frechet_mean, (x, weights))
        # Implicitly: the gradient of the result is that of the equation it solves.
        mu = S.frechet_mean(x, weights, iterations=40)
        upstream = torch.randn_like(mu)
        (mine,) = torch.autograd.grad(mu, weights, upstream)
        at = mu.detach().requires_grad_()

        def pull(at):
            return (weights[:, None] * S.log_map(at.expand_as(x), x)).sum(0)

        slope = torch.autograd.functional.jacobian(pull, at)
        logs = S.log_map(at.expand_as(x), x).detach()
        wanted = -logs @ torch.linalg.pinv(slope, rtol=1e-9).T @ upstream
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", NARROW)
def test_frechet_mean_in_narrow_types(dtype):
    x = near(300, 16, 0.7, dtype)
    mu = S.frechet_mean(x)
    assert mu.dtype == dtype
    right = S.frechet_mean(x.double())
    assert (mu.double() - right).norm() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_means_at_the_edges(dtype):
    for rows in special(dtype):
        finite(S.frechet_mean(rows), rows)
        finite(S.circular_variance(rows), rows)
    one = torch.tensor([[3.0, 4.0]], dtype=dtype)
    torch.testing.assert_close(S.frechet_mean(one), one[0] / 5)
    torch.testing.assert_close(S.frechet_mean(one.expand(5, 2)), one[0] / 5)
    both = torch.cat([one, -one]).requires_grad_()
    finite(S.frechet_mean(both), both)
    assert S.circular_variance(both) == 1
    finite(S.circular_variance(both), both)
    assert S.frechet_mean(one[:0]).eq(0).all() and S.circular_variance(one[:0]) == 0
    # A row without a direction takes no part.
    zero = torch.cat([one, 0 * one])
    torch.testing.assert_close(S.frechet_mean(zero), one[0] / 5)
    assert S.circular_variance(zero) < 2 * torch.finfo(dtype).eps


def test_means_pass_nan_on():
    x = torch.randn(4, 3)
    x[1, 1] = torch.nan
    assert S.frechet_mean(x).isnan().all() and S.circular_variance(x).isnan()


def test_means_under_autocast():
    x = torch.randn(50, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(S.frechet_mean(x), without_autocast(S.frechet_mean, x))
        assert torch.equal(S.circular_variance(x), without_autocast(S.circular_variance, x))


def without_autocast(function, *args):
    with torch.autocast("cpu", enabled=False):
        return function(*args)


def test_circular_variance():
    x = points(30)
    compare(S.circular_variance(x), 1 - F.normalize(x).mean(0).norm(), [x])
    # A spread of 1e-4 has a variance of 1e-9, of which 1 - |mean| would keep nothing in float32.
    x = near(50, 6, 1e-4, torch.float32)
    right = 1 - F.normalize(x.double()).mean(0).norm()
    assert abs(S.circular_variance(x).double() / right - 1) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_kmeans_step(dtype):
    x, centers = torch.randn(200, 9).to(dtype), torch.randn(11, 9).to(dtype)
    found, index, cosine = S.kmeans_step(x, centers)
    assert found.dtype == dtype and index.dtype == torch.int64
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 8 * torch.finfo(dtype).eps)
    similarities = F.normalize(x.double()) @ F.normalize(centers.double()).T
    torch.testing.assert_close(cosine.double(), similarities.amax(1), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        similarities.gather(1, index[:, None])[:, 0], similarities.amax(1), rtol=0, atol=tolerance
    )
    for k in range(11):
        own = F.normalize(x.double())[index == k]
        wanted = F.normalize(own.sum(0) if len(own) else centers[k].double(), dim=0)
        torch.testing.assert_close(found[k].double(), wanted, rtol=0, atol=tolerance)


def test_kmeans_step_keeps_centers_without_rows_and_finds_clusters():
    x = torch.tensor([[1.0, 0, 0], [-2.0, 0, 0], [0, 3, 0]])
    centers = torch.tensor([[0.0, 5, 0], [0, 0, 2.0], [0, 0, 2.0]])
    found, index, _ = S.kmeans_step(x, centers)
    assert index.tolist() == [0, 0, 0]  # the lowest of equally close centres
    torch.testing.assert_close(found, torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 1]]))
    means = torch.eye(4) + 0.1
    x = S.sample_vmf(means, 200.0, 50).flatten(0, 1)
    centers = x[:4].clone()
    for _ in range(5):
        centers, index, cosine = S.kmeans_step(x, centers)
    assert index.view(50, 4).eq(index[:4]).all() and index[:4].sort().values.tolist() == [0, 1, 2, 3]
    assert cosine.mean() > 0.98


def test_mean_squared_angle_is_the_smallest_at_the_mean():
    x = near(50, 5, 1.0)
    mu = S.frechet_mean(x)
    smallest = S.angle(mu.expand_as(x), x).square().mean()
    for _ in range(20):
        other = S.exp_map(mu, 1e-2 * torch.randn(5, dtype=torch.float64))
        assert S.angle(other.expand_as(x), x).square().mean() > smallest
    assert smallest < (math.pi / 2) ** 2
