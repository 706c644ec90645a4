"""Points, tangents and residuals on the unit sphere in plain PyTorch, row by row; derivatives by autograd.

x^ is the direction of a row, 0 with a zero gradient where the row is shorter than EPS. For two points d = y^ - x^ and
s = y^ + x^ give the angle theta = 2 atan2(|d|, |s|), and w = y^ - cos(theta) x^ points from x^ along the geodesic to
y^, of length sin(theta) = |d| |s| / 2. Neither loses digits where the cosine is near 1 or -1.
"""

from __future__ import annotations

import torch

from ..._dtypes import accumulate_dtype
from ..unit_norm.reference import yardstick
from .problem import EPS, OPPOSITE


def _length(v: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def direction(x: torch.Tensor) -> torch.Tensor:
    """x / |x| in the accumulator's dtype."""
    x = x.to(accumulate_dtype(x.dtype))
    near = yardstick(x)
    x = x / near
    norm = _length(x)
    short = norm * near < EPS
    return torch.where(short, 0, x) / torch.where(short, 1, norm)


def _sinc(angle: torch.Tensor) -> torch.Tensor:
    return torch.sinc(angle / torch.pi)


def _crossing(x: torch.Tensor) -> torch.Tensor:
    """A unit tangent at the unit rows x: towards the axis of the smallest coordinate."""
    if x.shape[-1] == 0:
        return x
    axis = torch.nn.functional.one_hot(x.abs().argmin(-1), x.shape[-1]).to(x.dtype)
    tangent = axis - (axis * x).sum(-1, keepdim=True) * x
    norm = _length(tangent)
    return tangent / torch.where(norm == 0, 1, norm)


def points(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor | None, kind: str) -> torch.Tensor:
    """Of the points x and y, [N, D]. "angle": theta, [N], in the accumulator's dtype. "slerp": the point that has gone
    the share t [N] of the way from x^ to y^. "log": the tangent at x^ that leads to y^, of length theta."""
    dtype = x.dtype
    x, y = direction(x), direction(y)
    difference, total = y - x, y + x
    chord, co_chord = _length(difference), _length(total)
    opposite = co_chord <= OPPOSITE * torch.finfo(x.dtype).eps
    angle = torch.where(opposite, torch.pi, 2 * torch.atan2(chord, co_chord))
    if kind == "angle":
        return angle.squeeze(-1)
    near = chord <= co_chord
    apart = torch.where(near, difference, total)
    way = apart - (apart * x).sum(-1, keepdim=True) * x
    # sin(theta) / theta without a zero to divide by where the points are opposite.
    sine_ratio = torch.where(
        near, _sinc(angle), 0.5 * chord * torch.where(opposite, 1, co_chord) / torch.where(near, 1, angle)
    )
    if kind == "log":
        out = torch.where(opposite, torch.pi * _crossing(x.detach()), way / sine_ratio)
        return out.to(dtype)
    assert t is not None
    part = t[:, None].to(x.dtype)
    out = torch.cos(part * angle) * x + part * _sinc(part * angle) / sine_ratio * way
    fixed = x.detach()
    turned = torch.cos(part * torch.pi) * fixed + torch.sin(part * torch.pi) * _crossing(fixed)
    return torch.where(opposite, turned, out).to(dtype)


def vectors(x: torch.Tensor, v: torch.Tensor, kind: str) -> torch.Tensor:
    """Of the points x and vectors v, [N, D], whose tangent part is w = v - (x^ . v) x^. "tangent": w. "exp": the point
    cos|w| x^ + sinc|w| w. "retract": (x^ + w) / |x^ + w|."""
    dtype = x.dtype
    x = direction(x)
    v = v.to(x.dtype)
    w = v - (x * v).sum(-1, keepdim=True) * x
    if kind == "tangent":
        return w.to(dtype)
    if kind == "exp":
        norm = _length(w)
        return (torch.cos(norm) * x + _sinc(norm) * w).to(dtype)
    near = yardstick(w).clamp_min(1)  # the square of a long w may overflow
    x, w = x / near, w / near
    return ((x + w) / torch.sqrt(near**-2 + _length(w) ** 2)).to(dtype)


def residual(h: torch.Tensor, block: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The direction of h^ + alpha (block^ - h^): h and block [N, D], alpha [D]."""
    start, end = direction(h), direction(block)
    return direction(start + alpha.to(start.dtype) * (end - start)).to(h.dtype)


def scaled_unit_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """scale * x^: x [N, D], scale [S, D] of which row r of x takes row r mod S."""
    unit = direction(x)
    turns = x.shape[0] // max(1, scale.shape[0])
    rows = unit.reshape(turns, *scale.shape) * scale.to(unit.dtype)
    return rows.reshape(x.shape).to(x.dtype)


def _segment_or_none(labels: torch.Tensor, segments: int) -> torch.Tensor:
    """Labels that name no segment as that of one more."""
    return torch.where((labels >= 0) & (labels < segments), labels, segments)


def segment_sum(x: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Sums [K, D] of the rows of x [N, D] that have the labels 0, ..., K - 1, in the accumulator's dtype. The order and
    offsets [K + 1] of the rows sorted by label say the same as the labels; they are for kernels."""
    segments = offsets.shape[0] - 1
    total = torch.zeros(segments + 1, x.shape[1], dtype=accumulate_dtype(x.dtype), device=x.device)
    return total.index_add(0, _segment_or_none(labels, segments), x.to(total.dtype))[:segments]


def segment_gather(grad: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of the rows of grad [K, D] those that the labels name, 0 for none: the gradient of a sum over segments."""
    padded = torch.nn.functional.pad(grad, (0, 0, 0, 1))
    return padded[_segment_or_none(labels, grad.shape[0])]
