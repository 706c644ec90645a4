"""Valid problems of the class-softmax ops."""

from __future__ import annotations

from typing import Any

import torch

from hyperkernels.kernels.margin_softmax import problem
from hyperkernels.kernels.margin_softmax.negatives import SUMS
from hyperkernels.kernels.margin_softmax.problem import plan_triton
from tests.support.margin_softmax_kernel_cases import PARAMETERS, Case, make

from .registry import Arguments, Context, valid

_PROBLEM = ("x", "weight", "target", "scale", "class_scale", "bias", "transform", "classes")


def _case(c: Context) -> Case:
    n, classes = c.size(), c.choice(1, 2, 5, 13) if c.triton else c.choice(1, 2, 5, 30, 300)
    normal = {"normalize_x": c.chance(0.8), "normalize_weight": c.chance(0.8)}
    case = make(
        n, classes, c.dim(), c.choice(*PARAMETERS), c.choice(1, 1, 2, 3), c.chance(0.3), c.chance(0.3), **normal,
        ignored=min(n, c.choice(0, 0, 1)), absent=min(max(n - 1, 0), c.choice(0, 1)), dtype=c.dtype(),
    )  # fmt: skip
    if c.chance(0.2):  # a part of the classes alone exists; the target is a position among them
        case.classes = torch.arange(0, classes, c.choice(1, 2, 3))
        count = len(case.classes)
        case.target = torch.where(case.target < 0, case.target, case.target % count)
        for name in ("class_scale", "bias"):
            given = getattr(case, name)
            setattr(case, name, None if given is None else given[:count].clone())
    return case


def _tiles(c: Context, case: Case) -> tuple[int, int]:
    count = problem.count_classes(case.weight, case.classes, case.options.sub_centers)
    if c.triton:
        return plan_triton(1, count, case.options.sub_centers, case.x.shape[1], case.x.dtype, 0)
    block = c.choice(1, 3, 7, 64, 512)
    return block, c.random.randint(0, -(-count // block))


def _problem(case: Case) -> dict[str, Any]:
    tensors = (
        case.x, case.weight, case.target, case.scale, case.class_scale, case.bias, case.negatives.parameters,
        case.classes,
    )  # fmt: skip
    return dict(zip(_PROBLEM, tensors, strict=True))


def _constants(case: Case, tiles: tuple[int, int]) -> Arguments:
    return case.options._asdict() | {"block": tiles[0], "kept_blocks": tiles[1]}


@valid("class_statistics")
def class_statistics(c: Context) -> Arguments:
    case = _case(c)
    budget = 0.0 if case.negatives.kind in SUMS else c.choice(0.0, 0.1)
    report = c.choice(None, torch.zeros(2, dtype=torch.float64))
    return _problem(case) | _constants(case, _tiles(c, case)) | {"skip_budget": budget, "skip_report": report}


@valid("class_statistics_backward")
def class_statistics_backward(c: Context) -> Arguments:
    case = _case(c)
    tiles = _tiles(c, case)
    suffix = "_triton" if c.triton else ""
    forward = getattr(torch.ops.hyperkernels, f"class_statistics{suffix}")
    out = forward(*_problem(case).values(), *case.options, *tiles, 0.0, None)
    skip = torch.empty(0, dtype=torch.uint8)
    if case.negatives.kind not in SUMS and c.chance(0.3):
        groups, count = (
            -(-len(case.x) // problem.SKIP_ROWS["triton" if c.triton else "cpp"]),
            len(out[12]) // case.options.sub_centers,
        )
        skip = torch.randint(2, (groups, -(-count // tiles[0])), dtype=torch.uint8)
    names = ("d_neg_lse", "d_target_cos", "d_x_norm", "d_neg_cos_sum")
    saved = {"x_norm": 2, "target_center": 6, "top": 9, "log_sum": 10, "w_norm": 12, "kept": 14}
    return {
        **dict(zip(names, case.gradients, strict=True)),
        **_problem(case),
        **{name: out[at] for name, at in saved.items()},
        "skip": skip,
        **_constants(case, tiles),
        "need_x": c.chance(0.8),
        "need_weight": c.chance(0.8),
        "need_class_scale": case.class_scale is not None and c.chance(0.8),
        "need_bias": case.bias is not None and c.chance(0.8),
    }
