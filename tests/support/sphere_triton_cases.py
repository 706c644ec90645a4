"""What the GPU kernels of the sphere must satisfy, wherever they run: the interpreter, a GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.sphere import reference
from hyperkernels.kernels.sphere.problem import EPS

from .accuracy import assert_as_accurate
from .launchers import launchers


class Operation(NamedTuple):
    """An op: its formula, its launchers, the kind, and what stands beside the first rows: rows, a share, or numbers."""

    formula: Callable[..., torch.Tensor]
    name: str
    kind: str | None
    inputs: str  # r: rows, t: a number per row, d: a number per column, s: scales


POINTS, VECTORS = reference.points, reference.vectors
OPERATIONS = {
    "angle": Operation(POINTS, "sphere_points", "angle", "rr-"),
    "slerp": Operation(POINTS, "sphere_points", "slerp", "rrt"),
    "log": Operation(POINTS, "sphere_points", "log", "rr-"),
    "tangent": Operation(VECTORS, "sphere_vectors", "tangent", "rr"),
    "exp": Operation(VECTORS, "sphere_vectors", "exp", "rr"),
    "retract": Operation(VECTORS, "sphere_vectors", "retract", "rr"),
    "residual": Operation(reference.residual, "sphere_residual", None, "rrd"),
    "scaled": Operation(reference.scaled_unit_norm, "scaled_unit_norm", None, "rs"),
}
TWO_POINTS = ("angle", "slerp", "log")
ANGLES = (0.0, 1e-7, 1e-4, 1.0, math.pi / 2, 3.0, math.pi - 1e-4, math.pi)


def numbers(
    operation: Operation, rows: int, dim: int, dtype: torch.dtype, device: str = "cpu", scales: int = 1
) -> list:
    """Fresh numbers for the inputs that are not rows, None where there is none."""
    accumulator = accumulate_dtype(dtype)
    new = {
        "t": lambda: torch.rand(rows, dtype=accumulator, device=device) * 1.5 - 0.25,
        "d": lambda: torch.rand(dim, dtype=accumulator, device=device),
        "s": lambda: torch.randn(scales, dim, dtype=accumulator, device=device),
        "-": lambda: None,
    }
    return [new[letter]() for letter in operation.inputs if letter != "r"]


def inputs(name: str, rows: int, dim: int, dtype: torch.dtype, device: str = "cpu", scales: int = 1) -> list:
    operation = OPERATIONS[name]
    double = {"dtype": torch.float64, "device": device}
    matrices = [torch.randn(rows, dim, **double) * 3 for letter in operation.inputs if letter == "r"]
    if operation.name == "sphere_vectors":
        matrices[1] /= 3 * dim**0.5
    return [m.to(dtype) for m in matrices] + numbers(operation, rows, dim, dtype, device, scales)


def _arguments(operation: Operation, given: list) -> list:
    return given + ([operation.kind] if operation.kind else [])


def forward(name: str, given: list) -> torch.Tensor:
    operation = OPERATIONS[name]
    return getattr(launchers, operation.name)(*_arguments(operation, given))


def backward(name: str, grad: torch.Tensor, given: list, needs: list[bool] | None = None) -> list[torch.Tensor]:
    operation = OPERATIONS[name]
    needs = [x is not None for x in given] if needs is None else needs
    run = getattr(launchers, f"{operation.name}_backward")
    return list(run(grad, *_arguments(operation, given), *needs))


def formula(name: str, grad: torch.Tensor | None, given: list) -> tuple[torch.Tensor, list[Any]]:
    """The reference's value and gradients."""
    operation = OPERATIONS[name]
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in given]
    out = operation.formula(*_arguments(operation, leaves))
    grad = torch.ones_like(out) if grad is None else grad
    found = iter(torch.autograd.grad(out, [x for x in leaves if x is not None], grad))
    return out.detach(), [None if x is None else next(found) for x in given]


def _double(given: list) -> list:
    return [None if x is None else x.double() for x in given]


def _spread(name: str, given: list, accumulator: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row what a rounding unit of the directions is worth, in units of the result and of the gradients: where two
    points meet or are nearly opposite it leads elsewhere."""
    ones = torch.ones(len(given[0]), dtype=torch.float64, device=given[0].device)
    if name not in TWO_POINTS:
        return ones, ones
    angle = reference.points(given[0].double(), given[1].double(), None, "angle")
    eps = torch.finfo(accumulator).eps
    sine = torch.where((angle == 0) | (angle == torch.pi), 1, angle.sin().abs().clamp_min(eps))
    value = torch.where(angle < 2, 1, 1 / sine)
    return value, (value / sine).clamp_max(1e3 / eps)


def check(name: str, given: list, *, grad_size: float = 1.0, groups: int = 1) -> None:
    """Value and gradients against the formula in float64, beside the formula in the dtype of the rows.

    A rounding unit of the terms that cancel is granted: the gradient over the length of the row, and what the
    directions leave undetermined. ``groups`` of rows, of sizes that differ, are compared apart.
    """
    x = given[0]
    dtype, accumulator = x.dtype, accumulate_dtype(x.dtype)
    out = forward(name, given)
    grad = (torch.randn(out.shape, dtype=torch.float64, device=x.device) * grad_size).to(out.dtype)
    before = [None if a is None else a.clone() for a in given]
    found = backward(name, grad, given)
    for a, b in zip(given, before, strict=True):
        assert a is None or torch.equal(a, b) or not a.isfinite().all(), "an input was changed"
    theirs, their_grads = formula(name, grad, given)
    right, right_grads = formula(name, grad.double(), _double(given))
    assert out.is_contiguous() and out.dtype == theirs.dtype
    spreads = _spread(name, given, accumulator)
    long = 1 + x.shape[1] ** 0.5 / 16 if dtype == torch.float64 else 1  # the truth is rounded as well

    def magnitude(terms: torch.Tensor, spread: torch.Tensor, of: torch.dtype) -> float:
        terms = terms * (1 + spread * torch.finfo(accumulator).eps / torch.finfo(of).eps)
        return 2 * long * torch.where(terms.isfinite(), terms, 0.0).norm().item()

    parts = [slice(i * len(x) // groups, (i + 1) * len(x) // groups) for i in range(groups)]
    for part in parts:
        what = f"{name} {dtype} {tuple(x.shape)} {part}"
        value_spread, grad_spread = (spread[part] for spread in spreads)
        terms = torch.ones_like(value_spread)
        if name == "tangent":
            terms = given[1][part].double().norm(dim=-1)
        if name == "scaled":
            terms = terms * given[1].abs().max()
        if name == "exp":  # the circular functions of n turn its rounding into theirs
            terms = terms + given[1][part].double().norm(dim=-1)
        allowed = magnitude(terms, value_spread, out.dtype)
        assert_as_accurate(out[part].cpu(), theirs[part].cpu(), right[part].cpu(), magnitude=allowed, what=what)
        for i, (mine, peer, truth) in enumerate(zip(found, their_grads, right_grads, strict=True)):
            if truth is None:
                assert mine.numel() == 0
                continue
            assert mine.shape == truth.shape and mine.is_contiguous()
            letter = OPERATIONS[name].inputs[i]
            if letter in "ds" and groups > 1:
                continue
            size = grad[part].double().reshape(len(x[part]), -1).norm(dim=-1)
            size = size * _factor(name, i, given, part)
            if letter in "rt":
                mine, peer, truth = mine[part], peer[part], truth[part]
            allowed = magnitude(size, grad_spread, mine.dtype)
            what_now = f"gradient {i} of {what}"
            assert_as_accurate(mine.cpu(), peer.cpu(), truth.cpu(), magnitude=allowed, what=what_now)


def _factor(name: str, i: int, given: list, part: slice) -> Any:
    """What times the gradient of the result is the size of the terms of gradient i."""
    factor: Any = 1.0
    if OPERATIONS[name].inputs[i] == "r" and (name, i) not in (("tangent", 1), ("exp", 1), ("retract", 1)):
        length = given[i][part].double().norm(dim=-1)
        factor = 1 / torch.where(length < EPS, 1, length)
    if OPERATIONS[name].name == "sphere_vectors":
        factor = factor * (1 + given[1][part].double().norm(dim=-1))
    if name in ("scaled", "residual"):
        factor = factor * (1 + given[-1].abs().max())
    return factor


def at_angle(angle: float, rows: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Rows x and y of different lengths, that far apart."""
    x, w = (torch.randn(rows, dim, dtype=torch.float64, device=device) for _ in range(2))
    x = x / x.norm(dim=-1, keepdim=True)
    w = w - (w * x).sum(-1, keepdim=True) * x
    w = w / w.norm(dim=-1, keepdim=True)
    x = (3 * x).to(dtype)
    if angle == math.pi:
        return x, -2 * x
    if angle == 0:
        return x, 2 * x
    return x, (0.7 * (math.cos(angle) * x.double() / 3 + math.sin(angle) * w)).to(dtype)


def check_angles(
    rows: int, dim: int, dtype: torch.dtype, device: str = "cpu", angles: Iterable[float] = ANGLES
) -> None:
    for name, angle in itertools.product(TWO_POINTS, angles):
        x, y = at_angle(angle, rows, dim, dtype, device)
        check(name, [x, y, *numbers(OPERATIONS[name], rows, dim, dtype, device)])


def check_velocities(rows: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """Vectors of those lengths, and one along its point."""
    for angle in (0.0, 1e-4, 3.0):
        x, y = at_angle(angle, rows, dim, dtype, device)
        for kind, away in (("exp", y * angle), ("retract", y * angle), ("tangent", x)):
            check(kind, [x, away])


def check_special_rows(
    dim: int, dtype: torch.dtype, device: str = "cpu", names: Iterable[str] = tuple(OPERATIONS)
) -> None:
    """Rows of zeros, shorter than EPS, and of every length side by side; NaN and infinity stay in their row."""
    for name in names:
        given = inputs(name, 12, dim, dtype, device)
        pair = given[1] if name != "scaled" else given[0]
        given[0][1] = 0
        pair[3] = 0
        given[0][5] = pair[5] = 0
        given[0][7] *= 1e-14
        check(name, given, groups=12)
        given[0][4], pair[8, dim // 2] = math.nan, math.inf
        out = forward(name, given)
        bad = ~(out.isfinite() if out.dim() == 1 else out.isfinite().all(-1))
        assert bad.nonzero().flatten().tolist() == [4, 8], name
        grad = torch.randn(out.shape, dtype=torch.float64, device=device).to(out.dtype)
        for mine, x in zip(backward(name, grad, given), given, strict=True):
            if x is not None and mine.shape[:1] == out.shape[:1]:
                fine = mine.isfinite() if mine.dim() == 1 else mine.isfinite().all(-1)
                assert fine[[0, 1, 2, 3, 5, 6, 7, 9, 10, 11]].all(), name


def check_long_rows(
    dim: int, dtype: torch.dtype, device: str = "cpu", names: Iterable[str] = tuple(OPERATIONS)
) -> None:
    """Lengths whose squares leave float32."""
    largest = torch.finfo(dtype).max
    sizes = torch.tensor(
        [min(s, largest / 32) for s in (1e-9, 1e-3, 1e19, 1e25, 8e36)], dtype=torch.float64, device=device
    )
    for name in names:
        if name == "exp":  # nobody knows the sine of such numbers
            continue
        given = inputs(name, 5, dim, dtype, device)
        given[0] = (given[0].double() * sizes[:, None]).to(dtype)
        if name == "retract":
            given[1] = (given[1].double() * sizes[:, None]).to(dtype)
            given[0] = given[0].clamp(-8, 8)
        elif len(given) > 1 and name not in ("scaled", "tangent"):
            given[1] = (given[1].double() * sizes.flip(0)[:, None]).to(dtype)
        check(name, given, groups=5)


def check_layouts(dtype: torch.dtype, device: str = "cpu") -> None:
    """Rows that are expanded or slices; gradients that are not asked for."""
    for name in ("slerp", "exp", "residual", "scaled"):
        operation = OPERATIONS[name]
        given = inputs(name, 10, 18, dtype, device)
        second = operation.inputs[1] == "r"
        views = [given[0][:1].expand(10, 18), torch.randn(10, 40, device=device).to(dtype)[:, 3:21]]
        for view in views:
            for given_now in ([view, *given[1:]], [given[0], view, *given[2:]])[: 1 + second]:
                plain = [None if x is None else x.contiguous() for x in given_now]
                out = forward(name, given_now)
                assert torch.equal(out, forward(name, plain))
                grad = torch.randn(out.shape, dtype=torch.float64, device=device).to(out.dtype)
                every = backward(name, grad, plain)
                for mine, full in zip(backward(name, grad, given_now), every, strict=True):
                    assert torch.equal(mine, full)
        for wanted in range(len(given)):
            needs = [i == wanted and x is not None for i, x in enumerate(given)]
            for need, mine, full in zip(needs, backward(name, grad, given_now, needs), every, strict=True):
                assert torch.equal(mine, full) if need else mine.numel() == 0
        for rows, dim in ((0, 5), (5, 0), (0, 0)):
            given = inputs(name, rows, dim, dtype, device, scales=1)
            out = forward(name, given)
            assert out.shape == (rows, dim)
            for mine, x in zip(backward(name, torch.zeros_like(out), given), given, strict=True):
                assert x is None or (mine.shape == x.shape and not mine.any())


def check_segments(rows: int, dim: int, segments: int, dtype: torch.dtype, device: str = "cpu") -> None:
    x = torch.randn(rows, dim, dtype=torch.float64, device=device).to(dtype)
    labels = torch.randint(0, max(1, segments - 1), (rows,), device=device)  # the last is empty
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=segments)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    found = launchers.segment_sum(x, labels, order, offsets)
    new = torch.zeros(segments, dim, dtype=torch.float64, device=device)
    truth = new.index_add(0, labels, x.double())
    peer = new.to(found.dtype).index_add(0, labels, x.to(found.dtype))
    assert_as_accurate(found.cpu(), peer.cpu(), truth.cpu(), magnitude=x.double().norm().item(), what="segment sums")
    assert torch.equal(found, launchers.segment_sum(x, labels, order, offsets))


def check_far_doubles(dim: int, device: str = "cpu", names: Iterable[str] = tuple(OPERATIONS)) -> None:
    """Rows of doubles whose squares leave their range. All that a power of two changes is the exponents: to the bit."""
    factor = torch.tensor([2.0**power for power in (510, 520, 700, 1010)], dtype=torch.float64, device=device)[:, None]
    for name in names:
        near, letters = inputs(name, 4, dim, torch.float64, device), OPERATIONS[name].inputs
        # A long velocity leads elsewhere.
        grown = [letter == "r" and (name, i) not in (("exp", 1), ("retract", 1)) for i, letter in enumerate(letters)]
        far = [x * factor if grow else x for x, grow in zip(near, grown, strict=True)]
        out = forward(name, near)
        linear = name == "tangent"
        assert torch.equal(forward(name, far), out * factor if linear else out), name
        grad = torch.randn(out.shape, dtype=torch.float64, device=device)
        grad *= 1.0 if linear else 2.0**200  # where rows grow alone their gradients shrink, and none is subnormal
        for mine, right, grow in zip(backward(name, grad, far), backward(name, grad, near), grown, strict=True):
            assert torch.equal(mine * factor if grow and not linear else mine, right), name
