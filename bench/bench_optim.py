"""Optimisers over sampled rows, and over all, against torch's and against what a user of sampled classes writes;
optimisers on the sphere against geoopt's and against what a user without it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import hyperkernels as hk

from . import peers
from .harness import OURS, Case, Comparison, Contender, Settings

SETS = 3
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"lr": 1e-3, "weight_decay": 0.1}
SPHERE_SGD = {"lr": 0.1, "momentum": 0.9}
SPHERE_ADAM = {"lr": 1e-3}


def cases(settings: Settings) -> Iterator[Case]:
    c, d = (1_000_000, 512) if settings.cuda else (100_000, 512)
    if settings.quick:
        c = 10_000
    for name, options, moments in (("SGD", SGD, 1), ("AdamW", ADAMW, 2)):
        for share in (0.1, 1.0):
            rows = round(share * c)
            what = "of sampled rows" if share < 1 else "of all rows"

            def build(
                name: str = name, options: dict[str, float] = options, moments: int = moments, rows: int = rows
            ) -> Comparison:
                return step(name, options, moments, rows, c, d, settings.device)

            yield Case(f"{name} step {what}", f"R={rows} C={c} D={d}", torch.float32, build)
    spheres = [("SphereAdam", SPHERE_ADAM)]
    spheres += [("SphereSGD", SPHERE_SGD)] if settings.cuda or settings.quick or settings.full else []
    for name, options in spheres:

        def build_sphere(name: str = name, options: dict[str, float] = options) -> Comparison:
            return sphere_step(name, options, c, d, settings.device)

        yield Case(f"{name} step", f"R={c} D={d}", torch.float32, build_sphere)


def test_optim(case: Case, compare: Callable[[], None]) -> None:
    compare()


def step(name: str, options: dict[str, float], moments: int, rows: int, c: int, d: int, device: str) -> Comparison:
    """One step, its gradient given. The floor copies as many bytes as a step must read and write."""
    torch.manual_seed(0)
    start = torch.randn(c, d, device=device)
    samples = [torch.randperm(c, device=device)[:rows].sort().values for _ in range(SETS)]
    values = torch.randn(rows, d, device=device)
    sampled = rows < c

    def contender(label: str, optimizer: Callable[..., Any], gradient: Callable[[int], torch.Tensor]) -> Contender:
        weight = torch.nn.Parameter(start.clone())
        own = optimizer([weight], **options)
        gradients = [gradient(i) for i in range(SETS)]

        def run(i: int) -> None:
            weight.grad = gradients[i]
            own.step()

        return Contender(label, run)

    def sparse(i: int) -> torch.Tensor:
        return torch.sparse_coo_tensor(samples[i][None], values, (c, d), is_coalesced=True, check_invariants=False)

    torch_optimizer = getattr(torch.optim, name)

    def fused(parameters: list[torch.nn.Parameter], **given: float) -> torch.optim.Optimizer:
        return torch_optimizer(parameters, fused=True, **given)

    contenders = [contender(OURS, getattr(hk.optim, name), sparse if sampled else lambda i: values)]
    if sampled:
        contenders.append(_gathered(start, samples, values, torch_optimizer, options))
        scattered = torch.zeros_like(start).index_copy_(0, samples[0], values)
        contenders.append(contender("torch.optim, fused, of all rows", fused, lambda i: scattered))
    else:
        contenders.append(contender("torch.optim, fused", fused, lambda i: values))
        contenders.append(contender("torch.optim, foreach", torch_optimizer, lambda i: values))
    # Read: weight, moments, gradient. Written: weight and moments.
    passes = 3 + 2 * moments
    contenders.append(_floor(passes, rows, d, device))
    return Comparison(contenders, float(passes * rows * d * 4), "GB/s", SETS)


def _floor(passes: int, rows: int, d: int, device: str) -> Contender:
    """Reads and writes as many arrays as there are passes, an odd number."""
    arrays = [torch.randn(rows, d, device=device) for _ in range(passes)]
    half = passes // 2

    def copy(i: int) -> None:
        for to, source in zip(arrays[:half], arrays[half:], strict=False):
            to.copy_(source)
        arrays[-1].sum()

    return Contender("floor: copies of the same size", copy, is_floor=True)


def sphere_step(name: str, options: dict[str, float], rows: int, d: int, device: str) -> Comparison:
    """One step of points on the sphere, its gradient given. Read: points, gradient, momentum. Written: points and
    momentum."""
    torch.manual_seed(0)
    start = torch.nn.functional.normalize(torch.randn(rows, d, device=device), dim=1)
    gradients = [torch.randn(rows, d, device=device) for _ in range(SETS)]

    def contender(label: str, points: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> Contender:
        def run(i: int) -> None:
            points.grad = gradients[i]
            optimizer.step()

        return Contender(label, run)

    points = torch.nn.Parameter(start.clone())
    contenders = [contender(OURS, points, getattr(hk.optim, name)([points], **options))]
    eager = _eager_adam if name == "SphereAdam" else _eager_sgd
    contenders.append(Contender("PyTorch, eager", eager(start.clone(), gradients, **options)))
    if peers.present("geoopt"):
        import geoopt

        points = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Sphere())
        theirs = geoopt.optim.RiemannianAdam if name == "SphereAdam" else geoopt.optim.RiemannianSGD
        contenders.append(contender("geoopt", points, theirs([points], **options)))
    contenders.append(_floor(5, rows, d, device))
    return Comparison(contenders, float(5 * rows * d * 4), "GB/s", SETS)


def _tangent(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v - (x * v).sum(1, keepdim=True) * x


def _eager_sgd(x: torch.Tensor, gradients: list[torch.Tensor], lr: float, momentum: float) -> Callable[[int], None]:
    buffer = torch.zeros_like(x)

    def run(i: int) -> None:
        buffer.mul_(momentum).add_(_tangent(x, gradients[i]))
        x.copy_(torch.nn.functional.normalize(x - lr * buffer, dim=1))
        buffer.copy_(_tangent(x, buffer))

    return run


def _eager_adam(x: torch.Tensor, gradients: list[torch.Tensor], lr: float) -> Callable[[int], None]:
    mean, square, step = torch.zeros_like(x), torch.zeros(len(x), 1, device=x.device), 0

    def run(i: int) -> None:
        nonlocal step
        step += 1
        slope = _tangent(x, gradients[i])
        mean.mul_(0.9).add_(slope, alpha=0.1)
        square.mul_(0.999).add_(slope.square().sum(1, keepdim=True), alpha=0.001)
        size = lr / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        x.copy_(torch.nn.functional.normalize(x - size * mean, dim=1))
        mean.copy_(_tangent(x, mean))

    return run


def _gathered(
    start: torch.Tensor, samples: list[torch.Tensor], values: torch.Tensor, optimizer: Any, options: dict[str, float]
) -> Contender:
    """The sampled rows and their state gathered, torch's fused optimiser on them, all scattered back."""
    weight, states = start.clone(), [torch.zeros_like(start) for _ in range(2 if optimizer is torch.optim.AdamW else 1)]
    names = ("exp_avg", "exp_avg_sq") if optimizer is torch.optim.AdamW else ("momentum_buffer",)

    def run(i: int) -> None:
        rows = samples[i]
        part = torch.nn.Parameter(weight[rows])
        part.grad = values
        own = optimizer([part], fused=True, **options)
        own.state[part] = {name: state[rows] for name, state in zip(names, states, strict=False)}
        if optimizer is torch.optim.AdamW:
            own.state[part]["step"] = torch.ones((), device=weight.device)
        own.step()
        weight.index_copy_(0, rows, part.detach())
        for name, state in zip(names, states, strict=False):
            state.index_copy_(0, rows, own.state[part][name])

    return Contender("gather, torch.optim, scatter", run)
