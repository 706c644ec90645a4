from __future__ import annotations

from collections.abc import Iterable

import torch


def gradient_values(parameter: torch.Tensor) -> torch.Tensor:
    """The values of the parameter's gradient, which may be changed in place; a sparse gradient is coalesced first."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.sparse_coo:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()


@torch.no_grad()
def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """``torch.nn.utils.clip_grad_norm_`` for dense and sparse gradients; torch's refuses sparse ones.

    Args:
        parameters: one or several; those without a gradient are left out. A sparse gradient that is not coalesced is
            replaced by its coalesced form.
        max_norm: the largest norm of all gradients together.
        norm_type: p of the norm; ``inf`` for the largest magnitude.
        error_if_nonfinite: raise RuntimeError where the norm is NaN or infinite.
        foreach: as torch's.

    Returns:
        The norm of all gradients together before clipping, a scalar.
    """
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    gradients = [gradient_values(parameter) for parameter in parameters if parameter.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients, norm_type, error_if_nonfinite, foreach)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    return total
