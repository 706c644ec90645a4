# mypy: ignore-errors
"""What the Triton kernels of the pairs share: tiles of similarities, which of their pairs count, and configurations.

A tile is BLOCK_ROWS rows of x by BLOCK_COLUMNS rows of ref; it is computed anew wherever it is needed. Rows and columns
past the last repeat it, so that nothing but D is padded: x and ref come in rows of STRIDE elements, zero past D.
Offsets within a tile are int32, its base is int64.

Where labels are codes each tile of rows or columns has the range of its labels, which rules out whole tiles of pairs:
rows sorted by label make a pass over positive pairs nearly free.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .._triton_math import root
from .reference import Problem, accumulate_dtype

PROGRAMS = 132  # multiprocessors of an H200
LARGEST_SPLITS = 256
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LARGEST_LABEL = 2**31 - 1


@triton.jit
def similarities(
    x_ptr,  # [N, STRIDE]
    ref_ptr,  # [M, STRIDE]
    square_ptr,  # [N], the sums of squares of the rows, or None for "dot"
    ref_square_ptr,  # [M]
    first_row,  # int64
    first_column,  # int64
    rows_left,  # int32: of the tile, at least 1; may exceed the tile
    columns_left,
    SIMILARITY: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[BLOCK_ROWS, BLOCK_COLUMNS] in the dtype of the accumulator."""
    row = tl.minimum(tl.arange(0, BLOCK_ROWS), rows_left - 1)
    column = tl.minimum(tl.arange(0, BLOCK_COLUMNS), columns_left - 1)
    depth = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + first_row * STRIDE + row[:, None] * STRIDE + depth[None, :]
    ref_ptrs = ref_ptr + first_column * STRIDE + column[None, :] * STRIDE + depth[:, None]
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    u = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype)
    for start in range(0, STRIDE, BLOCK_D):
        u = tl.dot(tl.load(x_ptrs + start), tl.load(ref_ptrs + start), u, input_precision="ieee", out_dtype=dtype)
    if SIMILARITY != "dot":
        square = tl.load(square_ptr + first_row + row)[:, None]
        ref_square = tl.load(ref_square_ptr + first_column + column)[None, :]
        u = (square + ref_square) - 2 * u
        u = tl.where(u < 0, 0.0, u)  # NaN stays
        if SIMILARITY == "euclidean":
            u = root(u)
        u = 0.0 - u
    return u


@triton.jit
def selected(
    label_ptr,
    ref_label_ptr,
    id_ptr,
    ref_id_ptr,
    first_row,
    first_column,
    rows_left,
    columns_left,
    SELECT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Which pairs of the tile labels and ids let through, [BLOCK_ROWS, BLOCK_COLUMNS]; none past the last column."""
    row = tl.minimum(tl.arange(0, BLOCK_ROWS), rows_left - 1)
    column = tl.arange(0, BLOCK_COLUMNS)
    keep = (column < columns_left)[None, :]
    if label_ptr is not None:
        label = tl.load(label_ptr + first_row + row)[:, None]
        ref_label = tl.load(ref_label_ptr + first_column + column)[None, :]
        if label_ptr.dtype.element_ty == tl.int64:
            if SELECT == "positive":
                keep = keep & ((label & ref_label) != 0)
            elif SELECT == "negative":
                keep = keep & ((label & ref_label) == 0)
        else:
            # Labels below 0 are made to differ, so that one comparison serves the positive pairs.
            if SELECT == "positive":
                keep = tl.where(label < 0, -2, label) == ref_label
            else:
                keep = (ref_label >= 0) & (label >= 0)
                if SELECT == "negative":
                    keep = keep & (label != ref_label)
    if id_ptr is not None:
        id = tl.load(id_ptr + first_row + row)[:, None]
        ref_id = tl.load(ref_id_ptr + first_column + column)[None, :]
        keep = keep & (tl.where(id < 0, -2, id) != tl.maximum(ref_id, -1))
    return tl.broadcast_to(keep, [BLOCK_ROWS, BLOCK_COLUMNS])


@triton.jit
def within(u, lower_ptr, upper_ptr, first, left, axis: tl.constexpr):
    """Which similarities lie within the bounds of their rows (axis 0) or of their columns (axis 1); NaN does."""
    at = first + tl.minimum(tl.arange(0, u.shape[axis]), left - 1)
    inside = tl.full(u.shape, 1, tl.int1)
    if lower_ptr is not None:
        lower = tl.expand_dims(tl.load(lower_ptr + at), 1 - axis)
        inside = inside & ~(u <= lower)
    if upper_ptr is not None:
        upper = tl.expand_dims(tl.load(upper_ptr + at), 1 - axis)
        inside = inside & ~(u >= upper)
    return inside


@triton.jit
def _halves(tile):
    return tl.split(tl.permute(tl.reshape(tile, [tile.shape[0], 2, tile.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def parts_of(tile, PARTS: tl.constexpr):
    """1, 2, 4 or 8 slices of the columns, in their order. What is taken of a tile goes part by part: an operation on
    all of it would hold several copies of it in the registers."""
    if PARTS == 1:
        parts = (tile,)
    else:
        a, b = _halves(tile)
        parts = (a, b)
        if PARTS > 2:
            a, b = _halves(parts[0])
            c, d = _halves(parts[1])
            parts = (a, b, c, d)
            if PARTS > 4:
                a, b = _halves(parts[0])
                c, d = _halves(parts[1])
                e, f = _halves(parts[2])
                g, h = _halves(parts[3])
                parts = (a, b, c, d, e, f, g, h)
    return parts


@triton.jit
def which_count(
    u,  # [BLOCK_ROWS, a part of BLOCK_COLUMNS]
    label_ptr,  # [N] int32 or int64, or None
    ref_label_ptr,  # [M], padded to whole tiles
    id_ptr,  # [N] int32, or None
    ref_id_ptr,  # [M], padded to whole tiles
    lower_ptr,  # [N], or None
    upper_ptr,  # [N], or None
    first_row,  # int64
    first_column,  # int64, of the part
    rows_left,  # int32, at least 1; may exceed the tile
    columns_left,  # of the part, may be below 1
    SELECT: tl.constexpr,
):
    """Which pairs count; rows past the last repeat it, columns past the last do not count."""
    keep = selected(
        label_ptr, ref_label_ptr, id_ptr, ref_id_ptr, first_row, first_column, rows_left, columns_left, SELECT,
        u.shape[0], u.shape[1],
    )  # fmt: skip
    keep = keep & within(u, lower_ptr, upper_ptr, first_row, rows_left, 0)
    # What labels decide is tied to the similarities: a count of it would be taken in another layout, at twice the cost.
    return keep & ~((u != u) & (u == u))


@triton.jit
def _may_count(low, high, ref_low, ref_high, SELECT: tl.constexpr):
    """Whether tiles of rows and columns with these ranges of labels can have a pair that counts."""
    some = (low <= high) & (ref_low <= ref_high)
    if SELECT == "positive":
        some = some & (low <= ref_high) & (ref_low <= high)
    else:
        some = some & ((low != high) | (ref_low != ref_high) | (low != ref_low))
    return some


@triton.jit
def may_count(range_ptr, ref_range_ptr, row_tile, column_tile, SELECT: tl.constexpr):
    """The same of two tiles by number; ranges [tiles, 2], or None: nothing is ruled out."""
    some = True
    if range_ptr is not None:
        row_at = range_ptr + row_tile * 2
        column_at = ref_range_ptr + column_tile * 2
        some = _may_count(
            tl.load(row_at), tl.load(row_at + 1), tl.load(column_at), tl.load(column_at + 1), SELECT
        )  # fmt: skip
    return some


@triton.jit
def columns_of_split(bound_ptr, row_tile, split, splits, column_tiles):
    """(first, end) of the tiles of columns that a split of a tile of rows walks over, in rising order."""
    first = split * 0
    end = column_tiles
    if bound_ptr is not None:
        first = tl.load(bound_ptr + row_tile * 2)
        end = tl.load(bound_ptr + row_tile * 2 + 1)
    tiles = (end - first).to(tl.int64)
    return (first + tiles * split // splits).to(tl.int32), (first + tiles * (split + 1) // splits).to(tl.int32)


@triton.jit(do_not_specialize=["ref_tiles"])
def bound_kernel(
    range_ptr,  # [tiles, 2]
    ref_range_ptr,  # [ref_tiles, 2]
    bound_ptr,  # [tiles, 2]
    ref_tiles,
    SELECT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Owns a tile: the first and the end of the tiles of ref that may have a pair with it; 0 and 0 where none has."""
    tile = tl.program_id(0).to(tl.int64)
    low = tl.load(range_ptr + tile * 2)
    high = tl.load(range_ptr + tile * 2 + 1)
    first = tl.full([BLOCK], 2**31 - 1, tl.int32)
    end = tl.zeros([BLOCK], tl.int32)
    for start in range(0, ref_tiles, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < ref_tiles
        ref_low = tl.load(ref_range_ptr + at.to(tl.int64) * 2, mask=there, other=0)
        ref_high = tl.load(ref_range_ptr + at.to(tl.int64) * 2 + 1, mask=there, other=-1)
        some = there & _may_count(low, high, ref_low, ref_high, SELECT)
        first = tl.where(some, tl.minimum(first, at), first)
        end = tl.where(some, at + 1, end)
    end = tl.max(end, axis=0)
    tl.store(bound_ptr + tile * 2, tl.minimum(tl.min(first, axis=0), end))
    tl.store(bound_ptr + tile * 2 + 1, end)


@triton.jit
def square_kernel(x_ptr, square_ptr, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Owns the sum of squares of one row."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = square_ptr.dtype.element_ty
    total = tl.zeros([BLOCK_D], dtype)
    for start in range(0, STRIDE, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        value = tl.load(x_ptr + row * STRIDE + column, mask=column < STRIDE, other=0.0).to(dtype)
        total += value * value
    tl.store(square_ptr + row, tl.sum(total, axis=0))


class Configuration(NamedTuple):
    """A tile of similarities: rows, columns, the depth of a step of its product."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int  # slices of the columns that statistics are taken of at a time


def architecture() -> str:
    """ "sm_80", "sm_90", "sm_100" or "gfx": a row of the table. Without a device, the interpreter's."""
    if torch.version.hip is not None:
        return "gfx"
    if not torch.cuda.is_available():
        return "sm_90"
    major = torch.cuda.get_device_capability()[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


def configuration(dtype: torch.dtype, d: int, rows: int, burden: int, arch: str) -> Configuration:
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
    return Configuration(height, columns, depth, 8 if height >= 64 or size == 8 else 4, stages, parts)


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
        bound_kernel[(len(ranges),)](ranges, ref_ranges, bounds, len(ref_ranges), SELECT=select, BLOCK=256, num_warps=4)
    return bounds


def _squares(x: torch.Tensor) -> torch.Tensor:
    squares = x.new_empty(len(x), dtype=accumulate_dtype(x.dtype))
    if len(x):
        block = min(1024, triton.next_power_of_2(x.shape[1]))
        square_kernel[(len(x),)](x, squares, STRIDE=x.shape[1], BLOCK_D=block, num_warps=1)
    return squares


def check(problem: Problem) -> None:
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

    def __init__(self, problem: Problem, burden: int) -> None:
        check(problem)
        p = problem
        self.n, self.d = p.x.shape
        self.m = self.n if p.ref is None else len(p.ref)
        self.dtype = accumulate_dtype(p.x.dtype)
        self.config = configuration(p.x.dtype, self.d, self.n, burden, architecture())
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
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The arguments of `similarities` and `which_count`, in this order."""
        return (self.x, self.ref, *self.squares, *self.labels, *self.ids, *self.window)

    @property
    def constants(self) -> dict[str, object]:
        return {
            "SELECT": self.select,
            "SIMILARITY": self.similarity,
            "STRIDE": self.stride,
            "BLOCK_ROWS": self.config.rows,
            "BLOCK_COLUMNS": self.config.columns,
            "BLOCK_D": self.config.depth,
            "PARTS": self.config.parts,
            "num_warps": self.config.warps,
            "num_stages": self.config.stages,
        }

    def splits(self) -> int:
        """Parts of the columns that have programs of their own, so that a machine is filled; of the sizes only."""
        return max(1, min(LARGEST_SPLITS, self.column_tiles, triton.cdiv(8 * PROGRAMS, max(1, self.row_tiles))))
