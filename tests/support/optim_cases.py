"""The updates as double loops over single numbers, in float64, and what a kernel set must do against them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .accuracy import assert_as_accurate
from .launchers import reference_updates

SGD_OPTIONS = {
    "plain": {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False},
    "momentum": {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False},
    "decay": {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.05, "nesterov": False, "maximize": False},
    "dampening": {"momentum": 0.7, "dampening": 0.3, "weight_decay": 0.01, "nesterov": False, "maximize": True},
    "nesterov": {"momentum": 0.8, "dampening": 0.0, "weight_decay": 0.02, "nesterov": True, "maximize": False},
}
ADAMW_OPTIONS = {
    "usual": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "maximize": False},
    "fast": {"beta1": 0.5, "beta2": 0.7, "eps": 1e-3, "weight_decay": 0.0, "maximize": True},
    "no memory": {"beta1": 0.0, "beta2": 0.0, "eps": 1e-6, "weight_decay": 0.1, "maximize": False},
}


class Problem(NamedTuple):
    weight: torch.Tensor
    state: tuple[torch.Tensor, ...]
    step: torch.Tensor
    gradient: torch.Tensor
    rows: torch.Tensor | None


def problem(kind, total, dim, count=None, dtype=torch.float32, device="cpu"):
    """A weight whose rows have come to different steps, and a gradient of `count` of them, or of all."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    step = torch.randint(0, 4, (total,), dtype=torch.int32)
    state = [torch.randn(total, dim, dtype=wide) * (step != 0)[:, None] for _ in range(1 if kind == "sgd" else 2)]
    if kind == "adamw":
        state[1].abs_()
    rows = None if count is None else torch.randperm(total)[:count]
    gradient = torch.randn(total if count is None else count, dim, dtype=torch.float64).to(dtype)
    weight = torch.randn(total, dim, dtype=torch.float64).to(dtype)
    moved = [None if t is None else t.to(device) for t in (weight, *state, step, gradient, rows)]
    return Problem(moved[0], tuple(moved[1:-3]), *moved[-3:])


def sgd_by_hand(p, lr, momentum, dampening, weight_decay, nesterov, maximize, scale=1.0):
    weight, (buffer,), step = p.weight.double().clone(), [s.double().clone() for s in p.state], p.step.clone()
    for i, row in enumerate(range(len(weight)) if p.rows is None else p.rows.tolist()):
        for k in range(weight.shape[1]):
            g = p.gradient[i, k].double().item() / scale * (-1 if maximize else 1)
            g += weight_decay * weight[row, k].item()
            if momentum:
                b = g if step[row] == 0 else momentum * buffer[row, k].item() + (1 - dampening) * g
                buffer[row, k] = b
                g = g + momentum * b if nesterov else b
            weight[row, k] -= lr * g
        step[row] += 1
    return weight, (buffer,), step


def adamw_by_hand(p, lr, beta1, beta2, eps, weight_decay, maximize, scale=1.0):
    weight, (mean, square), step = p.weight.double().clone(), [s.double().clone() for s in p.state], p.step.clone()
    for i, row in enumerate(range(len(weight)) if p.rows is None else p.rows.tolist()):
        step[row] += 1
        t = step[row].item()
        for k in range(weight.shape[1]):
            g = p.gradient[i, k].double().item() / scale * (-1 if maximize else 1)
            mean[row, k] = m = beta1 * mean[row, k].item() + (1 - beta1) * g
            square[row, k] = v = beta2 * square[row, k].item() + (1 - beta2) * g * g
            root = math.sqrt(v) / math.sqrt(1 - beta2**t)
            weight[row, k] = weight[row, k].item() * (1 - lr * weight_decay) - lr / (1 - beta1**t) * m / (root + eps)
    return weight, (mean, square), step


BY_HAND = {"sgd": sgd_by_hand, "adamw": adamw_by_hand}
OPTIONS = {"sgd": SGD_OPTIONS, "adamw": ADAMW_OPTIONS}
CASES = [(kind, name) for kind, options in OPTIONS.items() for name in options]


def arguments(kind, p, options, lr, lr_tensor=None, grad_scale=None, found_inf=None):
    state = p.state
    if kind == "sgd" and not options["momentum"]:
        state = (None,)
    return (p.weight, *state, p.step, p.gradient, p.rows, lr_tensor, grad_scale, found_inf, lr, *options.values())


def copied(p):
    return p._replace(weight=p.weight.clone(), state=tuple(s.clone() for s in p.state), step=p.step.clone())


def run(function, kind, p, options, **named):
    """Weight, state and step after the update; `p` stays."""
    p = copied(p)
    function(*arguments(kind, p, options, **named))
    return p.weight, p.state, p.step


def check(functions, kind, p, options, lr=0.125, grad_scale=None, factor=2.0):
    """`functions` ("sgd", "adamw") write what the loop by hand writes, with an error of at most `factor` times that of
    the reference in the same dtype."""
    scale = None if grad_scale is None else torch.tensor([grad_scale], device=p.weight.device)
    named = {"lr": lr, "grad_scale": scale}
    weight, state, step = run(functions[kind], kind, p, options, **named)
    cpu = Problem(
        *(None if t is None else t.cpu() if isinstance(t, torch.Tensor) else tuple(s.cpu() for s in t) for t in p)
    )
    right = BY_HAND[kind](cpu, lr, *options.values(), scale=grad_scale or 1.0)
    peer = run(
        getattr(reference_updates, f"{kind}_rows_"),
        kind,
        cpu,
        options,
        lr=lr,
        grad_scale=None if scale is None else scale.cpu(),
    )
    assert torch.equal(step.cpu(), right[2])
    assert_as_accurate(weight.cpu(), peer[0], right[0], what="weight", factor=factor)
    for mine, theirs, truth in zip(state, peer[1], right[1], strict=True):
        assert_as_accurate(mine.cpu(), theirs, truth, what="state", factor=factor)
    if p.rows is not None:
        untouched = torch.ones(len(p.weight), dtype=torch.bool)
        untouched[cpu.rows] = False
        for after, before in zip((weight, *state), (p.weight, *p.state), strict=True):
            assert torch.equal(after[untouched.to(after.device)], before[untouched.to(after.device)])


def check_skipped(functions, kind, p, options):
    """Where the scaler found an infinity nothing changes."""
    one = torch.ones(1, device=p.weight.device)
    weight, state, step = run(functions[kind], kind, p, options, lr=0.5, grad_scale=one, found_inf=one)
    for after, before in zip((weight, *state, step), (p.weight, *p.state, p.step), strict=True):
        assert torch.equal(after, before)
    moved = run(functions[kind], kind, p, options, lr=0.5, grad_scale=one, found_inf=0 * one)
    assert torch.equal(moved[0], run(functions[kind], kind, p, options, lr=0.5)[0])
    assert not torch.equal(moved[0], p.weight)


def check_last_step(functions, kind, p, options):
    """A count of updates stays at its maximum, where the step is that of the update before; p is of all rows."""
    last = torch.full_like(p.step, torch.iinfo(p.step.dtype).max)
    before = run(functions[kind], kind, p._replace(step=last - 1), options, lr=0.125)
    after = run(functions[kind], kind, p._replace(step=last), options, lr=0.125)
    assert torch.equal(before[2], last) and torch.equal(after[2], last)
    for mine, right in zip((after[0], *after[1]), (before[0], *before[1]), strict=True):
        assert mine.isfinite().all() and torch.equal(mine, right)


def check_lr_tensor(functions, kind, p, options):
    rate = torch.tensor([0.25], dtype=torch.float64, device=p.weight.device)
    given = run(functions[kind], kind, p, options, lr=0.0, lr_tensor=rate)
    assert torch.equal(given[0], run(functions[kind], kind, p, options, lr=0.25)[0])
