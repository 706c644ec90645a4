from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .. import _check
from ..unit_norm import unit_norm_

Pair = tuple[torch.Tensor, int]


def _pair(entry: Any, dim: int) -> Pair:
    parameter, own = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, dim)
    _check.tensor("params", parameter, _check.FLOAT_DTYPES)
    _check.integer("dim", own)
    if not -parameter.dim() <= own < parameter.dim():
        raise ValueError(f"dim must be a dimension of its parameter; got {own} for shape {tuple(parameter.shape)}")
    return parameter, own


def _pairs(params: Any, dim: int) -> list[Pair]:
    if isinstance(params, torch.Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"params must be parameters, or pairs of a parameter and its dim, in a list; got {type(params).__name__}"
        )
    return [_pair(entry, dim) for entry in params]


def renormalize(
    optimizer: torch.optim.Optimizer,
    params: Iterable[torch.Tensor | Pair] | None = None,
    *,
    dim: int = -1,
) -> Any:
    """Put parameters on the unit sphere, now and after each ``optimizer.step()``, whatever the optimizer.

        handle = hk.optim.renormalize(optimizer, [(model.query, 1), (model.output, 0)])

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        params: parameters, or (parameter, dim) pairs, whose vectors along ``dim`` are divided by their lengths in
            place; None takes all parameters of the optimizer that have two dimensions or more, also of groups that are
            added later.
        dim: the dimension that holds the vectors, of parameters that are given without one.

    Returns:
        A handle; ``handle.remove()`` ends it.

    The state of the optimizer is not changed. A copy of the optimizer, by deepcopy or pickle, does not renormalise.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
    _check.integer("dim", dim)
    fixed = None if params is None else _pairs(params, dim)

    def pairs() -> list[Pair]:
        if fixed is not None:
            return fixed
        return _pairs([p for group in optimizer.param_groups for p in group["params"] if p.dim() >= 2], dim)

    def project(*_: Any) -> None:
        for parameter, own in pairs():
            unit_norm_(parameter, own)

    project()
    return optimizer.register_step_post_hook(project)
