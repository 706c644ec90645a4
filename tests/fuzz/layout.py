"""Where the numbers of a tensor lie: strides, offsets, and guards around them that no kernel may write."""

from __future__ import annotations

import random

import torch

GUARD = 0x5A  # the byte around a tensor


class Guards:
    """Storages with room around the tensor that is in use."""

    def __init__(self) -> None:
        self._around: list[tuple[torch.Tensor, int, int]] = []

    def place(self, tensor: torch.Tensor, offset: int) -> torch.Tensor:
        """A contiguous copy that begins `offset` elements into a larger storage."""
        size = tensor.element_size()
        storage = torch.full(((tensor.numel() + offset + 37) * size,), GUARD, dtype=torch.uint8)
        begin, end = offset * size, (offset + tensor.numel()) * size
        self._around.append((storage, begin, end))
        inside = storage.view(tensor.dtype)[offset : offset + tensor.numel()].view(tensor.shape)
        inside.copy_(tensor)
        return inside

    def touched(self) -> bool:
        return any(bool((s[:begin] != GUARD).any() or (s[end:] != GUARD).any()) for s, begin, end in self._around)


def strided(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """The same values with other strides."""
    if tensor.dim() == 0 or tensor.layout != torch.strided:
        return tensor
    way = draw.choice(("every second", "transposed", "apart", "expanded"))
    if way == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if way == "apart" and tensor.dim() > 1:
        return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    if way == "expanded" and len(tensor) > 0:
        return tensor[:1].expand(tensor.shape)  # one row for all: other values, and rows that coincide
    return tensor.repeat_interleave(2, -1)[..., ::2]
