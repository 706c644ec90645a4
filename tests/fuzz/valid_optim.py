"""Valid problems of the optimisers' ops."""

from __future__ import annotations

import torch

from tests.support import optim_cases, sphere_optim_cases

from .registry import Arguments, Context, valid


def _device_numbers(c: Context) -> Arguments:
    one = torch.ones(1)
    return {
        "lr_tensor": c.choice(None, None, 0.5 * one, torch.tensor(0.5)),
        "grad_scale": c.choice(None, None, 4 * one),
        "found_inf": c.choice(None, None, 0 * one, one),
        "lr": 0.125,
    }


def _rows(c: Context, kind: str, state: tuple[str, ...]) -> Arguments:
    options = c.choice(*optim_cases.OPTIONS[kind].values())
    total = c.size()
    count = c.choice(None, c.random.randint(0, total))
    p = optim_cases.problem(kind, total, c.dim(), count, c.dtype())
    states = dict(zip(state, p.state, strict=True))
    if kind == "sgd" and not options["momentum"]:
        states["momentum_buffer"] = None
    return {
        "weight": p.weight, **states, "step": p.step, "gradient": p.gradient, "rows": p.rows, **_device_numbers(c),
        **options,
    }  # fmt: skip


@valid("sgd_rows_")
def sgd_rows(c: Context) -> Arguments:
    return _rows(c, "sgd", ("momentum_buffer",))


@valid("adamw_rows_")
def adamw_rows(c: Context) -> Arguments:
    return _rows(c, "adamw", ("exp_avg", "exp_avg_sq"))


def _sphere(c: Context, kind: str, state: tuple[str, ...]) -> Arguments:
    name = c.choice(*sphere_optim_cases.OPTIONS[kind])
    shapes = [(c.size(), c.dim()) for _ in range(c.choice(1, 2, 3))]
    p = sphere_optim_cases.problem(kind, name, shapes, c.dtype())
    return {
        "points": p.points, **dict(zip(state, p.state, strict=True)), "steps": p.steps, "gradients": p.gradients,
        **_device_numbers(c), **sphere_optim_cases.OPTIONS[kind][name],
    }  # fmt: skip


@valid("sphere_sgd_")
def sphere_sgd(c: Context) -> Arguments:
    return _sphere(c, "sgd", ("momentum_buffers",))


@valid("sphere_adam_")
def sphere_adam(c: Context) -> Arguments:
    return _sphere(c, "adam", ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"))
