"""The ops that return pairs: the best of each row, samples, lists, bins, and the similarities of listed pairs.

Where pairs are counted first and listed afterwards, both passes compute every similarity by the same instructions in
the same order.
"""

from __future__ import annotations

from typing import Any

import torch

from ... import _backend
from ..._ops import Gradient, Operation
from ..._schema import Tensor
from . import reference
from .problem import (
    Bins,
    BinsBackwardCall,
    BinsCall,
    CountCall,
    ListCall,
    PairGradients,
    PairList,
    PairProblem,
    SampleCall,
    Tile,
    TopK,
    TopKCall,
    ValuesBackwardCall,
    ValuesCall,
    bins_results,
    gradient_results,
    indices,
    numbers,
)

_LAUNCHERS = "kernels.pair_mining.triton"


def _bins_backward(
    call: BinsCall, result: Bins, d: Bins, needs: frozenset[str], backend: str
) -> dict[str, torch.Tensor | None]:
    problem, edges, offsets, tile = call
    if d.sum is None:
        return {}
    backward = BinsBackwardCall(problem, edges, offsets, d.sum, tile, "x" in needs, "ref" in needs)
    dx, dref = BINS_BACKWARD(backward, backend)
    return {"x": dx, "ref": dref}


def _values_backward(
    call: ValuesCall, result: None, d: torch.Tensor, needs: frozenset[str], backend: str
) -> dict[str, torch.Tensor | None]:
    dx, dref = VALUES_BACKWARD(ValuesBackwardCall(d, *call, "x" in needs, "ref" in needs), backend)
    return {"x": dx, "ref": dref}


TOP_K = Operation(
    "pair_top_k",
    TopKCall,
    TopK,
    results=lambda c: TopK(numbers(c.problem.x, len(c.problem.x), c.k), indices(c.problem.x, len(c.problem.x), c.k)),
    triton=f"{_LAUNCHERS}.top_k:pair_top_k",
)
COUNT = Operation(
    "pair_count",
    CountCall,
    Tensor,
    results=lambda c: indices(c.problem.x, c.problem.x.shape[0]),
    triton=f"{_LAUNCHERS}.lists:pair_count",
)
LIST = Operation(
    "pair_list",
    ListCall,
    PairList,
    results=lambda c: PairList(indices(c.problem.x, c.total), numbers(c.problem.x, c.total)),
    triton=f"{_LAUNCHERS}.lists:pair_list",
)
SAMPLE = Operation(
    "pair_sample",
    SampleCall,
    Tensor,
    results=lambda c: indices(c.problem.x, c.problem.x.shape[0], c.draws),
    triton=f"{_LAUNCHERS}.samples:pair_sample",
)
BINS_BACKWARD = Operation(
    "pair_bins_backward",
    BinsBackwardCall,
    PairGradients,
    results=lambda c: gradient_results(c.problem.x, c.problem.ref, c.need_x, c.need_ref),
    triton=f"{_LAUNCHERS}.bins:pair_bins_backward",
)
BINS = Operation(
    "pair_bins",
    BinsCall,
    Bins,
    results=bins_results,
    triton=f"{_LAUNCHERS}.bins:pair_bins",
    gradient=Gradient(inputs=("x", "ref"), backward=_bins_backward, outputs=lambda _: ("sum",)),
)
VALUES_BACKWARD = Operation(
    "pair_values_backward",
    ValuesBackwardCall,
    PairGradients,
    results=lambda c: gradient_results(c.x, c.ref, c.need_x, c.need_ref),
    triton=f"{_LAUNCHERS}.values:pair_values_backward",
)
VALUES = Operation(
    "pair_values",
    ValuesCall,
    Tensor,
    results=lambda c: numbers(c.x, c.rows.shape[0]),
    triton=f"{_LAUNCHERS}.values:pair_values",
    gradient=Gradient(inputs=("x", "ref"), backward=_values_backward),
)


def top_k(problem: PairProblem, k: int, tile: Tile = Tile()) -> TopK:
    """reference.top_k says what."""
    problem, backend = _constant(problem), _backend_of(problem)
    if backend == "reference":
        return TopK(*reference.top_k(problem, k))
    return TOP_K(TopKCall(problem, k, tile), backend)


def listed(problem: PairProblem, tile: Tile = Tile()) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All pairs that count: offsets [N + 1], columns and similarities [offsets[N]], rising columns in every row."""
    problem, backend = _constant(problem), _backend_of(problem)
    count = reference.count(problem) if backend == "reference" else COUNT(CountCall(problem, tile), backend)
    offsets = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    if backend == "reference":
        return offsets, *reference.listed(problem, offsets)
    total: Any = offsets[-1].item()  # a symbol, where a program is exported
    return offsets, *LIST(ListCall(problem, offsets, total, tile), backend)


def sample(
    problem: PairProblem,
    draws: int,
    seed: int,
    weights: str,
    p0: float,
    p1: float,
    temperature: float,
    tile: Tile = Tile(),
) -> torch.Tensor:
    """reference.sample says what."""
    problem, backend = _constant(problem), _backend_of(problem)
    if backend == "reference":
        return reference.sample(problem, draws, seed, weights, p0, p1, temperature)
    return SAMPLE(SampleCall(problem, draws, seed, weights, p0, p1, temperature, tile), backend)


def binned(problem: PairProblem, edges: torch.Tensor, offsets: torch.Tensor, tile: Tile = Tile()) -> Bins:
    """reference.binned says what; the sum is differentiable."""
    backend = _backend_of(problem)
    if backend == "reference":
        return Bins(*reference.binned(problem, edges, offsets))
    return BINS(BinsCall(problem, edges, offsets, tile), backend)


def values(
    x: torch.Tensor, ref: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor, similarity: str
) -> torch.Tensor:
    """The similarity of rows[k] of x and columns[k] of ref (x where it is None), [K]; differentiable."""
    backend = _backend.select("pair_mining", x.device)
    if backend == "reference":
        return reference.listed_similarities(x, ref, rows, columns, similarity)
    return VALUES(ValuesCall(x, ref, rows, columns, similarity), backend)


def _backend_of(problem: PairProblem) -> str:
    return _backend.select("pair_mining", problem.x.device)


def _constant(problem: PairProblem) -> PairProblem:
    return problem._replace(x=problem.x.detach(), ref=None if problem.ref is None else problem.ref.detach())
