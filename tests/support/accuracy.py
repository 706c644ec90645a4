"""The one rule of accuracy: against float64 truth our error is at most twice that of PyTorch in the same dtype."""

from __future__ import annotations

import torch


def assert_as_accurate(
    ours: torch.Tensor,
    peer: torch.Tensor,
    truth: torch.Tensor,
    *,
    factor: float = 2.0,
    magnitude: float = 0.0,
    what: str = "value",
) -> None:
    """``ours`` and ``peer`` have one dtype, ``truth`` is float64. Infinities and NaN must stand where truth has them.

    Errors are Euclidean norms over the tensor. On top, one rounding unit of the truth is granted, for peers that are
    exact by luck or overflow, or of ``magnitude`` where that is larger, and the spacing of subnormals. ``magnitude`` is
    the norm of terms that cancel. In float64 PyTorch is itself the truth, and four units are granted.
    """
    assert ours.dtype == peer.dtype
    assert ours.shape == truth.shape
    info = torch.finfo(ours.dtype)
    finite = truth.isfinite() & (truth.abs() <= info.max)
    torch.testing.assert_close(ours[~finite], truth[~finite].to(ours.dtype), equal_nan=True, rtol=0, atol=0)
    mine, theirs, right = ours[finite].double(), peer[finite].double(), truth[finite]
    assert mine.isfinite().all(), f"{what}: not finite where it should be"
    if right.numel() == 0:
        return
    units = 1.0
    theirs = torch.where(theirs.isfinite(), theirs, right)
    slack = info.eps * max((units * right).norm().item(), magnitude)
    slack += info.smallest_normal * info.eps * right.numel() ** 0.5
    if ours.dtype == torch.float64:
        slack = 4 * info.eps * max(right.norm().item(), magnitude)
    error, allowed = (mine - right).norm().item(), (theirs - right).norm().item()
    worst = (mine - right).abs().argmax()
    assert error <= factor * allowed + slack, (
        f"{what}: error {error:.3e} against {allowed:.3e} of PyTorch; worst at flat index {worst.item()}: "
        f"{mine[worst]:.9g}, truth {right[worst]:.9g}"
    )
