"""Means, spread and clusters of directions."""

from __future__ import annotations

import torch

from .. import _check
from .._autocast import autocast
from .._dtypes import accumulate_dtype
from ..kernels.sphere.problem import EPS
from ..pairs.pairs import Pairs, unit_rows
from ..unit_norm import unit_norm
from .functional import exp_map
from .segments import segment_mean

_SERIES = 12  # terms of theta / sin(theta) in sin(theta / 2)^2, right to the last digit of float64 below _SERIES_END
_SERIES_END = 0.05


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows in the accumulator's dtype; and 1 for rows longer than EPS, 0 for shorter ones, which have no
    direction."""
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    x = x.to(accumulate_dtype(x.dtype))
    norm = torch.linalg.vector_norm(x.detach(), dim=1)
    return unit_rows(x, EPS), (~(norm < EPS)).to(x.dtype)


def _angle_over_sine(cosine: torch.Tensor) -> torch.Tensor:
    """theta / sin(theta) from cos(theta); 0 at opposite points, where the shortest geodesic is not unique."""
    square = (1 - cosine).clamp_min(0) / 2  # of sin(theta / 2)
    near = square < _SERIES_END
    low = torch.where(near, square, 0)
    series = torch.ones_like(low)
    for k in range(_SERIES, 0, -1):
        series = 1 + 2 * k / (2 * k + 1) * low * series
    opposite = square > 1 - 8 * torch.finfo(cosine.dtype).eps
    high = torch.where(near | opposite, 0.5, square)
    far = 2 * torch.asin(high.sqrt()) / (2 * (high * (1 - high)).sqrt())
    return torch.where(near, series, torch.where(opposite, 0, far))


def frechet_mean(x: torch.Tensor, weights: torch.Tensor | None = None, *, iterations: int = 16) -> torch.Tensor:
    """The Frechet mean: the point with the smallest mean squared angle to the rows of x (Karcher, 1977). Starts at the
    direction of their mean and repeats mu <- exp_mu(sum_i w_i log_mu(x_i)), ``iterations`` times.

    Rows that lie within less than pi/2 of one point have exactly one such mean, and the iteration converges to it. Rows
    that are spread wider may have several means, or a circle of them; the result is then the stationary point reached
    from the start. If the directions cancel, the start is undefined: the result is finite and arbitrary.

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows of any length stand for their directions. Rows shorter
            than 1e-12 are left out; so is, in an iteration, a row opposite to the present mu.
        weights: [N], at least 0; any float dtype. None: all equal.
        iterations: at least 0. In float32 four are enough for rows within pi/4 of the mean; 0 gives the direction of
            the mean.

    Returns:
        [D], a unit row in the dtype of x; 0 without rows. Differentiable once, through the iteration.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.integer("iterations", iterations, 0)
    unit, share = _rows(x)
    if weights is not None:
        _check.tensor("weights", weights, _check.FLOAT_DTYPES, dim=1)
        _check.same_device("weights", weights, "x", x)
        if weights.shape[0] != x.shape[0]:
            raise ValueError(f"weights must have one entry per row of x ({x.shape[0]}); got {tuple(weights.shape)}")
        share = share * weights.to(share.dtype)
    total = share.sum()
    share = share / torch.where(total == 0, 1, total)
    with autocast(x, None):
        mu = unit_rows((share @ unit)[None], EPS)
        for _ in range(iterations):
            # No logarithm is stored: log_mu(x) = theta / sin(theta) (x - cos(theta) mu), and exp_map takes tangents.
            pull = share * _angle_over_sine(unit @ mu[0])
            mu = exp_map(mu, (pull @ unit)[None])
    return mu[0].to(x.dtype)


def circular_variance(x: torch.Tensor) -> torch.Tensor:
    """1 - |mean of x^| (Mardia and Jupp, 2000): 0 if all rows have one direction, 1 if they cancel. It is computed from
    the distances to the mean, so that a small variance is accurate.

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows shorter than 1e-12 are left out.

    Returns:
        A scalar; float32, float64 for float64. 0 without rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    unit, share = _rows(x)
    share = share / share.sum().clamp_min(1)
    with autocast(x, None):
        mean = share @ unit
        spread = share @ (unit - mean).square().sum(1)  # 1 - |mean|^2
    return spread / (1 + torch.linalg.vector_norm(mean))


@torch.no_grad()
def kmeans_step(x: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A step of spherical k-means (Dhillon and Modha, 2001): every row is assigned to the centre with the largest
    cosine, and every centre becomes the direction of the mean of its unit rows. The N x K cosines are never stored.

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows of any length.
        centers: [K, D] of the dtype of x, K at least 1; rows of any length.

    Returns:
        (new centres [K, D], unit rows in the dtype of x; the index of the centre of every row [N], int64, the lowest
        where cosines are equal; the cosine with it [N], float32, float64 for float64). A centre without rows, or whose
        rows cancel, stays where it is. Nothing is differentiable.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("centers", centers, _check.FLOAT_DTYPES, dim=2)
    pairs = Pairs(x, None, centers)
    if not len(centers):
        raise ValueError(f"centers must have at least one row; got shape {tuple(centers.shape)}")
    found = pairs.statistics("all", extremes=True)
    wide = accumulate_dtype(x.dtype)
    means, _ = segment_mean(unit_norm(x.to(wide)), found.argmax, len(centers))
    moved = torch.linalg.vector_norm(means, dim=1, keepdim=True) >= torch.finfo(wide).eps
    centers = torch.where(moved, unit_norm(means), unit_norm(centers.to(wide))).to(x.dtype)
    return centers, found.argmax, found.max
