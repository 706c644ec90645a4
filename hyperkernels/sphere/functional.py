"""Public functions of the geometry. Arguments are checked and flattened to rows; the ops do the work."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._dtypes import accumulate_dtype
from ..kernels.sphere import op
from ..unit_norm import unit_norm


def _rows(first: str, x: Any, second: str, y: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:
    """x and y as [N, D], and the shape of the result. A single row is expanded without a copy."""
    for name, value in ((first, x), (second, y)):
        _check.tensor(name, value, _check.FLOAT_DTYPES)
        if value.dim() == 0:
            raise ValueError(f"{name} must have at least one dimension; got a scalar")
    _check.same_device(second, y, first, x)
    if y.dtype != x.dtype:
        raise TypeError(f"{second} must have the dtype of {first} ({x.dtype}); got {y.dtype}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{second} must have the last dimension of {first} ({x.shape[-1]}); got shape {tuple(y.shape)}"
        )
    try:
        shape = torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError:
        raise ValueError(f"{second} must broadcast with {first} {tuple(x.shape)}; got shape {tuple(y.shape)}") from None
    return _matrix(x, shape), _matrix(y, shape), shape


def _matrix(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    x = (
        x.expand(shape).reshape(_count(shape), shape[-1])
        if x.numel() != shape[-1]
        else x.reshape(1, -1).expand(_count(shape), -1)
    )
    return x if x.stride(-1) == 1 else x.contiguous()


def _count(shape: torch.Size) -> int:
    return shape[:-1].numel()


def _part(t: Any, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    dtype = accumulate_dtype(like.dtype)
    if not isinstance(t, torch.Tensor):
        return torch.full((_count(shape),), _check.number("t", t), dtype=dtype, device=like.device)
    _check.tensor("t", t, _check.FLOAT_DTYPES)
    _check.same_device("t", t, "x", like)
    try:
        return t.to(dtype).expand(shape[:-1]).reshape(-1)
    except RuntimeError:
        raise ValueError(f"t must broadcast to {tuple(shape[:-1])}; got shape {tuple(t.shape)}") from None


def angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Angle between the rows of x and y, 2 atan2(|y^ - x^|, |y^ + x^|). It is accurate near 0 and pi, where acos of the
    cosine is not.

    Args:
        x, y: [..., D], of one dtype, float64, float32, bfloat16 or float16, broadcastable; rows of any length. A row
            shorter than 1e-12 counts as 0: its angle to every longer row is pi/2, to another such row pi.

    Returns:
        [...] in [0, pi], float32 (float64 for float64). Its gradient is 0 where the points coincide or are opposite.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    a, b, shape = _rows("x", x, "y", y)
    return op.points(a, b, None, "angle").reshape(shape[:-1])


def slerp(x: torch.Tensor, y: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """The point at the fraction t of the geodesic from the direction of x to that of y (spherical linear interpolation,
    Shoemake, 1985): sin((1 - t) theta) / sin(theta) x^ + sin(t theta) / sin(theta) y^.

    Args:
        x, y: [..., D], of one dtype, float64, float32, bfloat16 or float16, broadcastable; rows of any length.
        t: a number, or a tensor that broadcasts to [...]; outside [0, 1] the geodesic is continued.

    Returns:
        [..., D], unit rows in the dtype of x. Opposite points are joined by many geodesics: the one through the axis of
        x's smallest coordinate is taken, and the gradients of x and y are 0.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    a, b, shape = _rows("x", x, "y", y)
    return op.points(a, b, _part(t, shape, a), "slerp").reshape(shape)


def log_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The logarithm, the tangent at x that points to y: theta / sin(theta) (y^ - cos(theta) x^), of length theta.

    Args, Returns, Raises: as ``slerp``; the result is [..., D], orthogonal to x.
    """
    a, b, shape = _rows("x", x, "y", y)
    return op.points(a, b, None, "log").reshape(shape)


def _vectors(x: torch.Tensor, v: torch.Tensor, kind: str) -> torch.Tensor:
    a, b, shape = _rows("x", x, "v", v)
    return op.vectors(a, b, kind).reshape(shape)


def tangent(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The part of v that is tangent to the sphere at x: v - (x^ . v) x^.

    Args:
        x: [..., D] points, float64, float32, bfloat16 or float16; rows of any length stand for their directions.
        v: [..., D] vectors of the same dtype, broadcastable with x.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    return _vectors(x, v, "tangent")


def exp_map(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The exponential map: the end, at time 1, of the geodesic that starts at x with velocity w, the tangent part of v:
    cos|w| x^ + sin|w| w / |w|.

    Args, Returns, Raises: as ``tangent``; the result is a unit row.
    """
    return _vectors(x, v, "exp")


def retract(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A retraction: (x^ + w) / |x^ + w| with w the tangent part of v. It agrees with ``exp_map`` to second order and
    needs no sine and cosine.

    Args, Returns, Raises: as ``tangent``; the result is a unit row.
    """
    return _vectors(x, v, "retract")


def transport(x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Parallel transport of the tangent part w of v along the geodesic from x to y:
    w - (y^ . w) / (1 + x^ . y^) (x^ + y^), which keeps lengths and angles.

    Args:
        x, y: [..., D] points; rows of any length stand for their directions.
        v: [..., D] vectors; all three of one dtype and broadcastable.

    Returns:
        [..., D] in the dtype of x, tangent at y. Between opposite points the transport is not unique: w is returned,
        which is tangent at both.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _rows("x", x, "y", y)
    w = tangent(x, v)
    # The reflection in the hyperplane that swaps x^ and -y^; it acts on a tangent of x as the transport does.
    middle = unit_norm(x) + unit_norm(y)
    return 2 * tangent(middle, w) - w


def residual(h: torch.Tensor, block: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """The normalised residual of nGPT (Loshchilov et al., arXiv 2410.01131): the direction of
    h^ + alpha (block^ - h^), a step from h towards the output of a block.

    Args:
        h, block: [..., D], of one dtype, float64, float32, bfloat16 or float16, broadcastable; any length.
        alpha: a number, or a tensor [] or [D] of step sizes per dimension, of any float dtype.

    Returns:
        [..., D], unit rows in the dtype of h; 0, with a gradient of 0, where the sum vanishes.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    a, b, shape = _rows("h", h, "block", block)
    return op.residual(a, b, _per_dimension("alpha", alpha, (shape[-1],), a)).reshape(shape)


def scaled_unit_norm(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """scale * x / |x|, with a scale per dimension: queries and keys of nGPT (arXiv 2410.01131).

    Args:
        x: [..., D], float64, float32, bfloat16 or float16.
        scale: a number, or a tensor of the last dimensions of x: [D], [heads, D], ...; of any float dtype.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    a, _, shape = _rows("x", x, "x", x)
    trailing = tuple(scale.shape) if isinstance(scale, torch.Tensor) and scale.dim() else (shape[-1],)
    if len(trailing) > len(shape) or trailing != tuple(shape[len(shape) - len(trailing) :]):
        raise ValueError(f"scale must have the last dimensions of x {tuple(shape)}; got shape {trailing}")
    scale = _per_dimension("scale", scale, trailing, a)
    return op.scaled_unit_norm(a, scale.reshape(scale.shape[:-1].numel(), shape[-1])).reshape(shape)


def _per_dimension(name: str, value: Any, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    dtype = accumulate_dtype(like.dtype)
    if not isinstance(value, torch.Tensor):
        return torch.full(shape, _check.number(name, value), dtype=dtype, device=like.device)
    _check.tensor(name, value, _check.FLOAT_DTYPES)
    _check.same_device(name, value, "the rows", like)
    if value.dim() and tuple(value.shape) != shape:
        raise ValueError(f"{name} must be a number or of shape {shape}; got shape {tuple(value.shape)}")
    return value.to(dtype).expand(shape).contiguous()


def bezier(points: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """Spherical Bezier curve, by de Casteljau's construction with geodesics instead of lines (CM3, arXiv 2508.01226).
    For two control points it is ``slerp``.

    Args:
        points: [K, ..., D] control points, K at least 1; rows of any length stand for their directions.
        t: a number, or a tensor that broadcasts to [...].

    Returns:
        [..., D], unit rows in the dtype of points.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("points", points, _check.FLOAT_DTYPES)
    if points.dim() < 2 or points.shape[0] < 1:
        raise ValueError(f"points must be [K, ..., D] with K at least 1; got shape {tuple(points.shape)}")
    if points.shape[0] == 1:
        return unit_norm(points[0])
    while points.shape[0] > 1:
        points = slerp(points[:-1], points[1:], t)
    return points[0]
