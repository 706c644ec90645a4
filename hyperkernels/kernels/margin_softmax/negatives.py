"""What the softmax, or the sum, is taken over: the transformed cosines of the other classes.

A transform has a kind and one row of parameters a sample, so that thresholds may follow each sample's own target and
coefficients may be tensors of the device. `KINDS` lists the parameters of each kind in their order. With c the cosine,
s the sample's scale and b the class's bias:

- cosine: phi = c.
- quadratic: phi = q2 c^2 + q1 c + q0 with slope d1 c + d0 where c > threshold (a hard negative), else easy * c with
  slope easy. The slope is apart from the value because some methods hold a factor constant.
- gaussian: phi = r c + r - 1 with r = alpha exp(-(c - center)^2 / sigma) held constant: the slope is r.
- angle: phi = cos(acos(c) / divisor); its slope is exact, or 1 where straight is not 0.
- sface: f = s r c with r = sigmoid(-steepness (acos(c) - angle)) held constant: the slope is s r.
- sphereface2: f = softplus(z), z = s (2 ((c + 1) / 2)^power - 1 + margin) + b; power is an integer of 1 to 8; the slope
  is exact, or s sigmoid(z) where straight is not 0.
- uniface: f = softplus(z), z = s c + b held in [-s, s], with slope s sigmoid(z) inside and 0 outside.

The first four feed a log-sum-exp of s * class_scale * phi + b; the last three are summed as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

KINDS: dict[str, tuple[str, ...]] = {
    "cosine": (),
    "quadratic": ("threshold", "q2", "q1", "q0", "d1", "d0", "easy"),
    "gaussian": ("center", "alpha", "sigma"),
    "angle": ("divisor", "straight"),
    "sface": ("steepness", "angle"),
    "sphereface2": ("margin", "power", "straight"),
    "uniface": (),
}
SUMS = ("sface", "sphereface2", "uniface")
LARGEST_POWER = 8


class Negatives(NamedTuple):
    """A transform of the cosines of the other classes: its kind and parameters [N, P], None where it has none."""

    kind: str
    parameters: torch.Tensor | None


COSINE = Negatives("cosine", None)


def negatives(kind: str, like: torch.Tensor, **parameters: torch.Tensor | float) -> Negatives:
    """Parameters given as numbers, scalars or [N], gathered into rows of the dtype and device of ``like`` [N]."""
    if set(parameters) != set(KINDS[kind]):
        raise TypeError(f"{kind} takes {KINDS[kind]}; got {tuple(parameters)}")
    if not KINDS[kind]:
        return Negatives(kind, None)
    columns = [parameters[name] for name in KINDS[kind]]
    rows = [
        column.detach().to(like).expand(like.shape)
        if isinstance(column, torch.Tensor)
        else like.new_full(like.shape, column)
        for column in columns
    ]
    return Negatives(kind, torch.stack(rows, dim=1))
