"""Rows at the ends of their dtype's range: subnormal halves, and lengths whose squares no dtype of theirs holds."""

from __future__ import annotations

import torch

import hyperkernels as hk

# dtype, what the rows are made of, and the gradient of the result, with which theirs are in range.
ROWS = {
    "subnormal halves": (torch.float16, lambda x: (4 * x).round() * 2.0**-24, 2.0**-13),
    "the longest floats": (torch.float32, lambda x: 5e37 * x / x.norm(dim=1, keepdim=True), 1e10),
    "the shortest floats": (torch.float32, lambda x: (4 * x).round() * 2.0**-149, 1e-40),
    "the longest doubles": (torch.float64, lambda x: x * 2.0**1010, 2.0**100),
    "the shortest doubles": (torch.float64, lambda x: x * 2.0**-1010, 2.0**-1000),
}


def _head(margin):
    def loss(x, weight):
        target = torch.arange(len(x), device=x.device) % len(weight)
        return hk.margin_softmax_loss(x, weight, target, margin=margin, scale=4.0, reduction="none")

    return loss


SPHERE = {
    "angle": hk.sphere.angle,
    "slerp": lambda x, y: hk.sphere.slerp(x, y, 0.3),
    "log_map": hk.sphere.log_map,
    "exp_map": lambda x, y: hk.sphere.exp_map(x, hk.unit_norm(y)),
    "retract": lambda x, y: hk.sphere.retract(x, hk.unit_norm(y)),
    "tangent": lambda x, y: hk.sphere.tangent(x, hk.unit_norm(y)),
    "residual": lambda x, y: hk.sphere.residual(x, y, 0.3),
    "scaled_unit_norm": lambda x, y: hk.sphere.scaled_unit_norm(x, hk.unit_norm(y)),
}
FUNCTIONS = {
    "unit_norm": lambda x, y: hk.unit_norm(x, eps=0.0) + hk.unit_norm(y, eps=0.0),
    **SPHERE,
    "normface": _head(hk.margins.NormFace()),
    "cosface": _head(hk.margins.CosFace(0.3)),
    "arcface": _head(hk.margins.ArcFace(0.3)),
}


def _value_and_gradients(function, leaves, grad):
    leaves = [v.detach().requires_grad_() for v in leaves]
    out = function(*leaves)
    grad = torch.randn_like(out) * grad if isinstance(grad, float) else grad.to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad), grad]


def check(name: str, rows: str, both: bool, backend: str, device: str = "cpu") -> None:
    """Finite, and row by row what the formula gives in float64, of extreme rows beside usual or extreme ones."""
    dtype, extreme, grad = ROWS[rows]
    x, y = (torch.randn(6, 12, dtype=torch.float64, device=device) for _ in range(2))
    x[:, 0] = y[:, 0] = 1.0  # none rounds to nothing
    leaves = [extreme(x).to(dtype), (extreme(y) if both else y).to(dtype)]
    with hk.backend(backend):
        *found, grad = _value_and_gradients(FUNCTIONS[name], leaves, grad)
    with hk.backend("reference"):
        *truth, _ = _value_and_gradients(FUNCTIONS[name], [v.double() for v in leaves], grad)
    for i, (mine, right) in enumerate(zip(found, truth, strict=True)):
        what = f"{('value', 'gradient of x', 'gradient of y')[i]} of {name}, {rows}"
        assert mine.isfinite().all(), f"{what}: {mine}"
        info = torch.finfo(mine.dtype)
        mine, right = (v.double().reshape(len(v), -1) for v in (mine, right))
        allowed = 32 * info.eps * right.norm(dim=1) + 4 * info.smallest_normal * info.eps
        error = (mine - right).norm(dim=1)
        assert (error <= allowed).all(), f"{what}: {(error / allowed).max()} of what is allowed"
