"""Rows of x and of the weight in plain PyTorch, for the reference and for the heads."""

from typing import Any

import torch
import torch.nn.functional as F


def unit_rows(v: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """v / max(|v|, eps) by rows, and |v|; a row shorter than eps is a constant for the gradient."""
    # The largest magnitude is taken out of a row first, so that its squares neither overflow nor vanish.
    largest = v.detach().abs().amax(dim=1, keepdim=True) if v.shape[1] else v.new_zeros(len(v), 1)
    near = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    norm = torch.linalg.vector_norm(v / near, dim=1, keepdim=True)
    short = norm * near < eps
    unit = v / near / torch.maximum(norm, eps / near)
    norm = norm * near
    return torch.where(short, unit.detach(), unit), torch.where(short, norm.detach(), norm)[:, 0]


def take_rows(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """weight[rows], rows increasing; the gradient of the weight is row-sparse."""
    if torch.compiler.is_compiling():  # which traces this one's gradient
        return F.embedding(rows, weight, sparse=True)
    return TakeRows.apply(weight, rows)


class TakeRows(torch.autograd.Function):
    """The same, with second and forward-mode derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return weight[rows]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        weight, ctx.rows = inputs
        ctx.shape = weight.shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:  # type: ignore[override]
        # No gradient where the rows are updated in the backward: a sparse one of zeros would move them again.
        return None if gradient is None else sparse_rows(gradient, ctx.rows, ctx.shape), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:  # type: ignore[override]
        return tangent[ctx.rows]


def sparse_rows(values: torch.Tensor, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The matrix of that shape whose `rows`, increasing, are `values`, and whose others are zero: sparse, coalesced."""
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)


def rows_of_classes(classes: torch.Tensor, sub_centers: int) -> torch.Tensor:
    """The rows of the weight that belong to the classes [R]: [R*K]."""
    return (classes[:, None] * sub_centers + torch.arange(sub_centers, device=classes.device)).flatten()
