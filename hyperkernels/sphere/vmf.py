"""The von Mises-Fisher distribution on the unit sphere of R^d, density C_d(kappa) e^{kappa mu . x}.

With the order v = d / 2 - 1, log C_d(kappa) = -log(area of the sphere) - log S_v(kappa), where
S_v = Gamma(v + 1) (2 / kappa)^v I_v(kappa) is 1 at kappa = 0. Everything follows from ratios that stay finite there,
r_v = I_v(kappa) / (kappa I_{v-1}(kappa)):

    r_v = 1 / (2 v + kappa^2 r_{v+1}),   log S_{v-1} = log S_v + log(1 + kappa^2 r_{v+1} / (2 v))

All terms are positive, so the recursion loses no accuracy. It starts at an order at which Debye's uniform expansion has
the full accuracy of float64 for every kappa, and goes down.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch

from .. import _check
from .._dtypes import accumulate_dtype, widest_dtype
from ..pairs.pairs import unit_rows
from .once import Slope

_ORDER, _TERMS = 32, 10  # of the expansion, whose first term left out is then below 1e-15
_NEWTON_STEPS = 6


def _debye_polynomials(terms: int) -> list[list[float]]:
    """U_k(p) = p^k (c_0 + c_1 p^2 + ... + c_k p^2k), by their recurrence."""
    rows, row = [], [Fraction(1)]
    for k in range(terms):
        rows.append([float(c) for c in row])
        following = [Fraction(0)] * (k + 2)
        for j, c in enumerate(row):
            power = k + 2 * j
            following[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            following[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        row = following
    return rows


_DEBYE = _debye_polynomials(_TERMS)


def _debye_sum(p: torch.Tensor, order: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of U_k(p) / order^k, and its derivative to p."""
    total, slope = torch.zeros_like(p), torch.zeros_like(p)
    square = p * p
    for k, row in reversed(list(enumerate(_DEBYE))):
        value, derivative = torch.full_like(p, row[-1]), torch.full_like(p, (3 * k) * row[-1])
        for j in range(k - 1, -1, -1):
            value = value * square + row[j]
            derivative = derivative * square + (k + 2 * j) * row[j]
        total = total + value * (p / order) ** k
        if k:
            slope = slope + derivative * (p / order) ** (k - 1) / order
    return total, slope


def _debye(kappa: torch.Tensor, order: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log S_order and r_{order + 1}."""
    z = kappa / order
    t = torch.hypot(torch.ones_like(z), z)
    rise, p = z * (z / (1 + t)), 1 / t  # rise = t - 1
    total, slope = _debye_sum(p, order)
    at_zero, _ = _debye_sum(p.new_ones(()), order)
    log_sum = order * (rise - torch.log1p(rise / 2)) - 0.5 * torch.log1p(rise) + torch.log(total / at_zero)
    ratio = (1 / (1 + t) - p**2 / (2 * order) - p**3 * slope / (order * total)) / order
    return log_sum, ratio


def _orders_above(d: int) -> list[float]:
    """The orders of the recursion, from that of the expansion down to the one above d / 2 - 1."""
    order = d / 2 - 1
    return [order + j for j in range(math.ceil(_ORDER - order), 0, -1)]


def _expansion(kappa: torch.Tensor, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log S_v of the order v = d / 2 - 1, and r_{v + 1}: the mean length over kappa."""
    orders = _orders_above(d)
    log_sum, ratio = _debye(kappa, d / 2 - 1 + len(orders))
    for v in orders:
        growth = kappa * (kappa * ratio)
        log_sum = log_sum + torch.log1p(growth / (2 * v))
        ratio = 1 / (2 * v + growth)
    return log_sum, ratio


def _number(name: str, value: Any, device: torch.device | None = None) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.full((), _check.number(name, value), device=device)
    return _check.tensor(name, value, _check.FLOAT_DTYPES)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(widest_dtype(x.device))


def log_area(d: int) -> float:
    """The logarithm of the area of the unit sphere of R^d."""
    return math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)


def vmf_log_norm(kappa: torch.Tensor | float, d: int) -> torch.Tensor:
    """log C_d(kappa), the logarithm of the constant that makes C_d(kappa) e^{kappa mu . x} a density on the unit sphere
    (Mardia and Jupp, Directional Statistics, 2000). At kappa = 0 it is minus the logarithm of the sphere's area.

    Args:
        kappa: concentrations, any shape, at least 0; float64, float32, bfloat16 or float16; or a number.
        d: dimension of the space, at least 2.

    Returns:
        The shape of kappa; float32, float64 for float64, from arithmetic in float64 where the device has it. Any number
        of derivatives; the first is -``vmf_mean_length``.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    kappa = _number("kappa", kappa)
    _check.integer("d", d, 2)
    log_sum, _ = _expansion(_wide(kappa), d)
    return (-log_area(d) - log_sum).to(accumulate_dtype(kappa.dtype))


def vmf_mean_length(kappa: torch.Tensor | float, d: int) -> torch.Tensor:
    """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa): the length of the mean of x, in [0, 1).

    Args, Returns, Raises: as ``vmf_log_norm``.
    """
    kappa = _number("kappa", kappa)
    _check.integer("d", d, 2)
    wide = _wide(kappa)
    return (wide * _expansion(wide, d)[1]).to(accumulate_dtype(kappa.dtype))


def _length_and_slope(kappa: torch.Tensor, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A_d and its derivative 1 - A_d^2 - (d - 1) A_d / kappa, computed from 1 - A_d, which has a recursion like that of
    r and is accurate for large kappa."""
    orders = _orders_above(d)
    top = d / 2 - 1 + len(orders)
    z = kappa / top
    t = torch.hypot(torch.ones_like(z), z)
    total, slope = _debye_sum(1 / t, top)
    rest = (1 + 1 / (t + z)) / (1 + t) + z / (2 * top * t**2) + z * slope / (top * total * t**3)
    for v in orders:
        rest = (2 * v - kappa * rest) / (2 * v + kappa * (1 - rest))
    ratio = _expansion(kappa, d)[1]
    return kappa * ratio, rest * (2 - rest) - (d - 1) * ratio


class _Concentration(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(length: torch.Tensor, d: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Kappa and its derivative."""
        kappa = length * (d - length**2) / (1 - length**2)
        for _ in range(_NEWTON_STEPS):
            found, slope = _length_and_slope(kappa, d)
            kappa = kappa + (length - found) / slope
        _, slope = _length_and_slope(kappa, d)
        return kappa, 1 / slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, int], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.save_for_backward(output[1], inputs[0])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Slope.apply(grad, *ctx.saved_tensors), None


def vmf_concentration(mean_length: torch.Tensor | float, d: int) -> torch.Tensor:
    """The kappa with A_d(kappa) = mean_length: the maximum likelihood estimate from |mean of x^|. Computed by Newton's
    method from the approximation of Banerjee et al. (JMLR 2005).

    Args:
        mean_length: any shape, in [0, 1]; float64, float32, bfloat16 or float16; or a number. Values of 1 or more count
            as the largest number below 1 of float32 (float64 for float64), with a gradient of 0.
        d: dimension of the space, at least 2.

    Returns:
        The shape of mean_length; float32, float64 for float64. Differentiable once.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    mean_length = _number("mean_length", mean_length)
    _check.integer("d", d, 2)
    dtype = accumulate_dtype(mean_length.dtype)
    largest = 1 - torch.finfo(dtype).eps / 2
    return _Concentration.apply(_wide(mean_length).clamp(-largest, largest), d)[0].to(dtype)


def vmf_log_prob(x: torch.Tensor, mu: torch.Tensor, kappa: torch.Tensor | float) -> torch.Tensor:
    """The logarithm of the density at the rows of x, log C_d(kappa) + kappa mu^ . x^; minus its mean is the negative
    log-likelihood.

    Args:
        x: [N, D], D at least 2; float64, float32, bfloat16 or float16; rows of any length stand for their directions.
        mu: [D], or [N, D], one for each row of x; of the dtype of x.
        kappa: a number, or a tensor [] or [N].

    Returns:
        [N]; float32, float64 for float64.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("mu", mu, (x.dtype,))
    _check.same_device("mu", mu, "x", x)
    if tuple(mu.shape) not in ((x.shape[1],), tuple(x.shape)):
        raise ValueError(f"mu must be [{x.shape[1]}] or of the shape of x {tuple(x.shape)}; got {tuple(mu.shape)}")
    kappa = _number("kappa", kappa, x.device)
    _check.same_device("kappa", kappa, "x", x)
    if tuple(kappa.shape) not in ((), (x.shape[0],)):
        raise ValueError(f"kappa must be a number, a scalar or [{x.shape[0]}]; got shape {tuple(kappa.shape)}")
    wide = accumulate_dtype(x.dtype)
    kappa = kappa.to(wide)
    cosine = (unit_rows(x.to(wide), 1e-12) * unit_rows(mu.to(wide).reshape(-1, x.shape[1]), 1e-12)).sum(1)
    return vmf_log_norm(kappa, x.shape[1]) + kappa * cosine
