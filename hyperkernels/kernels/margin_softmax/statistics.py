"""Which backend runs the class statistics, and by which plan.

The plan (how many classes a tile holds, how many tiles of cosines are kept for the backward) is made from the sizes
alone, so that shapes are known to the compiler and results do not depend on the machine.
"""

from __future__ import annotations

import torch

from ... import _backend
from . import chunked, reference
from .negatives import Negatives
from .op import STATISTICS
from .problem import (
    ClassProblem,
    ClassRowStatistics,
    ClassStatisticsCall,
    Options,
    count_classes,
    plan_cpp,
    plan_triton,
)
from .receivers import Receiver, whole


def class_statistics(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C*K, D]
    target: torch.Tensor,  # [N], a position in `classes` where they are given
    scale: torch.Tensor,  # [N], of the accumulator's dtype, as the four below
    class_scale: torch.Tensor | None,  # [C], or [R], as the bias
    bias: torch.Tensor | None,
    negatives: Negatives,
    classes: torch.Tensor | None,  # [R] int64, increasing, or None for all
    options: Options,
    workspace: int | None,
    skip_budget: float,
    skip_report: torch.Tensor | None,  # [2] float64
    receiver: Receiver | None = None,  # takes the weight's gradient in autograd's place
) -> ClassRowStatistics:
    if not (torch.is_grad_enabled() and weight.requires_grad):
        receiver = None
    backend = _backend.select("margin_softmax", x.device)
    if receiver is not None and backend == "reference":
        weight = whole(receiver, weight)
    problem = ClassProblem(x, weight, target, scale, class_scale, bias, negatives.parameters, classes)
    if backend == "reference":
        if skip_report is not None:
            skip_report.zero_()
        return ClassRowStatistics(*reference.class_statistics(*problem, *options))
    leaves = [t for t in (x, weight, scale, class_scale, bias) if t is not None]
    for_backward = torch.is_grad_enabled() and any(t.requires_grad for t in leaves)
    count = count_classes(weight, classes, options.sub_centers)
    # Exported, the number of kept tiles would be a question to the size of the batch.
    keeps = for_backward and receiver is None and not torch.compiler.is_exporting()
    sizes = (x.shape[0], count, options.sub_centers, x.shape[1], x.dtype, workspace if keeps else 0)
    tiles = plan_triton(*sizes) if backend == "triton" else plan_cpp(*sizes)
    call = ClassStatisticsCall(problem, options, tiles, skip_budget if for_backward else 0.0, skip_report)
    if receiver is not None:
        return chunked.class_statistics(receiver, call, backend).statistics
    return STATISTICS(call, backend).statistics
