"""What the pair ops are called with and return, and the tiles of the C++ kernels."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch

from ..._dtypes import accumulate_dtype
from ..._schema import Size, Tensor


class PairProblem(NamedTuple):
    """Which pairs (i, j) of rows of x [N, D] and ref [M, D] count, and how alike they are.

    Similarities are "dot", or "euclidean" and "squared_euclidean": minus the distance, so that larger is closer. Labels
    are int32 codes (positive: equal; -1: no pair of that row or column counts) or int64 sets of bits (positive: one in
    common); empty where nothing depends on them. Pairs of equal ids do not count, but for -1; empty: none is excluded.
    A pair counts where it is selected ("positive", "negative" or "all") and lower_i < similarity < upper_i; NaN counts.
    """

    x: Tensor  # [N, D]
    ref: Tensor | None  # [M, D]; None: x itself
    label: Tensor  # [N] or empty
    ref_label: Tensor  # [M] or empty; label itself where ref is None
    id: Tensor  # [N] int32 or empty
    ref_id: Tensor  # [M] int32 or empty
    lower: Tensor | None  # [N] of the accumulator's dtype; None: no bound
    upper: Tensor | None
    select: str
    similarity: str


class PairRowStatistics(NamedTuple):
    """Of the pairs that count in a row, [N] each; empty where not asked for. Indices are -1 where no pair counts.

    lse, d_scale and d_offset belong to the transform: for "linear" and "circle" the log-sum-exp, its derivative to
    the scale (for "linear" that is the mean weighted by the softmax; differentiable), and nothing; for "softplus" the
    sum, and its derivatives.
    """

    count: Tensor  # type: ignore[assignment]  # int64, where a tuple has a method
    sum: Tensor  # moments
    sum_squares: Tensor
    min: Tensor  # extremes: +inf where no pair counts, the lowest index on ties
    argmin: Tensor
    max: Tensor  # -inf where no pair counts
    argmax: Tensor
    lse: Tensor  # -inf (log-sum-exp) or 0 (softplus) where no pair counts
    d_scale: Tensor
    d_offset: Tensor


class Transform(NamedTuple):
    """What the similarity u of a pair adds to the row's value, with the row's scale and offset.

    "none"; "linear": log-sum-exp of scale * u; "circle": log-sum-exp of |scale| * a * (v + p1), a = relu(v + p0) held
    constant for the gradient, v = sign(scale) * u; "softplus": sum of softplus(scale * u + offset).
    """

    name: str = "none"
    p0: float = 0.0
    p1: float = 0.0

    def power(self, u: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What the log-sum-exp of a row is taken of: u [N, M], scale [N]."""
        if self.name == "linear":
            return scale[:, None] * u
        v = scale.sign()[:, None] * u
        return scale.abs()[:, None] * (v + self.p0).clamp_min(0).detach() * (v + self.p1)


class Tile(NamedTuple):
    """Rows and columns whose similarities are computed at a time."""

    row_tile: Size = 256
    column_tile: Size = 512


class Columns(NamedTuple):
    """What the statistics of the columns are taken with."""

    lower: Tensor | None = None  # [M] each
    upper: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None


class PairStatisticsCall(NamedTuple):
    problem: PairProblem
    scale: Tensor | None  # [N]
    offset: Tensor | None  # [N]
    columns: bool  # statistics of ref's rows over the rows of x are asked for as well
    of_columns: Annotated[Columns, "ref_"]
    moments: bool
    extremes: bool
    transform: Transform
    tile: Tile


class PairStatisticsResult(NamedTuple):
    rows: PairRowStatistics
    columns: Annotated[PairRowStatistics, "column_"]


class RowSide(NamedTuple):
    """What the gradient of the similarity u_ij of a pair that counts takes from its row: it is, with the coefficients
    c0, c1, k0 and k1,

        linear:   (c0 + c1 u) exp(scale u - lse) + k0 + k1 u
        circle:   c0 relu(v + p0) exp(|scale| relu(v + p0) (v + p1) - lse) + k0 + k1 u,  v = sign(scale) u
        softplus: c0 sigmoid(scale u + offset) + k0 + k1 u
        none:     k0 + k1 u
    """

    coefficients: Tensor  # [4, N]
    scale: Tensor | None  # [N] each
    offset: Tensor | None
    lse: Tensor  # over all columns

    def part(self, rows: slice) -> RowSide:
        scale, offset = (None if v is None else v[rows] for v in (self.scale, self.offset))
        return RowSide(self.coefficients[:, rows].contiguous(), scale, offset, self.lse[rows])


class ColumnSide(NamedTuple):
    """The same again from the numbers of its column, with the bounds of the columns."""

    lower: Tensor | None = None
    upper: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    coefficients: Tensor | None = None
    lse: Tensor | None = None


class PairBackwardCall(NamedTuple):
    problem: PairProblem
    rows: RowSide
    columns: bool
    of_columns: Annotated[ColumnSide, "ref_"]
    transform: Transform
    tile: Tile
    need_x: bool
    need_ref: bool


class PairGradients(NamedTuple):
    """Where ref is None dx holds both ends of every pair, and dref is empty; so is what is not needed."""

    dx: Tensor
    dref: Tensor


class TopKCall(NamedTuple):
    problem: PairProblem
    k: Size
    tile: Tile


class TopK(NamedTuple):
    """In falling order, the lowest index first on ties; -inf and -1 where there are fewer."""

    values: Tensor  # [N, k]
    indices: Tensor  # [N, k]


class CountCall(NamedTuple):
    problem: PairProblem
    tile: Tile


class ListCall(NamedTuple):
    problem: PairProblem
    offsets: Tensor  # [N + 1], from the counts of the same problem
    total: Size  # offsets[N]
    tile: Tile


class PairList(NamedTuple):
    columns: Tensor  # [total]
    similarities: Tensor  # [total]


class SampleCall(NamedTuple):
    problem: PairProblem
    draws: Size
    seed: int
    weights: str
    p0: float
    p1: float
    temperature: float
    tile: Tile


class BinsCall(NamedTuple):
    problem: PairProblem
    edges: Tensor  # [E]
    offsets: Tensor  # [N + 1]
    tile: Tile


class Bins(NamedTuple):
    """[E + N] each."""

    count: Tensor  # type: ignore[assignment]  # where a tuple has a method
    sum: Tensor
    max: Tensor
    argmax: Tensor


class BinsBackwardCall(NamedTuple):
    """The gradient of a pair that counts is d_sum of its bin."""

    problem: PairProblem
    edges: Tensor
    offsets: Tensor
    d_sum: Tensor  # [E + N]
    tile: Tile
    need_x: bool
    need_ref: bool


class ValuesCall(NamedTuple):
    x: Tensor
    ref: Tensor | None
    rows: Tensor  # [K] int64
    columns: Tensor  # [K] int64
    similarity: str


class ValuesBackwardCall(NamedTuple):
    """Sums run over the pairs in their order, whatever the threads."""

    d: Tensor  # [K], the gradients of the values
    x: Tensor
    ref: Tensor | None
    rows: Tensor
    columns: Tensor
    similarity: str
    need_x: bool
    need_ref: bool


LARGEST_TILE = 4096


def check_tile(tile: Tile) -> None:
    """Raise where the ops in C++ do, whose memory the tile decides; the Triton kernels have tiles of their own."""
    for name, size in tile._asdict().items():
        if not 1 <= size <= LARGEST_TILE:
            raise ValueError(f"{name} must be in [1, {LARGEST_TILE}]; got {size}")


def plan(problem: PairProblem) -> Tile:
    """The tile of the C++ kernels, by the sizes alone: a small problem needs small ones, or threads have too few."""
    n, m = problem.x.shape[0], (problem.x if problem.ref is None else problem.ref).shape[0]
    large = 1 - 1 // (1 + n * m // 2**21)  # 0 or 1, without a question where sizes are symbols
    return Tile(128 + 128 * large, 128 + 384 * large)


def transposed(problem: PairProblem, columns: Columns) -> PairProblem:
    """The problem whose rows are the columns of this one."""
    assert problem.ref is not None
    return PairProblem(
        x=problem.ref, ref=problem.x, label=problem.ref_label, ref_label=problem.label, id=problem.ref_id,
        ref_id=problem.id, lower=columns.lower, upper=columns.upper, select=problem.select,
        similarity=problem.similarity,
    )  # fmt: skip


def numbers(x: torch.Tensor, *shape: Any) -> torch.Tensor:
    return x.new_empty(*shape, dtype=accumulate_dtype(x.dtype))


def indices(x: torch.Tensor, *shape: Any) -> torch.Tensor:
    return x.new_empty(*shape, dtype=torch.int64)


def row_statistics(x: torch.Tensor, n: Any, moments: bool, extremes: bool, transform: str) -> PairRowStatistics:
    """Those of n rows, not yet written; of what is not asked for, nothing."""
    power, offset = transform != "none", transform == "softplus"
    return PairRowStatistics(
        count=indices(x, n),
        sum=numbers(x, n if moments else 0),
        sum_squares=numbers(x, n if moments else 0),
        min=numbers(x, n if extremes else 0),
        argmin=indices(x, n if extremes else 0),
        max=numbers(x, n if extremes else 0),
        argmax=indices(x, n if extremes else 0),
        lse=numbers(x, n if power else 0),
        d_scale=numbers(x, n if power else 0),
        d_offset=numbers(x, n if offset else 0),
    )


def nothing_asked(u: torch.Tensor) -> PairRowStatistics:
    return row_statistics(u, 0, moments=False, extremes=False, transform="none")


def statistics_results(call: PairStatisticsCall) -> PairStatisticsResult:
    x, ref = call.problem.x, call.problem.ref
    asked = call.moments, call.extremes, call.transform.name
    columns = ref.shape[0] if call.columns and ref is not None else 0
    return PairStatisticsResult(row_statistics(x, x.shape[0], *asked), row_statistics(x, columns, *asked))


def gradient_results(x: torch.Tensor, ref: torch.Tensor | None, need_x: bool, need_ref: bool) -> PairGradients:
    contiguous = torch.contiguous_format
    return PairGradients(
        torch.empty_like(x, memory_format=contiguous) if need_x else x.new_empty(0),
        torch.empty_like(ref, memory_format=contiguous) if need_ref and ref is not None else x.new_empty(0),
    )


def bins_results(call: BinsCall) -> Bins:
    x, bins = call.problem.x, call.edges.shape[0] + call.problem.x.shape[0]
    return Bins(indices(x, bins), numbers(x, bins), numbers(x, bins), indices(x, bins))
