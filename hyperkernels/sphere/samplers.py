"""Random points on the unit sphere."""

from __future__ import annotations

import math

import torch

from .. import _check
from .._dtypes import accumulate_dtype, widest_dtype
from ..unit_norm import unit_norm
from .functional import tangent

# Of every proposal at least 0.65 are accepted (0.66 for d = 2 and large kappa, 0.69 at d = 3, more above): the chance
# that none of these is, when the last one is taken all the same, is below the rounding of a float64.
_PROPOSALS = 40


def sample_uniform(
    n: int,
    d: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Points drawn uniformly from the unit sphere of R^d.

    Args:
        n: the number of points, at least 0.
        d: dimension of the space, at least 1.
        generator: a torch.Generator on the device; None: torch's default one.
        device, dtype: of the result; None: the device of the generator (torch's default without one), and torch's
            default dtype.

    Returns:
        [n, d] unit rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.integer("n", n, 0)
    _check.integer("d", d, 1)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _check.FLOAT_DTYPES:
        raise TypeError(f"dtype must be float64, float32, bfloat16 or float16; got {dtype}")
    if device is None and generator is not None:
        device = generator.device
    rows = torch.randn(n, d, generator=generator, device=device, dtype=accumulate_dtype(dtype))
    return unit_norm(rows).to(dtype)


@torch.no_grad()
def sample_vmf(
    mu: torch.Tensor, kappa: torch.Tensor | float, n: int, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Points drawn from von Mises-Fisher distributions, by rejection (Wood, 1994; the proposals by Ulrich's formula,
    1984).

    The component along mu is drawn first, in float64 where the device has it; the rest is the tangent part at mu of a
    Gaussian vector, scaled to the remaining length. It is uniform around mu. (A reflection of an axis to mu would be
    inaccurate where the two are close.)

    Args:
        mu: [..., D] mean directions, D at least 2; float64, float32, bfloat16 or float16; rows of any length.
        kappa: concentrations, at least 0: a number, or a tensor that broadcasts to [...].
        n: the number of points for each mu, at least 0.
        generator: a torch.Generator on the device of mu; None: torch's default one.

    Returns:
        [n, ..., D], unit rows in the dtype of mu, without gradient. On CUDA there is no synchronisation: the number of
        proposals is fixed, and a point for which all are rejected takes the last one (probability 1e-18 for each
        point). On the CPU new proposals are made until all points are accepted.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("mu", mu, _check.FLOAT_DTYPES)
    if mu.dim() == 0 or mu.shape[-1] < 2:
        raise ValueError(f"mu must be [..., D] with D at least 2; got shape {tuple(mu.shape)}")
    _check.integer("n", n, 0)
    if isinstance(kappa, torch.Tensor):
        _check.tensor("kappa", kappa, _check.FLOAT_DTYPES)
        _check.same_device("kappa", kappa, "mu", mu)
    else:
        kappa = torch.full(
            (), _check.number("kappa", kappa, minimum=0.0), dtype=widest_dtype(mu.device), device=mu.device
        )
    try:
        kappa = kappa.to(widest_dtype(mu.device)).expand(mu.shape[:-1])
    except RuntimeError:
        raise ValueError(f"kappa must broadcast to {tuple(mu.shape[:-1])}; got shape {tuple(kappa.shape)}") from None
    away = _one_minus_component(kappa, mu.shape[-1], n, generator)
    wide = mu.to(accumulate_dtype(mu.dtype))
    center = unit_norm(wide).expand(n, *mu.shape)
    noise = torch.randn(center.shape, generator=generator, device=mu.device, dtype=wide.dtype)
    around = unit_norm(tangent(center, noise))
    across = (away * (2 - away)).sqrt()[..., None].to(wide.dtype)
    return unit_norm((1 - away)[..., None].to(wide.dtype) * center + across * around).to(mu.dtype)


def _one_minus_component(kappa: torch.Tensor, d: int, n: int, generator: torch.Generator | None) -> torch.Tensor:
    """1 - w, [n, ...], where w is the component along the mean, with density e^{kappa w} (1 - w^2)^{(d-3)/2}. 1 - w is
    accurate for large kappa, where w is close to 1."""
    shape = (n, *kappa.shape)
    b = (d - 1) / (2 * kappa + torch.hypot(2 * kappa, torch.full_like(kappa, d - 1)))
    peak, short = (1 - b) / (1 + b), 2 * b / (1 + b)  # Wood's x_0, and 1 - x_0
    floor = torch.log(4 * b) - 2 * torch.log1p(b)  # log(1 - x_0^2)
    power = math.inf if d == 2 else 2 / (d - 2)
    away = kappa.new_zeros(shape)
    open_ = torch.ones(shape, dtype=torch.bool, device=kappa.device)
    for _ in range(_PROPOSALS):
        u = torch.rand((3, *shape), generator=generator, dtype=kappa.dtype, device=kappa.device)
        # A component of a uniform point: of density (1 - c^2)^{(d-3)/2}.
        c = (-torch.expm1(u[0].log() * power)).sqrt() * torch.cos(2 * torch.pi * u[1])
        z = (1 - c) / 2
        proposed = 2 * b * z / (1 - (1 - b) * z)
        inside = short + peak * proposed  # 1 - x_0 w
        likely = kappa * (short - proposed) + (d - 1) * (inside.log() - floor)
        away = torch.where(open_, proposed, away)
        open_ &= likely < u[2].log()
        if kappa.device.type == "cpu" and not torch.compiler.is_compiling() and not open_.any():
            break
    return away
