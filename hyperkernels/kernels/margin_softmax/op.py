"""The class-statistics op: which tiles the backward may leave out, and its gradients."""

from __future__ import annotations

import torch

from ..._ops import Gradient, Operation
from .problem import (
    SKIP_ROWS,
    ClassBackwardCall,
    ClassGradients,
    ClassStatisticsCall,
    ClassStatisticsResult,
    ForwardSums,
    Incoming,
    Needs,
    count_classes,
    gradients,
    results,
)
from .rows import rows_of_classes, sparse_rows


def skip_plan(
    d_neg_lse: torch.Tensor,
    neg_lse: torch.Tensor,
    block_lse: torch.Tensor,
    rows: int,
    budget: float,
    target_tile: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tiles the backward may leave out, uint8 [ceil(N / rows), tiles], and the report.

    The mass of a tile is the L1 norm of the gradient of its logits, sum_i |d_neg_lse_i| exp(block_lse_ib - neg_lse_i):
    it is known before the tile is computed. The lightest tiles are left out while their masses add up to at most
    ``budget`` times the whole, the sum of |d_neg_lse_i|. The report is (that share, the share of tiles left out). Tiles
    ``target_tile`` [N] of their rows (-1: none) stay, where the kernels cannot leave out the negatives around a target.
    """
    # The certificate must not be less than what is true: large exponents are rounded coarsely.
    slack = 2 * torch.finfo(neg_lse.dtype).eps * torch.maximum(block_lse.abs(), neg_lse.abs()[:, None])
    slack = torch.where(slack.isfinite(), slack, 0)
    mass = d_neg_lse.abs()[:, None] * torch.exp(block_lse - neg_lse[:, None] + slack)
    mass = torch.where((d_neg_lse == 0)[:, None] | (neg_lse == -torch.inf)[:, None], 0, mass)
    if rows > 1:
        padded = torch.nn.functional.pad(mass, (0, 0, 0, -len(mass) % rows))
        mass = padded.view(-1, rows, mass.shape[1]).sum(1)
    mass = mass.double() * (1 + 1e-4)
    if target_tile is not None:
        group = torch.arange(len(target_tile), device=mass.device) // rows
        held = mass.new_zeros(mass.numel() + 1)  # the last entry takes the rows without a target
        held.scatter_(0, torch.where(target_tile >= 0, group * mass.shape[1] + target_tile, mass.numel()), torch.inf)
        mass = mass + held[:-1].view(mass.shape)
    whole = d_neg_lse.double().abs().sum()
    light, order = mass.flatten().sort()
    total = light.cumsum(0)
    fits = total <= budget * whole
    skip = torch.zeros_like(fits).scatter_(0, order, fits).view(mass.shape)
    dropped = torch.where(fits, light, 0).sum() / torch.where(whole > 0, whole, 1)
    return skip.to(torch.uint8), torch.stack([dropped, fits.double().mean()])


def target_tiles(call: ClassStatisticsCall) -> torch.Tensor:
    """The tile of each row's own class, -1 where it has none here."""
    problem, options = call.problem, call.options
    target = problem.target
    here = (target != options.ignore_index) & (target != options.absent_index)
    here &= (target >= 0) & (target < count_classes(problem.weight, problem.classes, options.sub_centers))
    return torch.where(here, target // call.tiles.block, -1)


def prepared(
    call: ClassStatisticsCall, result: ClassStatisticsResult, d: ClassStatisticsResult, backend: str
) -> ClassBackwardCall:
    """The call of the backward, for the time being without what is needed; the skip report is written."""
    of_rows, zeros = d.statistics, torch.zeros_like(result.statistics.neg_lse)
    given = (of_rows.neg_lse, of_rows.target_cos, of_rows.x_norm, of_rows.neg_cos_sum)
    incoming = Incoming(*(zeros if g is None else g.to(zeros.dtype) for g in given))
    skip = zeros.new_empty(0, dtype=torch.uint8)
    # The plan knows the gradient of the log-sum-exp alone; the one of the sum of cosines reaches every class.
    if call.skip_budget > 0 and of_rows.neg_cos_sum is None:
        rows = SKIP_ROWS[backend]
        skip, report = skip_plan(
            incoming.d_neg_lse, result.statistics.neg_lse, result.block_lse, rows, call.skip_budget,
            target_tiles(call) if rows > 1 else None,
        )  # fmt: skip
        if call.skip_report is not None:
            call.skip_report.copy_(report)
    elif call.skip_report is not None:
        call.skip_report.zero_()
    forward = ForwardSums(
        result.statistics.x_norm, result.statistics.target_center, result.top, result.log_sum, result.w_norm,
        result.kept,
    )  # fmt: skip
    return ClassBackwardCall(
        incoming, call.problem, forward, skip, call.options, call.tiles, Needs(False, False, False, False)
    )


def scale_gradient(incoming: Incoming, result: ClassStatisticsResult) -> torch.Tensor:
    return torch.where(incoming.d_neg_lse == 0, 0, incoming.d_neg_lse * result.scale_slope)


def _backward(
    call: ClassStatisticsCall,
    result: ClassStatisticsResult,
    d: ClassStatisticsResult,
    needs: frozenset[str],
    backend: str,
) -> dict[str, torch.Tensor | None]:
    prepared_call = prepared(call, result, d, backend)
    wanted = Needs("x" in needs, "weight" in needs, "class_scale" in needs, "bias" in needs)
    dx, dweight, dclass_scale, dbias = BACKWARD(prepared_call._replace(needs=wanted), backend)
    classes = call.problem.classes
    if wanted.need_weight and classes is not None:
        rows = rows_of_classes(classes, call.options.sub_centers)
        dweight = sparse_rows(dweight, rows, call.problem.weight.shape)
    dscale = scale_gradient(prepared_call.incoming, result) if "scale" in needs else None
    return {"x": dx, "weight": dweight, "scale": dscale, "class_scale": dclass_scale, "bias": dbias}


BACKWARD = Operation(
    "class_statistics_backward",
    ClassBackwardCall,
    ClassGradients,
    results=gradients,
    triton="kernels.margin_softmax.triton.kernels:class_statistics_backward",
)
STATISTICS = Operation(
    "class_statistics",
    ClassStatisticsCall,
    ClassStatisticsResult,
    results=results,
    triton="kernels.margin_softmax.triton.kernels:class_statistics",
    gradient=Gradient(
        inputs=("x", "weight", "scale", "class_scale", "bias"),
        backward=_backward,
        outputs=lambda _: ("neg_lse", "target_cos", "x_norm", "neg_cos_sum"),
        saved=(
            "neg_lse", "x_norm", "target_center", "top", "log_sum", "scale_slope", "w_norm", "block_lse", "kept",
        ),
    ),
)  # fmt: skip
