"""The pair-statistics op: schema, shapes, autograd, and which backend runs it.

As in the class softmax each operation exists twice in the dispatcher: `pair_statistics` has the C++ kernels,
`pair_statistics_triton` the Triton kernels. `selections.py` holds the ops that return pairs rather than sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import _backend
from .._fake import register_fake
from . import reference
from .reference import Problem, Statistics, Transform, accumulate_dtype

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")

# The fields of reference.Problem.
PROBLEM = (
    "Tensor x, Tensor? ref, Tensor label, Tensor ref_label, Tensor id, Tensor ref_id, Tensor? lower, Tensor? upper, "
    "str select, str similarity, "
)
# What the columns have where they are asked for as well: statistics of ref's rows over the rows of x.
_COLUMNS = "bool columns, Tensor? ref_lower, Tensor? ref_upper, Tensor? ref_scale, Tensor? ref_offset, "
_TRANSFORM = "str transform, float p0, float p1, "
_TILE = "SymInt row_tile, SymInt column_tile"
_STATISTICS = ("count", "sum", "sum_squares", "low", "low_index", "high", "high_index", "value", "d_scale", "d_offset")
_FORWARD = (
    f"({PROBLEM}Tensor? scale, Tensor? offset, {_COLUMNS}bool moments, bool extremes, {_TRANSFORM}{_TILE}) -> ("
    + ", ".join(f"Tensor {prefix}{name}" for prefix in ("", "column_") for name in _STATISTICS)
    + ")"
)
# The gradient of the similarity u_ij of a pair that counts is, from the numbers of its row,
#     linear:   (c0 + c1 u) exp(scale u - value) + k0 + k1 u
#     circle:   c0 relu(v + p0) exp(|scale| relu(v + p0) (v + p1) - value) + k0 + k1 u,  v = sign(scale) u
#     softplus: c0 sigmoid(scale u + offset) + k0 + k1 u
#     none:     k0 + k1 u
# and the same again from the numbers of its column where those have coefficients. coefficients are [4, N]: c0, c1, k0,
# k1. Where ref is None dx holds both ends of every pair, and dref is empty.
_BACKWARD = (
    f"({PROBLEM}Tensor coefficients, Tensor? scale, Tensor? offset, Tensor value, {_COLUMNS}"
    f"Tensor? ref_coefficients, Tensor? ref_value, {_TRANSFORM}{_TILE}, bool need_x, bool need_ref) "
    "-> (Tensor dx, Tensor dref)"
)


class Tile(NamedTuple):
    """Rows and columns whose similarities are computed at a time."""

    rows: int = 256
    columns: int = 512


LARGEST_TILE = 4096


def check_tile(rows: int, columns: int) -> None:
    """Raise where the ops in C++ do, whose memory the tile decides; the Triton kernels have tiles of their own."""
    for name, tile in (("row_tile", rows), ("column_tile", columns)):
        if not 1 <= tile <= LARGEST_TILE:
            raise ValueError(f"{name} must be in [1, {LARGEST_TILE}]; got {tile}")


def plan(problem: Problem) -> Tile:
    """The tile of the C++ kernels, by the sizes alone: a small problem needs small ones, or threads have too few."""
    n, m = problem.x.shape[0], (problem.x if problem.ref is None else problem.ref).shape[0]
    large = 1 - 1 // (1 + n * m // 2**21)  # 0 or 1, without a question where sizes are symbols
    return Tile(128 + 128 * large, 128 + 384 * large)


def _side(like: torch.Tensor, n: Any, asked: bool, moments: bool, extremes: bool, transform: str) -> list[torch.Tensor]:
    numbers = {
        "sum": moments, "sum_squares": moments, "low": extremes, "high": extremes,
        "value": transform != "none", "d_scale": transform != "none", "d_offset": transform == "softplus",
    }  # fmt: skip
    integers = {"count": True, "low_index": extremes, "high_index": extremes}
    dtype = accumulate_dtype(like.dtype)
    return [
        like.new_empty(n if asked and numbers[name] else 0, dtype=dtype)
        if name in numbers
        else like.new_empty(n if asked and integers[name] else 0, dtype=torch.int64)
        for name in _STATISTICS
    ]


def _fake(*args: Any) -> tuple[torch.Tensor, ...]:
    x, ref, columns, moments, extremes, transform = args[0], args[1], args[12], args[17], args[18], args[19]
    rows = _side(x, x.shape[0], True, moments, extremes, transform)
    return (*rows, *_side(x, 0 if ref is None else ref.shape[0], columns, moments, extremes, transform))


def _fake_backward(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, ref, need_x, need_ref = args[0], args[1], args[-2], args[-1]
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous) if need_x else x.new_empty(0),
        torch.empty_like(ref, memory_format=contiguous) if need_ref and ref is not None else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.names = (inputs[8], inputs[9], inputs[12], *inputs[19:])
    rows, columns = Statistics(*output[:10]), Statistics(*output[10:])
    fixed = [side[k] for side in (rows, columns) for k in (0, 3, 4, 5, 6, 9)]
    ctx.differentiable_d_scale = inputs[19] == "linear"
    if not ctx.differentiable_d_scale:
        fixed += [rows.d_scale, columns.d_scale]
    ctx.mark_non_differentiable(*fixed)
    ctx.set_materialize_grads(False)
    saved = [*inputs[:8], inputs[10], inputs[11], *inputs[13:17]]
    ctx.save_for_backward(
        *saved, rows.value, rows.d_scale, rows.d_offset, columns.value, columns.d_scale, columns.d_offset
    )


def _coefficients(
    gradients: Statistics, like: torch.Tensor, n: int, scale: torch.Tensor | None, d_scale: torch.Tensor, transform: str
) -> torch.Tensor:
    """[4, N] from the gradients of the statistics, None (or empty, of one not asked for) where there is none."""
    gradients = Statistics(*(None if g is None or not g.numel() else g for g in gradients))  # type: ignore[arg-type]
    zero = like.new_zeros(n, dtype=accumulate_dtype(like.dtype))
    c0 = c1 = zero
    if transform != "none":
        assert scale is not None
        if gradients.value is not None:
            c0 = gradients.value * scale
        if transform == "linear" and gradients.d_scale is not None:
            c0 = c0 + gradients.d_scale * (1 - scale * d_scale)
            c1 = gradients.d_scale * scale
    k0 = zero if gradients.sum is None else gradients.sum
    k1 = zero if gradients.sum_squares is None else 2 * gradients.sum_squares
    return torch.stack([c0, c1, k0, k1])


def _no_second_derivative(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "pair statistics have no second derivative in their kernels; use hyperkernels.backend('reference') for one"
    )


# An op, so that a derivative of the derivatives to scale and offset is refused.
LIBRARY.define("pair_parameter_gradient(Tensor gradient, Tensor slope, Tensor x, Tensor? ref, Tensor? scale) -> Tensor")
LIBRARY.impl("pair_parameter_gradient", lambda g, slope, *_: g * slope, "CompositeExplicitAutograd")
register_fake(LIBRARY, "pair_parameter_gradient", lambda g, *_: torch.empty_like(g))
torch.library.register_autograd("hyperkernels::pair_parameter_gradient", _no_second_derivative, lib=LIBRARY)


def _define(suffix: str) -> None:
    name, backward_name = f"pair_statistics{suffix}", f"pair_statistics_backward{suffix}"
    LIBRARY.define(name + _FORWARD)
    LIBRARY.define(backward_name + _BACKWARD)

    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        (x, ref, label, ref_label, id, ref_id, lower, upper, scale, offset,
         ref_lower, ref_upper, ref_scale, ref_offset,
         value, d_scale, d_offset, ref_value, ref_d_scale, ref_d_offset) = ctx.saved_tensors  # fmt: skip
        select, similarity, columns, transform, p0, p1, row_tile, column_tile = ctx.names
        rows, of_columns = Statistics(*grads[:10]), Statistics(*grads[10:])  # type: ignore[arg-type]
        need_x, need_ref = ctx.needs_input_grad[0], ref is not None and ctx.needs_input_grad[1]
        dx = dref = None
        if need_x or need_ref:
            ref_coefficients = None
            if columns:
                ref_coefficients = _coefficients(of_columns, x, ref.shape[0], ref_scale, ref_d_scale, transform)
            dx, dref = getattr(torch.ops.hyperkernels, backward_name)(
                x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity,
                _coefficients(rows, x, x.shape[0], scale, d_scale, transform), scale, offset, value,
                columns, ref_lower, ref_upper, ref_scale, ref_offset, ref_coefficients, ref_value if columns else None,
                transform, p0, p1, row_tile, column_tile, need_x, need_ref,
            )  # fmt: skip
        parameters: list[torch.Tensor | None] = []
        for side, of_scale, of_offset, s, slope, shift in (
            (rows, 10, 11, scale, d_scale, d_offset), (of_columns, 15, 16, ref_scale, ref_d_scale, ref_d_offset)
        ):  # fmt: skip
            if ctx.needs_input_grad[of_scale] and side.d_scale is not None:
                raise RuntimeError("the softmax-weighted mean has no derivative to the scale; detach the scale")
            for at, by in ((of_scale, slope), (of_offset, shift)):
                if not ctx.needs_input_grad[at] or side.value is None or by.numel() != side.value.numel():
                    parameters.append(None)
                    continue
                parameters.append(torch.ops.hyperkernels.pair_parameter_gradient(side.value, by, x, ref, s))
        return (
            dx if need_x else None, dref if need_ref else None, *[None] * 8, parameters[0], parameters[1],
            *[None] * 3, parameters[2], parameters[3], *[None] * 7,
        )  # fmt: skip

    for op, fake in ((name, _fake), (backward_name, _fake_backward)):
        register_fake(LIBRARY, op, fake)
    torch.library.register_autograd(f"hyperkernels::{name}", backward, setup_context=_setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"hyperkernels::{backward_name}", _no_second_derivative, lib=LIBRARY)


def launch(module: str, function: str) -> Callable[..., Any]:
    """A Triton launcher that is imported at the first call."""

    def call(*args: Any) -> Any:
        import importlib

        return getattr(importlib.import_module(f"{__package__}.{module}"), function)(*args)

    return call


_define("")
_define("_triton")
for _device in ("CPU", "CUDA"):  # on the CPU in Triton's interpreter
    LIBRARY.impl("pair_statistics_triton", launch("triton_forward", "pair_statistics"), _device)
    LIBRARY.impl("pair_statistics_backward_triton", launch("triton_backward", "pair_statistics_backward"), _device)


def kernel(name: str, problem: Problem, *numbers: torch.Tensor | None) -> Callable[..., Any] | None:
    """The op of that name with the kernels of the backend in force; None: the reference runs. `numbers`: what else is
    differentiable."""
    backend = _backend.select("pair_mining", problem.x.device)
    if backend == "reference":
        return None
    _backend.refuse_forward_mode(name, *(t for t in (problem.x, problem.ref, *numbers) if t is not None))
    return getattr(torch.ops.hyperkernels, f"{name}_triton" if backend == "triton" else name)


def transposed(problem: Problem, lower: torch.Tensor | None, upper: torch.Tensor | None) -> Problem:
    """The problem whose rows are the columns of this one."""
    assert problem.ref is not None
    return Problem(
        problem.ref, problem.x, problem.ref_label, problem.label, problem.ref_id, problem.id, lower, upper,
        problem.select, problem.similarity,
    )  # fmt: skip


class Columns(NamedTuple):
    """What the statistics of the columns are taken with."""

    lower: torch.Tensor | None = None  # [M] each
    upper: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None


def pair_statistics(
    problem: Problem,
    scale: torch.Tensor | None,  # [N]
    offset: torch.Tensor | None,
    moments: bool,
    extremes: bool,
    transform: Transform,
    columns: Columns | None = None,
    tile: Tile | None = None,
) -> tuple[Statistics, Statistics | None]:
    """Of the rows, and where `columns` is given of the columns too (ref must be given then)."""
    of_columns = () if columns is None else (columns.scale, columns.offset)
    run = kernel("pair_statistics", problem, scale, offset, *of_columns)
    if run is None:
        rows = reference.statistics(problem, scale, offset, moments, extremes, transform)
        if columns is None:
            return rows, None
        other = transposed(problem, columns.lower, columns.upper)
        return rows, reference.statistics(other, columns.scale, columns.offset, moments, extremes, transform)
    given = columns or Columns()
    tile = plan(problem) if tile is None else tile
    out = run(
        *problem, scale, offset, columns is not None, *given, moments, extremes, *transform, tile.rows, tile.columns
    )
    return Statistics(*out[:10]), None if columns is None else Statistics(*out[10:])
