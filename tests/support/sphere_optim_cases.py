"""The steps on the sphere as loops over single vectors in float64, and what a kernel set must do against them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .accuracy import assert_as_accurate
from .launchers import reference_updates

SGD_OPTIONS = {
    "plain": {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False},
    "momentum": {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "maximize": False},
    "dampening": {"momentum": 0.7, "dampening": 0.3, "nesterov": False, "maximize": True},
    "nesterov": {"momentum": 0.8, "dampening": 0.0, "nesterov": True, "maximize": False},
}
ADAM_OPTIONS = {
    "usual": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False},
    "amsgrad": {"beta1": 0.8, "beta2": 0.9, "eps": 1e-8, "maximize": False},
    "fast": {"beta1": 0.5, "beta2": 0.7, "eps": 1e-3, "maximize": True},
    "no memory": {"beta1": 0.0, "beta2": 0.0, "eps": 1e-6, "maximize": False},
}
OPTIONS = {"sgd": SGD_OPTIONS, "adam": ADAM_OPTIONS}
CASES = [(kind, name) for kind, options in OPTIONS.items() for name in options]
SHAPES = [(7, 1), (3, 5), (0, 4), (30, 17), (4, 0), (11, 70), (1, 1500)]  # of the parameters of one call


class Problem(NamedTuple):
    """Of each parameter: points, the tensors of its state, steps, gradients."""

    points: list[torch.Tensor]
    state: tuple[list[torch.Tensor], ...]
    steps: list[torch.Tensor]
    gradients: list[torch.Tensor]

    def map(self, f):
        return Problem(
            *([f(t) for t in self[i]] if i != 1 else tuple(list(map(f, s)) for s in self[1]) for i in range(4))
        )


def problem(kind, name, shapes=SHAPES, dtype=torch.float32, device="cpu"):
    """Points that are not quite on the sphere and have come to different steps."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def unit(shape):
        x = torch.randn(shape, dtype=torch.float64)
        return x / x.norm(dim=-1, keepdim=True)

    points = [(unit(shape) * 1.01).to(dtype) for shape in shapes]
    steps = [torch.randint(0, 4, shape[:1], dtype=torch.int32) for shape in shapes]
    momenta = [
        torch.randn(shape, dtype=torch.float64) * (t != 0)[:, None] for shape, t in zip(shapes, steps, strict=True)
    ]
    momenta = [
        (m - (unit_ * m).sum(-1, keepdim=True) * unit_).to(wide)
        for m, unit_ in zip(momenta, map(_direct, points), strict=True)
    ]
    state = [momenta] if kind == "adam" or OPTIONS[kind][name]["momentum"] else [[]]
    if kind == "adam":
        state.append([torch.rand(shape[:1], dtype=wide) * (t != 0) for shape, t in zip(shapes, steps, strict=True)])
        state.append(
            [torch.rand_like(s) * (t != 0) for s, t in zip(state[1], steps, strict=True)] if name == "amsgrad" else []
        )
    gradients = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    return Problem(points, tuple(state), steps, gradients).map(lambda t: t.to(device))


def _direct(x):
    return x.double() / x.double().norm(dim=-1, keepdim=True)


def _dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _unit(x):
    length = math.sqrt(_dot(x, x))
    return [v / length for v in x]


def _project(x, v):
    product = _dot(x, v)
    return [b - product * a for a, b in zip(x, v, strict=True)]


def sgd_by_hand(x, state, step, g, lr, momentum, dampening, nesterov):
    """One vector: its point and state after the step."""
    x, tangent = _unit(x), _project(_unit(x), g)
    if not momentum:
        return _unit([a - lr * b for a, b in zip(x, tangent, strict=True)]), []
    before = g if step == 0 else state[0]
    moved = [momentum * b + (1 - dampening) * t for b, t in zip(before, tangent, strict=True)]
    change = [t + momentum * b for t, b in zip(tangent, moved, strict=True)] if nesterov else moved
    x = _unit([a - lr * b for a, b in zip(x, change, strict=True)])
    return x, [_project(x, moved)]


def adam_by_hand(x, state, step, g, lr, beta1, beta2, eps):
    x, tangent = _unit(x), _project(_unit(x), g)
    mean = [beta1 * m + (1 - beta1) * t for m, t in zip(state[0], tangent, strict=True)]
    square = beta2 * state[1] + (1 - beta2) * _dot(tangent, tangent)
    largest = max(square, state[2]) if len(state) > 2 else square
    correction1, correction2 = (-math.expm1((step + 1) * math.log(beta)) if beta else 1.0 for beta in (beta1, beta2))
    size = lr / correction1 / (math.sqrt(largest / correction2) + eps)
    x = _unit([a - size * m for a, m in zip(x, mean, strict=True)])
    return x, [_project(x, mean), square, largest][: len(state)]


BY_HAND = {"sgd": sgd_by_hand, "adam": adam_by_hand}


def by_hand(kind, p, options, lr, scale=1.0):
    """The problem after the step, in float64."""
    options = dict(options)
    sign = -1 if options.pop("maximize") else 1
    after = p.map(lambda t: t.double().clone() if t.is_floating_point() else t + 1)
    for i, points in enumerate(after.points):
        for r in range(len(points)):
            if points.shape[1] == 0:
                continue
            state = [s[i][r].tolist() for s in after.state if s]
            g = (sign / scale * p.gradients[i][r].double()).tolist()
            x, found = BY_HAND[kind](points[r].tolist(), state, p.steps[i][r].item(), g, lr, **options)
            points[r] = torch.tensor(x, dtype=torch.float64)
            for of_state, value in zip([s for s in after.state if s], found, strict=True):
                of_state[i][r] = torch.tensor(value, dtype=torch.float64)
    return after


def run(function, p, options, lr, lr_tensor=None, grad_scale=None, found_inf=None):
    """The problem after the step; `p` stays."""
    p = p.map(torch.clone)
    function(p.points, *p.state, p.steps, p.gradients, lr_tensor, grad_scale, found_inf, lr, *options.values())
    return p


def check(
    function, kind, name, lr=0.125, grad_scale=None, shapes=SHAPES, dtype=torch.float32, device="cpu", factor=2.0
):
    """`function` writes what the loop by hand writes, with an error of at most `factor` times that of the reference in
    the same dtype."""
    p, options = problem(kind, name, shapes, dtype, device), OPTIONS[kind][name]
    scale = None if grad_scale is None else torch.tensor([grad_scale])
    mine = run(function, p, options, lr, grad_scale=None if scale is None else scale.to(device)).map(torch.Tensor.cpu)
    p = p.map(torch.Tensor.cpu)
    peer = run(getattr(reference_updates, f"sphere_{kind}_"), p, options, lr, grad_scale=scale)
    truth = by_hand(kind, p, options, lr, grad_scale or 1.0)
    for i, shape in enumerate(shapes):
        assert torch.equal(mine.steps[i], truth.steps[i])
        if 0 in shape:
            continue
        # 1 - beta^step loses what a step close to 0 has no more of.
        magnitude = 16 * math.sqrt(shape[0]) if kind == "adam" and dtype == torch.float64 else 0.0
        assert_as_accurate(
            mine.points[i], peer.points[i], truth.points[i], what=f"points {shape}", magnitude=magnitude, factor=factor
        )
        slope = p.gradients[i].double().norm().item() / (grad_scale or 1.0)
        for ours, theirs, right, before in zip(mine.state, peer.state, truth.state, p.state, strict=True):
            if ours:
                # What is along the point cancels.
                magnitude = slope + before[i].double().norm().item() if ours[i].dim() == 2 else slope**2
                assert_as_accurate(
                    ours[i], theirs[i], right[i], what=f"state {shape}", magnitude=magnitude, factor=factor
                )


def check_skipped(function, kind, name, dtype=torch.float32, device="cpu"):
    """Where the scaler found an infinity nothing changes; a rate of the device is taken instead of the number."""
    p, options = problem(kind, name, [(5, 9), (3, 2)], dtype, device), OPTIONS[kind][name]
    one = torch.ones(1, device=device)

    def flat(found):
        return [t for part in (found.points, *found.state, found.steps) for t in part]

    skipped = run(function, p, options, 0.5, grad_scale=one, found_inf=one)
    assert all(map(torch.equal, flat(skipped), flat(p)))
    plain = flat(run(function, p, options, 0.5))
    assert all(map(torch.equal, flat(run(function, p, options, 0.5, grad_scale=one, found_inf=0 * one)), plain))
    assert not torch.equal(plain[0], p.points[0])
    rate = torch.tensor([0.5], dtype=torch.float64, device=device)
    assert all(map(torch.equal, flat(run(function, p, options, 0.0, lr_tensor=rate)), plain))


def check_last_step(function, kind, name, dtype=torch.float32, device="cpu"):
    """A count of updates stays at its maximum, where the step is that of the update before."""
    p, options = problem(kind, name, [(5, 9), (3, 2)], dtype, device), OPTIONS[kind][name]
    last = [torch.full_like(t, torch.iinfo(t.dtype).max) for t in p.steps]
    before = run(function, p._replace(steps=[t - 1 for t in last]), options, 0.125)
    after = run(function, p._replace(steps=last), options, 0.125)
    for found in (before, after):
        assert all(map(torch.equal, found.steps, last))
    for mine, right in zip((after.points, *after.state), (before.points, *before.state), strict=True):
        assert all(t.isfinite().all() for t in mine) and all(map(torch.equal, mine, right))


def check_edges(functions, dtype=torch.float32, device="cpu"):
    """Zero gradients, gradients along the point, steps past the other side of the sphere, points without a direction,
    NaN and infinities: each stays in its row, and the points are those of the reference in float64."""
    for kind, name in CASES:
        p, options = problem(kind, name, [(9, 6)], dtype, device), OPTIONS[kind][name]
        for tensor in (*p.steps, *(tensor for state in p.state for tensor in state)):
            tensor.zero_()
        point, gradient = p.points[0], p.gradients[0]
        gradient[0] = 0
        gradient[1] = 2 * point[1]
        gradient[2] *= 1e4
        point[3], gradient[3] = 0, 0
        point[4] = 0
        gradient[5, 2], gradient[6, 1], point[7, 0] = torch.nan, torch.inf, torch.nan
        wide = p.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        found = run(functions[kind], p, options, 0.5)
        wanted = run(getattr(reference_updates, f"sphere_{kind}_"), wide, options, 0.5)
        mine, theirs = found.points[0].double(), wanted.points[0].double()
        close = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
        # Where the gradient is radial, rounding alone has a direction, and Adam takes it for one.
        same = [0, 2, 3, 4, 5, 6, 7, 8] if kind == "adam" else list(range(9))
        torch.testing.assert_close(mine[same], theirs[same], equal_nan=True, **close)
        moved, lost = [0, 1, 2, 4, 8], [5, 6, 7]
        torch.testing.assert_close(mine[moved].norm(dim=1), torch.ones_like(mine[moved, 0]), **close)
        assert not mine[3].any() and mine[lost].isnan().all()
        for tensor in (tensor for state in found.state for tensor in state):
            assert tensor[[*moved, 3]].isfinite().all() and tensor[[5, 7]].isnan().all()


def check_long_points(functions, dtype, power, device="cpu"):
    """Points whose squares leave their range are the directions that they are."""
    for kind, name in (("sgd", "momentum"), ("adam", "usual")):
        p, options = problem(kind, name, [(4, 33)], dtype, device), OPTIONS[kind][name]
        far = p._replace(points=[points * 2.0**power for points in p.points])
        found, right = (run(functions[kind], start, options, 0.125) for start in (far, p))
        for mine, usual in zip((found.points, *found.state), (right.points, *right.state), strict=True):
            for a, b in zip(mine, usual, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=32 * torch.finfo(dtype).eps * b.abs().max().item())
        assert all(map(torch.equal, found.steps, right.steps))
