"""The formulas in plain PyTorch, any dtype, with the N x C matrix in memory: what the kernels are compared with."""

import torch


def unit_rows(v: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """v / max(|v|, eps) by rows, and |v|; a row shorter than eps is a constant for the gradient."""
    norm = torch.linalg.vector_norm(v, dim=1)
    short = norm < eps
    unit = v / norm.clamp_min(eps)[:, None]
    return torch.where(short[:, None], unit.detach(), unit), torch.where(short, norm.detach(), norm)


def class_statistics(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C, D]
    target: torch.Tensor,  # [N] int64
    scale: float,
    eps: float,
    ignore_index: int,
) -> tuple[torch.Tensor, ...]:
    """(neg_lse, target_cos, x_norm, hardest_cos, hardest_class, neg_cos_sum), [N] each; see `functional`."""
    active = target != ignore_index
    safe_target = torch.where(active, target, 0)
    if (
        target.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and bool(((safe_target < 0) | (safe_target >= len(weight))).any())
    ):
        raise IndexError(f"target must lie in [0, {len(weight)}) or equal ignore_index={ignore_index}")
    x_hat, x_norm = unit_rows(x, eps)
    w_hat, _ = unit_rows(weight, eps)
    cos = torch.where(active[:, None], x_hat, 0) @ w_hat.T  # [N, C]
    is_target = torch.arange(len(weight), device=x.device) == safe_target[:, None]
    target_cos = torch.where(is_target, cos, 0).sum(1)
    neg_cos_sum = torch.where(is_target, 0, cos).sum(1)
    negatives = cos.masked_fill(is_target, -torch.inf)
    neg_lse = torch.logsumexp(scale * negatives, dim=1) if len(weight) > 1 else torch.full_like(target_cos, -torch.inf)
    hardest_cos, hardest_class = negatives.detach().max(dim=1)
    none = ~active | (hardest_cos == -torch.inf)
    return (
        torch.where(active, neg_lse, -torch.inf),
        torch.where(active, target_cos, 0),
        torch.where(active, x_norm, x_norm.detach()),
        torch.where(active, hardest_cos, -torch.inf),
        torch.where(none, -1, hardest_class),
        torch.where(active, neg_cos_sum, 0),
    )
