# mypy: ignore-errors
"""What the launchers of the pairs share: configurations, checks, and a problem made ready for the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ...._dtypes import accumulate_dtype
from ...triton.gpu import architecture
from ...triton.launch import launch
from ..problem import PairProblem
from .tiles import TiledPairs, bound_kernel, square_kernel

PROGRAMS = 132  # multiprocessors of an H200
LARGEST_SPLITS = 256
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LARGEST_LABEL = 2**31 - 1


class PairConfiguration(NamedTuple):
    """A tile of similarities: rows, columns, the depth of a step of its product."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int  # slices of the columns that statistics are taken of at a time


def configuration(dtype: torch.dtype, d: int, rows: int, burden: int, arch: str) -> PairConfiguration:
    """The table. The burden counts what else than its similarities needs registers: at 4 a tile is narrow."""
    size = dtype.itemsize
    height = min({8: 32, 4: 64, 2: 128}[size], max(16, triton.next_power_of_2(rows)))
    depth = max(16, min({8: 16, 4: 16, 2: 64}[size], triton.next_power_of_2(d)))
    columns, stages = {8: 64, 4: 128, 2: 128}[size], 2 if size > 2 else 3
    if burden > (2 if arch == "sm_100" else 3):
        columns //= 2
    elif burden <= 2 and size == 2 and height == 128 and arch == "sm_90":
        columns *= 2
    if size == 2 and arch in ("gfx", "sm_80"):
        height, depth, stages = min(height, 64), min(depth, 32), 2 if arch == "gfx" else 3
    parts = columns // 32
    if size == 2 and arch == "sm_100":  # a thread has one row of a part, and the numbers of all of its columns
        parts = 4 if burden > 4 else 8
    return PairConfiguration(height, columns, depth, 8 if height >= 64 or size == 8 else 4, stages, parts)


def _ranges(label: torch.Tensor, block: int) -> torch.Tensor:
    """[tiles, 2]: the smallest and the largest label of a tile that count; an empty range where none does."""
    counts = label >= 0
    low = torch.where(counts, label, _LARGEST_LABEL)
    high = label.clamp_min(-1)
    pad = -len(label) % block
    low, high = F.pad(low, (0, pad), value=_LARGEST_LABEL), F.pad(high, (0, pad), value=-1)
    return torch.stack([low.view(-1, block).amin(1), high.view(-1, block).amax(1)], 1)


def _bounds(ranges: torch.Tensor, ref_ranges: torch.Tensor, select: str) -> torch.Tensor:
    bounds = torch.empty_like(ranges)
    if len(ranges):
        sizes = {"BLOCK": 256, "num_warps": 4}
        launch(bound_kernel, len(ranges), ranges, ref_ranges, bounds, len(ref_ranges), SELECT=select, **sizes)
    return bounds


def _squares(x: torch.Tensor) -> torch.Tensor:
    squares = x.new_empty(len(x), dtype=accumulate_dtype(x.dtype))
    if len(x):
        block = min(1024, triton.next_power_of_2(x.shape[1]))
        launch(square_kernel, len(x), x, squares, STRIDE=x.shape[1], BLOCK_D=block, num_warps=1)
    return squares


def check(problem: PairProblem) -> None:
    p = problem
    ref, ref_label, ref_id = (p.x, p.label, p.id) if p.ref is None else (p.ref, p.ref_label, p.ref_id)
    if p.x.dtype not in _DTYPES or ref.dtype != p.x.dtype:
        raise TypeError(f"x and ref must have one dtype of {_DTYPES}; got {p.x.dtype} and {ref.dtype}")
    if p.x.dim() != 2 or ref.dim() != 2 or ref.shape[1] != p.x.shape[1]:
        raise ValueError(f"x and ref must be [N, D] and [M, D]; got {tuple(p.x.shape)} and {tuple(ref.shape)}")
    if p.label.numel() and (p.label.dtype not in (torch.int32, torch.int64) or ref_label.dtype != p.label.dtype):
        raise TypeError(f"labels must be int32 codes or int64 sets; got {p.label.dtype} and {ref_label.dtype}")
    if p.id.numel() and (p.id.dtype != torch.int32 or ref_id.dtype != torch.int32):
        raise TypeError(f"ids must be int32; got {p.id.dtype} and {ref_id.dtype}")
    if p.select not in ("positive", "negative", "all"):
        raise ValueError(f"select must be positive, negative or all; got {p.select!r}")
    if p.similarity not in ("dot", "euclidean", "squared_euclidean"):
        raise ValueError(f"similarity must be dot, euclidean or squared_euclidean; got {p.similarity!r}")
    n, m = len(p.x), len(ref)
    for name, mine, other in (("label", p.label, ref_label), ("id", p.id, ref_id)):
        if (mine.shape, other.shape) not in (((n,), (m,)), ((0,), (0,))):
            raise ValueError(
                f"{name}s must be [{n}] and [{m}], or empty; got {tuple(mine.shape)} and {tuple(other.shape)}"
            )
    check_rows(p.x, lower=p.lower, upper=p.upper)


def check_rows(x: torch.Tensor, **numbers: torch.Tensor | None) -> None:
    """Raise where a number per row of x has another shape or another dtype than the accumulator's."""
    for name, tensor in numbers.items():
        if tensor is not None and tensor.shape != x.shape[:1]:
            raise ValueError(f"{name} must have shape {tuple(x.shape[:1])}; got {tuple(tensor.shape)}")
        if tensor is not None and tensor.dtype != accumulate_dtype(x.dtype):
            raise TypeError(f"{name} must be {accumulate_dtype(x.dtype)}; got {tensor.dtype}")


class Tiles:
    """A problem made ready for kernels that walk over its tiles: contiguous inputs, sizes, ranges, constants."""

    def __init__(self, problem: PairProblem, burden: int) -> None:
        check(problem)
        p = problem
        self.n, self.d = p.x.shape
        self.m = self.n if p.ref is None else len(p.ref)
        self.dtype = accumulate_dtype(p.x.dtype)
        self.arch = architecture(p.x.device)
        self.config = configuration(p.x.dtype, self.d, self.n, burden, self.arch)
        self.row_tiles = triton.cdiv(self.n, self.config.rows)
        self.column_tiles = triton.cdiv(self.m, self.config.columns)
        self.stride = max(1, triton.cdiv(self.d, self.config.depth)) * self.config.depth
        self.x = self._padded(p.x)
        self.ref = self.x if p.ref is None else self._padded(p.ref)
        self.squares: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if p.similarity != "dot":
            squares = _squares(self.x)
            self.squares = (squares, squares if p.ref is None else _squares(self.ref))
        self.select, self.similarity = p.select, p.similarity
        ref_label, ref_id = (p.label, p.id) if p.ref is None else (p.ref_label, p.ref_id)
        # Sets of labels decide nothing where all pairs are selected; codes below 0 do.
        # Those of the columns are padded to whole tiles; as codes they exclude what is past the last column.
        labelled = p.label.numel() > 0 and (p.select != "all" or p.label.dtype == torch.int32)
        pad = (0, -self.m % self.config.columns)
        self.labels = (p.label.contiguous(), F.pad(ref_label, pad, value=-1)) if labelled else (None, None)
        self.ids = (p.id.contiguous(), F.pad(ref_id, pad, value=-1)) if p.id.numel() else (None, None)
        self.window = tuple(None if b is None else b.contiguous() for b in (p.lower, p.upper))
        # [tiles, 2] each, or None
        self.ranges: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self.bounds = self.column_bounds = None
        if labelled and p.label.dtype == torch.int32 and p.select != "all":
            rows, columns = (
                _ranges(v, b) for v, b in zip(self.labels, (self.config.rows, self.config.columns), strict=True)
            )
            self.ranges = (rows, columns)
            self.bounds, self.column_bounds = _bounds(rows, columns, p.select), _bounds(columns, rows, p.select)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous() if self.stride == self.d else F.pad(x, (0, self.stride - self.d))

    @property
    def pairs(self) -> TiledPairs:
        c = self.config
        constants = (self.select, self.similarity, self.stride, c.rows, c.columns, c.depth, c.parts)
        return TiledPairs(
            self.x, self.ref, *self.squares, *self.labels, *self.ids, *self.window, *self.ranges, self.bounds,
            *map(tl.constexpr, constants),
        )  # fmt: skip

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.config.warps, "num_stages": self.config.stages}

    def walk(self, splits: int) -> tuple[object, ...]:
        """The first arguments of a kernel whose programs own a tile of rows within one split of the columns."""
        return (self.pairs, self.n, self.m, self.row_tiles, self.column_tiles, splits)

    def block(self, first_row: int, first_column: int, row_tiles: int, column_tiles: int) -> tuple[object, ...]:
        """The first arguments of a kernel whose programs own a tile each of a block."""
        c = self.config
        return (self.pairs, self.n, self.m, first_row // c.rows, first_column // c.columns, row_tiles, column_tiles)

    def splits(self) -> int:
        """Parts of the columns that have programs of their own, so that a machine is filled; of the sizes only."""
        return max(1, min(LARGEST_SPLITS, self.column_tiles, triton.cdiv(8 * PROGRAMS, max(1, self.row_tiles))))
