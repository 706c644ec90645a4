# mypy: ignore-errors
"""The Triton kernels of listed pairs, and their launchers: the similarity of every pair, and its gradient.

An index out of range reads nothing: the similarity of its pair is NaN, and so is the gradient of the other end. The
gradient of a row sums its pairs in their order, however the device runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...._dtypes import accumulate_dtype
from ...triton.launch import launch
from ...triton.math import load, root
from ..problem import PairGradients, ValuesBackwardCall, ValuesCall

_SIMILARITIES = ("dot", "euclidean", "squared_euclidean")


@triton.jit(do_not_specialize=["pairs", "x_rows", "ref_rows"])
def values_kernel(
    x_ptr,  # [x_rows, D]
    ref_ptr,  # [ref_rows, D]
    rows_ptr,  # [pairs]
    columns_ptr,  # [pairs]
    value_ptr,  # [pairs]
    pairs,
    x_rows,
    ref_rows,
    SIMILARITY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_PAIRS pairs."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    there = pair < pairs
    row = tl.load(rows_ptr + pair, mask=there, other=-1)
    column = tl.load(columns_ptr + pair, mask=there, other=-1)
    inside = (row >= 0) & (row < x_rows) & (column >= 0) & (column < ref_rows)
    depth = tl.arange(0, BLOCK_D)[None, :]
    total = tl.zeros([BLOCK_PAIRS, BLOCK_D], value_ptr.dtype.element_ty)
    for start in range(0, D, BLOCK_D):
        mask = inside[:, None] & (depth < D - start)
        x = load(x_ptr + row[:, None] * D + start + depth, mask)
        ref = load(ref_ptr + column[:, None] * D + start + depth, mask)
        if SIMILARITY == "dot":
            total += x * ref
        else:
            total += (x - ref) * (x - ref)
    value = tl.sum(total, axis=1)
    if SIMILARITY == "euclidean":
        value = root(value)
    if SIMILARITY != "dot":
        value = -value
    tl.store(value_ptr + pair, tl.where(inside, value, float("nan")), mask=there)


@triton.jit(do_not_specialize=["others"])
def gather_kernel(
    own_ptr,  # [rows, D]
    other_ptr,  # [others, D]
    offsets_ptr,  # [rows + 1]: where the pairs of a row begin in the three lists
    partner_ptr,  # their rows of `other`
    weight_ptr,  # the gradients of their dot products, or of half their squared distances with the sign turned
    d_ptr,  # [rows, D]
    others,
    SIMILARITY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Owns BLOCK_D columns of the gradient of one row."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = (tl.program_id(0) // blocks).to(tl.int64)
    depth = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    first, last = tl.load(offsets_ptr + row), tl.load(offsets_ptr + row + 1)
    own = load(own_ptr + row * D + depth, depth < D)
    total = tl.zeros([1, BLOCK_D], weight_ptr.dtype.element_ty)
    for start in range(first, last, BLOCK_PAIRS):
        pair = start + tl.arange(0, BLOCK_PAIRS)
        there = pair < last
        partner = tl.load(partner_ptr + pair, mask=there, other=0)
        weight = tl.load(weight_ptr + pair, mask=there, other=0.0)
        inside = (partner >= 0) & (partner < others)
        other = load(other_ptr + partner[:, None] * D + depth, (there & inside)[:, None] & (depth < D))
        if SIMILARITY != "dot":
            other -= own
        # What the lists lack is 0 even beside an infinite row; a partner out of range is NaN.
        change = tl.where(there[:, None], weight[:, None] * other, 0.0)
        total += tl.sum(tl.where(inside[:, None], change, float("nan")), axis=0)[None, :]
    tl.store(d_ptr + row * D + depth, total, mask=depth < D)


def _checked(
    x: torch.Tensor, ref: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor, similarity: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contiguous x, ref, rows and columns."""
    other = x if ref is None else ref
    if similarity not in _SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(_SIMILARITIES)}; got {similarity!r}")
    if not x.is_floating_point() or other.dtype != x.dtype:
        raise TypeError(f"x and ref must have one floating dtype; got {x.dtype} and {other.dtype}")
    if x.dim() != 2 or other.dim() != 2 or x.shape[1] != other.shape[1]:
        raise ValueError(f"x and ref must be [N, D] and [M, D]; got {tuple(x.shape)} and {tuple(other.shape)}")
    if rows.dtype != torch.int64 or columns.dtype != torch.int64:
        raise TypeError(f"rows and columns must be int64; got {rows.dtype} and {columns.dtype}")
    if rows.dim() != 1 or rows.shape != columns.shape:
        raise ValueError(f"rows and columns must be [K] both; got {tuple(rows.shape)} and {tuple(columns.shape)}")
    return x.contiguous(), other.contiguous(), rows.contiguous(), columns.contiguous()


def _blocks(d: int) -> tuple[int, int]:
    """(pairs, depth) of a step of 4096 elements."""
    depth = max(16, min(512, triton.next_power_of_2(d)))
    return 4096 // depth, depth


def pair_values(call: ValuesCall) -> torch.Tensor:
    x, ref, rows, columns, similarity = call
    x, other, rows, columns = _checked(x, ref, rows, columns, similarity)
    pairs, d = len(rows), x.shape[1]
    values = x.new_empty(pairs, dtype=accumulate_dtype(x.dtype))
    if pairs:
        block_pairs, block_d = _blocks(d)
        launch(
            values_kernel, triton.cdiv(pairs, block_pairs),
            x, other, rows, columns, values, pairs, len(x), len(other), SIMILARITY=similarity, D=d,
            BLOCK_PAIRS=block_pairs, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return values


def _gather(
    own: torch.Tensor, other: torch.Tensor, of: torch.Tensor, partner: torch.Tensor, weight: torch.Tensor, name: str
) -> torch.Tensor:
    """The gradient of the rows of `own`, from the pairs (of, partner) and their weights."""
    gradient = torch.empty_like(own)
    rows, d = own.shape
    if rows == 0 or d == 0:
        return gradient
    of, order = torch.sort(of, stable=True)
    offsets = torch.searchsorted(of, torch.arange(rows + 1, device=own.device))
    block_pairs, block_d = _blocks(d)
    launch(
        gather_kernel, rows * triton.cdiv(d, block_d),
        own, other, offsets, partner[order], weight[order], gradient, len(other), SIMILARITY=name, D=d,
        BLOCK_PAIRS=block_pairs, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    return gradient


def pair_values_backward(call: ValuesBackwardCall) -> PairGradients:
    d, x, ref, rows, columns, similarity, need_x, need_ref = call
    x, other, rows, columns = _checked(x, ref, rows, columns, similarity)
    if d.shape != rows.shape or d.dtype != accumulate_dtype(x.dtype):
        raise ValueError(f"d must be [{len(rows)}] of {accumulate_dtype(x.dtype)}; got {tuple(d.shape)} of {d.dtype}")
    weight = d.contiguous()
    if similarity == "squared_euclidean":
        weight = 2 * weight
    elif similarity == "euclidean":
        value = pair_values(ValuesCall(x, ref, rows, columns, similarity))
        weight = torch.where(value == 0, 0, weight / -value)
    dx, dref = x.new_empty(0), x.new_empty(0)
    if ref is None:
        if need_x:
            ends = torch.cat([rows, columns]), torch.cat([columns, rows])
            dx = _gather(x, x, *ends, torch.cat([weight, weight]), similarity)
        return PairGradients(dx, dref)
    if need_x:
        dx = _gather(x, other, rows, columns, weight, similarity)
    if need_ref:
        dref = _gather(other, x, columns, rows, weight, similarity)
    return PairGradients(dx, dref)
