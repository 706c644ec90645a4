"""Means over groups of rows."""

from __future__ import annotations

import torch

from .. import _check
from ..kernels.sphere import op
from ..unit_norm import unit_norm


def segment_mean(
    x: torch.Tensor, labels: torch.Tensor, num_segments: int, *, normalize: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the rows with the same label: class centres, codebook entries, clusters of k-means.

    Args:
        x: [N, D], float64, float32, bfloat16 or float16.
        labels: [N] int64, the segment of each row; rows with labels outside [0, num_segments) are left out.
        num_segments: K, at least 0.
        normalize: return the directions of the means, by ``unit_norm``, instead of the means.

    Returns:
        (means, counts): [K, D] in the dtype of x, 0 where a segment has no rows, and [K] int64, the rows of each
        segment. Summed in float32 at least; deterministic.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("labels", labels, (torch.int64,), dim=1)
    _check.same_device("labels", labels, "x", x)
    if labels.shape[0] != x.shape[0]:
        raise ValueError(f"labels must have one entry per row of x, {x.shape[0]}; got {labels.shape[0]}")
    _check.integer("num_segments", num_segments, minimum=0)
    _check.boolean("normalize", normalize)
    in_order, order = labels.sort(stable=True)
    offsets = torch.searchsorted(in_order, torch.arange(num_segments + 1, device=x.device))
    counts = offsets.diff()
    means = op.segment_sum(x, labels, order, offsets) / counts.clamp_min(1)[:, None]
    return (unit_norm(means) if normalize else means).to(x.dtype), counts
