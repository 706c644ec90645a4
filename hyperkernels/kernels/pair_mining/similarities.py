"""The matrix of similarities in plain PyTorch."""

import torch

from ..._dtypes import accumulate_dtype


def similarities(x: torch.Tensor, ref: torch.Tensor, similarity: str) -> torch.Tensor:
    """[N, M] in the accumulator's dtype; the gradient of a distance of zero is zero."""
    x, ref = (v.to(accumulate_dtype(v.dtype)) for v in (x, ref))
    dot = x @ ref.T
    if similarity == "dot":
        return dot
    squared = (x.square().sum(1)[:, None] + ref.square().sum(1) - 2 * dot).clamp_min(0)
    if similarity == "squared_euclidean":
        return -squared
    apart = squared != 0
    return -torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)
