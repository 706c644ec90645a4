"""The formulas in plain PyTorch, any dtype, with the N x C matrix in memory: what the kernels are compared with."""

import torch


def unit_rows(v: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """v / max(|v|, eps) by rows, and |v|; a row shorter than eps is a constant for the gradient."""
    # The largest magnitude is taken out of a row first, so that its squares neither overflow nor vanish.
    largest = v.detach().abs().amax(dim=1, keepdim=True) if v.shape[1] else v.new_zeros(len(v), 1)
    near = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    norm = torch.linalg.vector_norm(v / near, dim=1, keepdim=True)
    short = norm * near < eps
    unit = v / near / torch.maximum(norm, eps / near)
    norm = norm * near
    return torch.where(short, unit.detach(), unit), torch.where(short, norm.detach(), norm)[:, 0]


def class_statistics(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C, D]
    target: torch.Tensor,  # [N] int64
    scale: float,
    eps: float,
    ignore_index: int,
) -> tuple[torch.Tensor, ...]:
    """(neg_lse, target_cos, x_norm, hardest_cos, hardest_class, neg_cos_sum), [N] each; see `functional`."""
    classes = len(weight)
    active = target != ignore_index
    outside = active & ((target < 0) | (target >= classes))
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and bool(outside.any()):
        raise IndexError(f"target must lie in [0, {classes}) or equal ignore_index={ignore_index}")
    x_hat, x_norm = unit_rows(torch.where(active[:, None], x, 0), eps)
    w_hat, _ = unit_rows(weight, eps)
    with torch.autocast(x.device.type, enabled=False):  # a cosine in half precision is no cosine
        cos = x_hat @ w_hat.T  # [N, C]
    is_target = torch.arange(classes, device=x.device) == torch.where(active, target, 0)[:, None]
    target_cos = torch.where(is_target, cos, 0).sum(1)
    neg_cos_sum = torch.where(is_target, 0, cos).sum(1)
    negatives = cos.masked_fill(is_target, -torch.inf)
    neg_lse = torch.logsumexp(scale * negatives, dim=1) if classes > 1 else torch.full_like(target_cos, -torch.inf)
    hardest_cos, hardest_class = negatives.detach().max(dim=1)
    return (
        torch.where(active, torch.where(outside, torch.nan, neg_lse), -torch.inf),
        torch.where(active, torch.where(outside, torch.nan, target_cos), 0),
        x_norm,
        torch.where(active, hardest_cos, -torch.inf),
        torch.where(~active | (hardest_cos == -torch.inf), -1, hardest_class),
        torch.where(active, neg_cos_sum, 0),
    )
