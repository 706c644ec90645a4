"""v / max(|v|, eps) over the last dimension, and its derivative, in plain PyTorch: in float64, rounded once."""

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    """float64, or float32 on a device that has none."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def unit_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    v = _wide(x)
    return (v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(eps)).to(x.dtype)


def unit_norm_backward(grad: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """(g - y <y, g>) / |x|; g / eps where the floor holds."""
    v, g = _wide(x), _wide(grad)
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    divisor = norm.clamp_min(eps)
    y = v / divisor
    radial = torch.where(norm < eps, 0, (y * g).sum(-1, keepdim=True))
    return ((g - y * radial) / divisor).to(x.dtype)
