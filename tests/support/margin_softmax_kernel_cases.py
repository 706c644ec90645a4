"""Problems for the class-statistics op at the level of its schema, for the tests of its kernels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.margin_softmax import op, reference
from hyperkernels.kernels.margin_softmax.negatives import SUMS, Negatives, negatives
from hyperkernels.kernels.margin_softmax.problem import Options

PARAMETERS = {
    "cosine": {},
    "quadratic": {"threshold": 0.1, "q2": 1.0, "q1": 0.3, "q0": 0.05, "d1": 2.0, "d0": 0.2, "easy": 0.9},
    "gaussian": {"center": 0.2, "alpha": 1.2, "sigma": 0.5},
    "angle": {"divisor": 1.4, "straight": 0.0},
    "sface": {"steepness": 3.0, "angle": 1.4},
    "sphereface2": {"margin": 0.2, "power": 3.0, "straight": 0.0},
    "uniface": {},
}


@dataclass
class Case:
    x: torch.Tensor
    weight: torch.Tensor
    target: torch.Tensor
    scale: torch.Tensor
    class_scale: torch.Tensor | None
    bias: torch.Tensor | None
    negatives: Negatives
    options: Options
    classes: torch.Tensor | None = None
    gradients: list[torch.Tensor] = field(default_factory=list)  # of neg_lse, target_cos, x_norm, neg_cos_sum

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another dtype."""
        wide = accumulate_dtype(dtype)

        def cast(tensor: torch.Tensor | None, to: torch.dtype) -> torch.Tensor | None:
            return None if tensor is None else tensor.detach().to(to)

        return Case(
            cast(self.x, dtype),
            cast(self.weight, dtype),
            self.target,
            cast(self.scale, wide),
            cast(self.class_scale, wide),
            cast(self.bias, wide),
            Negatives(self.negatives.kind, cast(self.negatives.parameters, wide)),
            self.options,
            self.classes,
            [cast(g, wide) for g in self.gradients],
        )


def make(
    n=12,
    c=30,
    d=16,
    kind="cosine",
    sub_centers=1,
    class_scale=False,
    bias=False,
    normalize_x=True,
    normalize_weight=True,
    ignored=0,
    absent=0,
    scale=8.0,
    near=0.0,
    dtype=torch.float64,
    parameters=None,
    eps=1e-12,
) -> Case:
    """Random rows; the first `ignored` take no part, the next `absent` have their class elsewhere."""
    weight = torch.randn(c * sub_centers, d, dtype=torch.float64) * torch.rand(c * sub_centers, 1).add(0.3)
    target = torch.randint(c, (n,))
    x = torch.randn(n, d, dtype=torch.float64) + near * weight[target * sub_centers]
    if not normalize_x:
        x = x / x.norm(dim=1, keepdim=True) * torch.rand(n, 1).add(0.5)
    if not normalize_weight:
        weight = weight / weight.norm(dim=1, keepdim=True) * torch.rand(c * sub_centers, 1).add(0.5)
    target[:ignored] = -100
    target[ignored : ignored + absent] = -7
    s = torch.rand(n, dtype=torch.float64).add(0.5) * scale
    values = PARAMETERS[kind] | (parameters or {})
    case = Case(
        x,
        weight,
        target,
        s,
        torch.rand(c, dtype=torch.float64).add(0.5) if class_scale and kind not in SUMS else None,
        torch.randn(c, dtype=torch.float64) if bias else None,
        negatives(kind, s, **values),
        Options(kind, sub_centers, normalize_x, normalize_weight, eps, -100, -7 if absent else -100),
        None,
        [torch.randn(n, dtype=torch.float64) for _ in range(4)],
    )
    return case.to(dtype)


def gradients_of(case: Case, statistics, leaves) -> list[torch.Tensor]:
    differentiable = [statistics[i] for i in (0, 1, 2, 5)]
    active = case.target != case.options.ignore_index
    # -inf where a row has no negatives: its gradient is undefined, its incoming gradient is never anything but 0.
    loss = sum(
        (torch.where(active & value.isfinite(), value, 0) * g.to(value)).sum()
        for value, g in zip(differentiable, case.gradients, strict=True)
        if g is not case.gradients[3] or g.any()  # zeros for neg_cos_sum would forbid all skipping, none do not
    )
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def run(case: Case, function) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The nine statistics and the gradients of `leaves()` by a function with the op's first arguments."""
    tensors = [case.x, case.weight, case.scale, case.class_scale, case.bias]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    if case.negatives.kind in SUMS:  # their scale is a constant of the kernels
        leaves[2] = case.scale
    x, weight, scale, class_scale, bias = leaves
    transform = case.negatives.parameters
    statistics = function(x, weight, case.target, scale, class_scale, bias, transform, case.classes, *case.options)
    gradients = gradients_of(case, statistics, [t for t in leaves if t is not None and t.requires_grad])
    return [s.detach() for s in statistics[:9]], gradients


def by_kernel(case: Case, block=7, kept=1, skip_budget=0.0, skip_report=None):
    """The nine statistics and the gradients of `leaves()`, by the C++ kernels with tiles of `block` classes."""
    blocks = -(-op.count_classes(case.weight, case.classes, case.options.sub_centers) // block)
    rest = (block, min(kept, blocks), skip_budget, skip_report)
    return run(case, lambda *problem: torch.ops.hyperkernels.class_statistics(*problem, *rest))


def by_reference(case: Case):
    return run(case, reference.class_statistics)


def kernel_backward(case: Case, block, kept, skip, wrong=None):
    """The backward op by itself with a `skip` of the test's own; the saved tensor named `wrong` is one too short."""
    kept = min(kept, -(-op.count_classes(case.weight, case.classes, case.options.sub_centers) // block))
    problem = (
        case.x, case.weight, case.target, case.scale, case.class_scale, case.bias, case.negatives.parameters,
        case.classes,
    )  # fmt: skip
    ops = torch.ops.hyperkernels
    out = ops.class_statistics(*problem, *case.options, block, kept, 0.0, None)
    names = {"x_norm": 2, "target_center": 6, "top": 9, "log_sum": 10, "w_norm": 12, "kept": 14}
    saved = {name: out[i] for name, i in names.items()}
    saved["skip"] = skip
    if wrong == "skip":
        saved["skip"] = torch.zeros(3, dtype=torch.uint8)
    elif wrong is not None:
        saved[wrong] = saved[wrong][:-1]
    needs = (True, True, case.class_scale is not None, case.bias is not None)
    return ops.class_statistics_backward(*case.gradients, *problem, *saved.values(), *case.options, block, kept, *needs)
