"""v / max(|v|, eps) over the last dimension, and its derivative, in plain PyTorch."""

import torch


def unit_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)


def unit_norm_backward(grad: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """(g - y <y, g>) / |x|; g / eps where the floor holds."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = 1 / norm.clamp_min(eps)
    y = x * inverse
    radial = torch.where(norm < eps, 0, (y * grad).sum(-1, keepdim=True))
    return (grad - y * radial) * inverse
