"""Measures of how far apart points on the sphere are, without the N x N distances."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._dtypes import accumulate_dtype, widest_dtype
from ..kernels.pair_mining import selections
from ..kernels.sphere.problem import EPS
from ..losses.spread import log_mean_exp_of
from ..pairs.pairs import Pairs, unit_rows
from .once import Slope

_BLOCK = 2**20  # pairs of points that the Riesz energy holds at a time
REDUCTIONS = ("mean", "sum")


class _Riesz(torch.autograd.Function):
    """The sum over ordered pairs of unit rows, and its gradient where needed. One pass over blocks of rows
    computes both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(unit: torch.Tensor, s: float, floor: float, wanted: bool) -> tuple[torch.Tensor, torch.Tensor]:
        n, factor = len(unit), s or 1.0
        energy = torch.zeros_like(unit[:1, :1].sum())
        gradient = torch.zeros_like(unit) if wanted else None
        first = 0
        while first < n:
            last = min(n, first + max(1, _BLOCK // (n - first)))
            block, after = unit[first:last], unit[first:]
            # Of the block's rows with those from its first on; a pair within the block is met twice, and counts half.
            square = 2 - 2 * (block @ after.T)
            square.diagonal().fill_(torch.inf)
            held = square.clamp_min(floor**2)
            slope = held.rsqrt() ** (s + 2)  # -2 / factor times the derivative to the squared distance
            value = held * slope if s else held.log().mul_(-0.5)
            # Below the floor it goes on as a straight line in the squared distance.
            value += held.sub_(square).mul_(slope).mul_(factor / 2)
            value.diagonal().zero_()
            energy = energy + 2 * value.sum() - value[:, : last - first].sum()
            if gradient is not None:
                gradient[first:last] += slope @ after
                gradient[last:] += slope[:, last - first :].T @ block
            first = last
        return energy, unit.new_empty(0) if gradient is None else gradient.mul_(2 * factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.save_for_backward(output[1], inputs[0])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return Slope.apply(grad, *ctx.saved_tensors), None, None, None


def riesz_energy(
    x: torch.Tensor, s: float = 1.0, *, reduction: str = "mean", min_distance: float = 1e-4
) -> torch.Tensor:
    """The Riesz energy, or minimum hyperspherical energy (Liu et al., arXiv 1805.09298), of the directions of the rows:
    over all pairs i != j

        |x_i^ - x_j^|^-s,   -log |x_i^ - x_j^| for s = 0

    Computed in float64 where the device has it, over blocks of rows that give value and gradient at once; the N x N
    energies are never stored.

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows of any length.
        s: at least 0.
        reduction: "mean" over the N (N - 1) pairs, or "sum".
        min_distance: above 0. Below it the energy is continued linearly in the squared distance, by its tangent: it
            stays finite, and drives pairs apart unless they coincide.

    Returns:
        A scalar; float32, float64 for float64; finite while min_distance^-s is. 0 for fewer than two rows.
        Differentiable once.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    s = _check.number("s", s, minimum=0.0)
    _check.choice("reduction", reduction, REDUCTIONS)
    floor = _check.number("min_distance", min_distance, above=0.0, maximum=2.0)
    n = len(x)
    unit = unit_rows(x.to(widest_dtype(x.device)), EPS)
    energy, _ = _Riesz.apply(unit, s, floor, torch.is_grad_enabled() and unit.requires_grad)
    return (energy / max(n * (n - 1), 1) if reduction == "mean" else energy).to(accumulate_dtype(x.dtype))


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """The squared distance of every direction to its nearest, [N]; 0 for a single row. The nearest is found by cosines
    in the dtype of x; the distance is that of the difference, in the accumulator's dtype."""
    with torch.no_grad():
        index = Pairs(x).statistics("all", extremes=True).argmax
    unit = unit_rows(x.to(accumulate_dtype(x.dtype)), EPS)
    rows = torch.arange(len(x), device=x.device)
    return -selections.values(unit, None, rows, torch.where(index < 0, rows, index), "squared_euclidean")


def _root(square: torch.Tensor) -> torch.Tensor:
    """The square root, with a gradient of 0 at 0."""
    some = square > 0
    return torch.where(some, torch.where(some, square, 1).sqrt(), 0 * square)


def koleo(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """The Kozachenko-Leonenko entropy loss (Sablayrolles et al., arXiv 1806.03198) of the directions of the rows:

        -mean_i log(min_{j != i} |x_i^ - x_j^| + eps)

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows of any length.
        eps: above 0; rows that coincide have -log(eps), and a gradient of 0.

    Returns:
        A scalar; float32, float64 for float64. 0 for fewer than two rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    eps = _check.number("eps", eps, above=0.0)
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    square = _nearest(x)
    return -(_root(square) + eps).log().mean() if len(x) > 1 else square.sum()


def mean_nearest_angle(x: torch.Tensor) -> torch.Tensor:
    """The mean angle from a row to its nearest; minus it is the loss of MMA (Wang et al., arXiv 2006.06527).

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows of any length.

    Returns:
        A scalar in [0, pi]; float32, float64 for float64; its gradient is 0 where rows coincide or are opposite. 0 for
        fewer than two rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    square = _nearest(x)
    angle = 2 * torch.atan2(_root(square), _root(4 - square))
    return angle.mean() if len(x) > 1 else square.sum()


def packing(x: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Soft packing: t log of the mean over i != j of e^{cos(x_i, x_j) / t}, which tends to the largest cosine of two
    rows as t tends to 0. (The hard one is ``hk.losses.nearest_pair_packing``.)

    Args:
        x: [N, D]; float64, float32, bfloat16 or float16; rows of any length.
        temperature: t, above 0.

    Returns:
        A scalar; float32, float64 for float64. 0 for fewer than two rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    temperature = _check.number("temperature", temperature, above=0.0)
    return temperature * log_mean_exp_of(Pairs(x), scale=1 / temperature)
