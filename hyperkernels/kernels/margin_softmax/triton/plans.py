"""The tiles of the products of the class softmax in Triton: a table."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

# Up to Triton 3.6 the largest tile of cosines fits the registers; later compilers spill, and take half of its rows.
LEAST_BURDEN = 0 if tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 6) else 1


class Tile(NamedTuple):
    """One step of a product: result rows and columns, and the depth of a step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class ClassConfiguration(NamedTuple):
    """The products of one problem. `cosines` has a tile of classes for its columns, `gradient` a part of one."""

    cosines: Tile  # x . w in the forward
    gradient: Tile  # x . w in the backward, whose two results share the registers
    weight: Tile  # H^T x
    input: Tile  # H w


def tile_classes(d: int, dtype: torch.dtype, sub_centers: int) -> int:
    """Classes in a tile. Two tiles of accumulators live in the registers where sub-centres compete."""
    wide = {8: 64, 4: 128, 2: 256}[dtype.itemsize]
    return wide // (2 if sub_centers > 1 else 1)


def configuration(dtype: torch.dtype, d: int, rows: int, block: int, burden: int, arch: str) -> ClassConfiguration:
    """The table, by size of an element, sizes of the problem and architecture. The burden counts what else than the
    accumulators needs registers, up to 2: sub-centres or a transform, and numbers per class."""
    size = dtype.itemsize
    height = min(128, max(16, triton.next_power_of_2(rows)))
    width = max(16, min(256 if d % 256 == 0 else 128, triton.next_power_of_2(d)))  # columns of dx and dw
    depth = max(16, min(128 // size, triton.next_power_of_2(d)))
    stages = 2 if size > 2 or arch == "gfx" else 3
    part = min(block, 128)

    def tile(rows: int, columns: int, depth: int, full: int = 32 * 128) -> Tile:
        return Tile(rows, columns, depth, 8 if size > 2 or rows * columns >= full else 4, stages)

    if size > 2:
        width, height, depth = min(width, 64), min(height, 32 if size == 8 else 64), min(depth, 16)
        return ClassConfiguration(
            tile(height, block, depth),
            tile(height, min(part, 64 if burden == 2 else 128), depth),
            tile(min(part, 64), width, min(depth, height)),
            tile(height, width, min(depth, block)),
        )
    if arch != "sm_90":
        width = min(width, 128)
    if arch in ("sm_80", "sm_100"):
        burden = min(2, 2 * burden)
    low = min(height, 128 >> max(burden, LEAST_BURDEN))
    if arch in ("gfx", "sm_80"):
        depth, low = min(depth, 32), min(low, 64)
    return ClassConfiguration(
        tile(low, block, depth),
        tile(min(height, 64 if burden else 128), min(part, 64 if burden == 2 else 128), depth),
        tile(part, width, min(depth, height), 128 * 128),
        tile(height, width, min(depth, block), 128 * 128),
    )


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as PyTorch's own products are."""
    allowed = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed else "ieee"
