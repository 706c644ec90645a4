"""v / max(|v|, eps) over the last dimension, and its derivative, in plain PyTorch: in float64
where the device has it, rounded once."""

import torch

from ..._dtypes import widest_dtype


def yardstick(v: torch.Tensor) -> torch.Tensor:
    """What to divide rows by so that their squares neither overflow nor vanish, [..., 1]: 1 for all but the extreme.
    A constant for the gradient."""
    if v.shape[-1] == 0:
        return v.new_ones(*v.shape[:-1], 1)
    largest = v.detach().abs().amax(-1, keepdim=True)
    extreme = (largest > 0) & largest.isfinite() & ((largest < 1e-15) | (largest > 1e15))
    return torch.where(extreme, largest, 1)


def unit_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    v = x.to(widest_dtype(x.device))
    near = yardstick(v)
    v = v / near
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # A number over a tensor would be a product with its inverse, which may overflow.
    return (v / torch.maximum(norm, torch.full_like(near, eps) / near)).to(x.dtype)


def unit_norm_backward(grad: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """(g - y <y, g>) / |x|; g / eps where the floor holds."""
    v, g = (t.to(widest_dtype(x.device)) for t in (x, grad))
    near = yardstick(v)
    norm = torch.linalg.vector_norm(v / near, dim=-1, keepdim=True) * near
    divisor = norm.clamp_min(eps)
    y = v / divisor
    radial = torch.where(norm < eps, 0, (y * g).sum(-1, keepdim=True))
    return ((g - y * radial) / divisor).to(x.dtype)
