"""Losses on the distance to a centre, for anomaly detection. Rows are not normalised."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .. import _check
from .._dtypes import accumulate_dtype
from ..kernels.sphere.problem import EPS
from ..pairs.pairs import unit_rows

# The constant factor e^u of the log barrier: a larger u would overflow float32.
_LARGEST_EXPONENT = 60.0


def _radius(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return like.new_full((), _check.number(name, value, minimum=0.0))
    _check.tensor(name, value, _check.FLOAT_DTYPES, dim=0)
    _check.same_device(name, value, "x", like)
    return value.detach().to(like.dtype)


def _squared_distance(x: Any, center: Any) -> torch.Tensor:
    """[N]"""
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("center", center, _check.FLOAT_DTYPES, dim=1)
    _check.same_device("center", center, "x", x)
    if center.shape[0] != x.shape[1]:
        raise ValueError(f"center must have the size of the rows of x ({x.shape[1]}); got shape {tuple(center.shape)}")
    wide = accumulate_dtype(x.dtype)
    return (x.to(wide) - center.to(wide)).square().sum(1)


def _mean(values: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over the rows that count; 0 if none does."""
    if among is None:
        return values.sum() / max(len(values), 1)
    return torch.where(among, values, 0).sum() / among.sum().clamp_min(1)


def svdd_loss(
    x: torch.Tensor, center: torch.Tensor, radius: torch.Tensor | float = 0.0, nu: float = 0.1
) -> torch.Tensor:
    """The loss of DOHSC (Zhang et al., arXiv 2302.06430), which is that of Deep SVDD on orthogonally projected rows:

        R^2 + 1 / nu * mean_i max(0, |x_i - c|^2 - R^2)

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; not normalised.
        center: c, [D]; the authors use ``svdd_center``.
        radius: R, at least 0: a number or a scalar tensor, constant for the gradient. The authors train with 0; after
            training R is the outer radius of ``shell_radii``, and the score of a row is |x - c|^2 - R^2.
        nu: the fraction of rows that may lie outside, in (0, 1].

    Returns:
        A scalar; float32, float64 for float64.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    nu = _check.number("nu", nu, above=0.0, maximum=1.0)
    distance = _squared_distance(x, center)
    square = _radius("radius", radius, distance).square()
    return square + _mean(F.relu(distance - square)) / nu


def shell_loss(
    x: torch.Tensor, center: torch.Tensor, inner: torch.Tensor | float, outer: torch.Tensor | float
) -> torch.Tensor:
    """The loss of DO2HSC (Zhang et al., arXiv 2302.06430), which moves rows between two spheres:

        mean_i max(d_i, R_out^2) - min(d_i, R_in^2) - (R_out^2 - R_in^2),   d_i = |x_i - c|^2

    The score of a row is (|x - c| - R_in) (|x - c| - R_out).

    Args:
        x, center: as in ``svdd_loss``.
        inner, outer: R_in and R_out, at least 0: numbers or scalar tensors, constant for the gradient; see
            ``shell_radii``.

    Returns, Raises: as ``svdd_loss``.
    """
    distance = _squared_distance(x, center)
    low, high = (_radius(n, v, distance).square() for n, v in (("inner", inner), ("outer", outer)))
    return _mean(F.relu(distance - high) + F.relu(low - distance))


@torch.no_grad()
def shell_radii(x: torch.Tensor, center: torch.Tensor, nu: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """The radii of DOHSC and DO2HSC (arXiv 2302.06430): the quantiles nu and 1 - nu of the distances to the centre.

    Args:
        x, center: as in ``svdd_loss``; x has at least one row.
        nu: in [0, 0.5].

    Returns:
        (inner, outer), scalars; float32, float64 for float64; interpolated linearly, as torch.quantile does (which
        refuses more than 2^24 numbers).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    nu = _check.number("nu", nu, minimum=0.0, maximum=0.5)
    distance = _squared_distance(x, center).sqrt().sort().values
    if not len(distance):
        raise ValueError("x must have at least one row; got none")
    last = len(distance) - 1
    found = []
    for share in (nu, 1 - nu):
        place = min(int(share * last), last)
        after = distance[min(place + 1, last)]
        found.append(torch.lerp(distance[place], after, share * last - place))
    return found[0], found[1]


@torch.no_grad()
def svdd_center(x: torch.Tensor, smallest: float = 0.1) -> torch.Tensor:
    """The centre of Deep SVDD and DOHSC: the mean of the rows. Coordinates with a magnitude below ``smallest`` are set
    to +-``smallest``, by their sign, because a network could match a coordinate near 0 with a constant feature; 0
    itself stays.

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; N at least 1.
        smallest: at least 0.

    Returns:
        [D], float32, float64 for float64; a constant for the gradient.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    smallest = _check.number("smallest", smallest, minimum=0.0)
    if not len(x):
        raise ValueError("x must have at least one row; got none")
    mean = x.to(accumulate_dtype(x.dtype)).mean(0)
    return torch.where(mean.abs() < smallest, mean.sign() * smallest, mean)


def log_barrier_loss(
    x: torch.Tensor,
    anomalous: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    largest_radius: float = 0.4,
) -> torch.Tensor:
    """The log-barrier bi-directional contraction loss of ResAD++ (Yao et al., arXiv 2509.23741). With the radii
    A_i = sqrt(|x_i| + 1) - 1, the barrier b(u) = softplus(u) e^u, where e^u is constant for the gradient,
    R = min(0.9 min of the anomalies' A, 0.4), also constant, and r = 0.99 R, normal rows are moved between the radii r
    and R,

        mean of b(A - R) where A > R   +   mean of b(r - A) where A < r,

    and, if a target is given, anomalous rows stay near it, and outside:

        MSE(x, target) + mean of (1 - cos(x, target)) + mean of b(R + 0.1 - A) where A < R + 0.1

    Args:
        x: mapped residual features [N, D]; float64, float32, bfloat16 or float16; not normalised.
        anomalous: [N], bool.
        target: the features [N, D] before the mapping, of the dtype of x. None: only the first two terms.
        largest_radius: the 0.4 above.

    Returns:
        A scalar; float32, float64 for float64. A mean over no row is 0. The factor e^u is at most e^60.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("anomalous", anomalous, (torch.bool,), dim=1)
    _check.same_device("anomalous", anomalous, "x", x)
    if len(anomalous) != len(x):
        raise ValueError(f"anomalous must have one entry per row of x ({len(x)}); got shape {tuple(anomalous.shape)}")
    largest_radius = _check.number("largest_radius", largest_radius, above=0.0)
    if target is not None:
        _check.tensor("target", target, (x.dtype,), dim=2)
        _check.same_device("target", target, "x", x)
        if target.shape != x.shape:
            raise ValueError(f"target must have the shape of x {tuple(x.shape)}; got {tuple(target.shape)}")
    wide = accumulate_dtype(x.dtype)
    rows = x.to(wide)
    norm = torch.linalg.vector_norm(rows, dim=1)
    radius = norm / ((norm + 1).sqrt() + 1)
    high = torch.where(anomalous, 0.9 * radius.detach(), largest_radius)
    high = torch.cat([high, high.new_full((1,), largest_radius)]).amin()
    low = 0.99 * high
    loss = _barrier(radius - high, ~anomalous) + _barrier(low - radius, ~anomalous)
    if target is None:
        return loss
    before = target.to(wide)
    cosine = (unit_rows(rows, EPS) * unit_rows(before, EPS)).sum(1)
    apart = (rows - before).square().sum(1) / max(x.shape[1], 1) + (1 - cosine)
    return loss + _mean(apart, anomalous) + _barrier(high + 0.1 - radius, anomalous)


def _barrier(u: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The mean of the barrier over the rows that count and whose u is above 0 or NaN."""
    among = among & ~(u <= 0)
    u = torch.where(among, u, 0)
    return _mean(F.softplus(u, threshold=60) * u.detach().clamp_max(_LARGEST_EXPONENT).exp(), among)
