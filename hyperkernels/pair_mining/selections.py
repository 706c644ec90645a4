"""The ops that return pairs: the best of each row, samples, lists, bins, and the similarities of listed pairs.

Each exists twice in the dispatcher, as in op.py. Where pairs are counted first and listed afterwards, both passes
compute every similarity by the same instructions in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._fake import register_fake
from . import reference
from .op import LIBRARY, PROBLEM, Tile, _no_second_derivative, kernel, launch
from .reference import Problem, accumulate_dtype

_TILE = "SymInt row_tile, SymInt column_tile"
_SCHEMAS = {
    # values [N, k] in falling order, the lowest index first on ties; indices [N, k]; -inf and -1 where there are fewer
    "pair_top_k": f"({PROBLEM}SymInt k, {_TILE}) -> (Tensor values, Tensor indices)",
    "pair_count": f"({PROBLEM}{_TILE}) -> Tensor",
    # offsets [N + 1] from pair_count over the same problem; total = offsets[N]
    "pair_list": f"({PROBLEM}Tensor offsets, SymInt total, {_TILE}) -> (Tensor columns, Tensor similarities)",
    "pair_sample": f"({PROBLEM}SymInt draws, int seed, str weights, float p0, float p1, float temperature, {_TILE}) "
    "-> Tensor",
    # edges [E], offsets [N + 1]; count, sum, high and high_index [E + N]
    "pair_bins": f"({PROBLEM}Tensor edges, Tensor offsets, {_TILE}) -> "
    "(Tensor count, Tensor sum, Tensor high, Tensor high_index)",
    # The gradient of a pair that counts is d_sum of its bin. Where ref is None dx holds both ends of every pair.
    "pair_bins_backward": f"({PROBLEM}Tensor edges, Tensor offsets, Tensor d_sum, {_TILE}, bool need_x, bool need_ref) "
    "-> (Tensor dx, Tensor dref)",
    "pair_values": "(Tensor x, Tensor? ref, Tensor rows, Tensor columns, str similarity) -> Tensor",
    # d [K], the gradients of the values. Sums run over the pairs in their order, whatever the threads.
    "pair_values_backward": "(Tensor d, Tensor x, Tensor? ref, Tensor rows, Tensor columns, str similarity, "
    "bool need_x, bool need_ref) -> (Tensor dx, Tensor dref)",
}


def _numbers(x: torch.Tensor, *shape: Any) -> torch.Tensor:
    return x.new_empty(*shape, dtype=accumulate_dtype(x.dtype))


def _indices(x: torch.Tensor, *shape: Any) -> torch.Tensor:
    return x.new_empty(*shape, dtype=torch.int64)


def _gradients(x: torch.Tensor, ref: torch.Tensor | None, need_x: bool, need_ref: bool) -> tuple[torch.Tensor, ...]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous) if need_x else x.new_empty(0),
        torch.empty_like(ref, memory_format=contiguous) if need_ref and ref is not None else x.new_empty(0),
    )


_FAKES: dict[str, Callable[..., Any]] = {
    "pair_top_k": lambda x, *a: (_numbers(x, x.shape[0], a[9]), _indices(x, x.shape[0], a[9])),
    "pair_count": lambda x, *a: _indices(x, x.shape[0]),
    "pair_list": lambda x, *a: (_indices(x, a[10]), _numbers(x, a[10])),
    "pair_sample": lambda x, *a: _indices(x, x.shape[0], a[9]),
    "pair_bins": lambda x, *a: (
        _indices(x, a[9].shape[0] + x.shape[0]),
        _numbers(x, a[9].shape[0] + x.shape[0]),
        _numbers(x, a[9].shape[0] + x.shape[0]),
        _indices(x, a[9].shape[0] + x.shape[0]),
    ),
    "pair_bins_backward": lambda x, ref, *a: _gradients(x, ref, *a[-2:]),
    "pair_values": lambda x, ref, rows, *a: _numbers(x, rows.shape[0]),
    "pair_values_backward": lambda d, x, ref, *a: _gradients(x, ref, *a[-2:]),
}


def _define(suffix: str) -> None:
    for name, schema in _SCHEMAS.items():
        LIBRARY.define(name + suffix + schema)
        register_fake(LIBRARY, f"{name}{suffix}", _FAKES[name])
    ops = torch.ops.hyperkernels

    def bins_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:8], *inputs[10:12])
        ctx.names, ctx.tile = inputs[8:10], inputs[12:]
        ctx.mark_non_differentiable(output[0], output[2], output[3])
        ctx.set_materialize_grads(False)

    def bins_backward(ctx: Any, _count: Any, d_sum: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
        *tensors, edges, offsets = ctx.saved_tensors
        need_x, need_ref = ctx.needs_input_grad[0], tensors[1] is not None and ctx.needs_input_grad[1]
        if d_sum is None or not (need_x or need_ref):
            return (None,) * 14
        run = getattr(ops, f"pair_bins_backward{suffix}")
        dx, dref = run(*tensors, *ctx.names, edges, offsets, d_sum, *ctx.tile, need_x, need_ref)
        return dx if need_x else None, dref if need_ref else None, *[None] * 12

    def values_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.similarity = inputs[4]

    def values_backward(ctx: Any, d: torch.Tensor) -> tuple[Any, ...]:
        x, ref, rows, columns = ctx.saved_tensors
        need_x, need_ref = ctx.needs_input_grad[0], ref is not None and ctx.needs_input_grad[1]
        run = getattr(ops, f"pair_values_backward{suffix}")
        dx, dref = run(d, x, ref, rows, columns, ctx.similarity, need_x, need_ref)
        return dx if need_x else None, dref if need_ref else None, None, None, None

    for name, backward, setup in (
        ("pair_bins", bins_backward, bins_setup), ("pair_values", values_backward, values_setup)
    ):  # fmt: skip
        torch.library.register_autograd(f"hyperkernels::{name}{suffix}", backward, setup_context=setup, lib=LIBRARY)
        torch.library.register_autograd(f"hyperkernels::{name}_backward{suffix}", _no_second_derivative, lib=LIBRARY)


_define("")
_define("_triton")
for _device in ("CPU", "CUDA"):
    for _name in _SCHEMAS:
        LIBRARY.impl(f"{_name}_triton", launch("triton_selections", _name), _device)


def top_k(problem: Problem, k: int, tile: Tile = Tile()) -> tuple[torch.Tensor, torch.Tensor]:
    """reference.top_k says what."""
    problem = _constant(problem)
    run = kernel("pair_top_k", problem)
    if run is None:
        return reference.top_k(problem, k)
    return run(*problem, k, *tile)


def listed(problem: Problem, tile: Tile = Tile()) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All pairs that count: offsets [N + 1], columns and similarities [offsets[N]], rising columns in every row."""
    problem = _constant(problem)
    count = kernel("pair_count", problem)
    counts = reference.count(problem) if count is None else count(*problem, *tile)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    run = kernel("pair_list", problem)
    if run is None:
        return offsets, *reference.listed(problem, offsets)
    return offsets, *run(*problem, offsets, offsets[-1].item(), *tile)


def sample(
    problem: Problem,
    draws: int,
    seed: int,
    weights: str,
    p0: float,
    p1: float,
    temperature: float,
    tile: Tile = Tile(),
) -> torch.Tensor:
    """reference.sample says what."""
    problem = _constant(problem)
    run = kernel("pair_sample", problem)
    if run is None:
        return reference.sample(problem, draws, seed, weights, p0, p1, temperature)
    return run(*problem, draws, seed, weights, p0, p1, temperature, *tile)


def binned(
    problem: Problem, edges: torch.Tensor, offsets: torch.Tensor, tile: Tile = Tile()
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """reference.binned says what; the sum is differentiable."""
    run = kernel("pair_bins", problem)
    if run is None:
        return reference.binned(problem, edges, offsets)
    return run(*problem, edges, offsets, *tile)


def values(
    x: torch.Tensor, ref: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor, similarity: str
) -> torch.Tensor:
    """The similarity of rows[k] of x and columns[k] of ref (x where it is None), [K]; differentiable."""
    none = rows.new_empty(0)
    run = kernel("pair_values", Problem(x, ref, none, none, none, none, None, None, "all", similarity))
    if run is None:
        return reference.listed_similarities(x, ref, rows, columns, similarity)
    return run(x, ref, rows, columns, similarity)


def _constant(problem: Problem) -> Problem:
    return problem._replace(x=problem.x.detach(), ref=None if problem.ref is None else problem.ref.detach())
