"""Geometry of the sphere against what a user writes, torch.compile of it and geoopt, beside sums and copies of the same
arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

import hyperkernels as hk

from . import peers
from .harness import OURS, Case, Comparison, Contender, Settings

SETS = 3
Function = Callable[..., torch.Tensor]


def eager_angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.acos((F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1).clamp(-1, 1))


def eager_slerp(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    x, y, t = F.normalize(x, dim=-1), F.normalize(y, dim=-1), t[:, None]
    theta = torch.acos((x * y).sum(-1, keepdim=True).clamp(-1, 1))
    return (torch.sin((1 - t) * theta) * x + torch.sin(t * theta) * y) / torch.sin(theta)


def eager_residual(h: torch.Tensor, block: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    h, block = F.normalize(h, dim=-1), F.normalize(block, dim=-1)
    return F.normalize(h + alpha * (block - h), dim=-1)


def geoopt_angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    import geoopt

    sphere = geoopt.Sphere()
    return sphere.dist(sphere.projx(x), sphere.projx(y))


def geoopt_slerp(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    import geoopt

    sphere = geoopt.Sphere()
    x, y = sphere.projx(x), sphere.projx(y)
    return sphere.expmap(x, t[:, None] * sphere.logmap(x, y))


# name: (ours, the textbook in eager PyTorch, geoopt)
OPS: dict[str, tuple[Function, Function, Function | None]] = {
    "slerp": (hk.sphere.slerp, eager_slerp, geoopt_slerp),
    "residual": (hk.sphere.residual, eager_residual, None),
    "angle": (hk.sphere.angle, eager_angle, geoopt_angle),
}


def cases(settings: Settings) -> Iterator[Case]:
    n = 1_000_000 if settings.cuda else 100_000
    if settings.quick:
        n = 4_000
    every = settings.cuda or settings.quick or settings.full
    dtypes = [torch.float32, torch.bfloat16] if settings.cuda or settings.full else [torch.float32]
    for dtype in dtypes:
        for name in OPS if every else ("slerp", "residual"):
            for op, build in ((f"{name} forward", forward), (f"{name} forward+backward", step)):
                if build is step and not every:
                    continue
                arguments = (name, n, 512, dtype, settings.device)
                yield Case(op, f"N={n} D=512", dtype, lambda b=build, a=arguments: b(*a))


def test_sphere(case: Case, compare: Callable[[], None]) -> None:
    compare()


def _inputs(name: str, n: int, d: int, dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    sets: list[tuple[torch.Tensor, ...]] = []
    for _ in range(SETS):
        rows = tuple(torch.randn(n, d, device=device).to(dtype) for _ in range(2))
        last = {"slerp": torch.rand(n, device=device), "residual": torch.rand(d, device=device)}.get(name)
        sets.append(rows if last is None else (*rows, last))
    return sets


def _contenders(name: str, wrap: Callable[[Function], Callable[[int], Any]], device: str) -> list[Contender]:
    ours, eager, geoopt = OPS[name]
    found = [Contender(OURS, wrap(ours)), Contender("eager PyTorch", wrap(eager))]
    found.append(Contender("torch.compile", wrap(torch.compile(eager))))
    if geoopt is not None and peers.present("geoopt"):
        # Distances are cut off at 1 - 1e-4 of the cosine, and logarithms follow them: it is not judged.
        found.append(Contender("geoopt Sphere", wrap(geoopt), judged=False))
    return found


def _far(right: torch.Tensor) -> Callable[[Any], float]:
    """The relative error, in Euclidean norm, of the result or of the first gradient."""

    def far(got: Any) -> float:
        first = got[0] if isinstance(got, tuple) else got
        return float((first.double() - right).norm() / right.norm())

    return far


def forward(name: str, n: int, d: int, dtype: torch.dtype, device: str) -> Comparison:
    sets = _inputs(name, n, d, dtype, device)
    contenders = _contenders(name, lambda f: lambda i: f(*sets[i]), device)
    size = n * d * dtype.itemsize
    truth = OPS[name][1](*(v.double() for v in sets[0]))
    if name == "angle":
        contenders.append(Contender("floor: two sums", lambda i: [v.sum() for v in sets[i][:2]], is_floor=True))
        return Comparison(contenders, 2.0 * size, "GB/s", SETS, 0, _far(truth))
    contenders.append(Contender("floor: x + y", lambda i: torch.add(sets[i][0], sets[i][1]), is_floor=True))
    return Comparison(contenders, 3.0 * size, "GB/s", SETS, size, _far(truth))


def step(name: str, n: int, d: int, dtype: torch.dtype, device: str) -> Comparison:
    """A result and the gradients of all inputs. The floor reads x, y and the gradient again and writes two of them."""
    sets = [tuple(v.requires_grad_() for v in inputs) for inputs in _inputs(name, n, d, dtype, device)]
    shape = (n,) if name == "angle" else (n, d)
    gradient = torch.randn(shape, device=device)

    def of(f: Function) -> Callable[[int], tuple[torch.Tensor, ...]]:
        def run(i: int) -> tuple[torch.Tensor, ...]:
            out = f(*sets[i])
            return torch.autograd.grad(out, sets[i], gradient.to(out.dtype))

        return run

    def floor(i: int) -> tuple[torch.Tensor, ...]:
        x, y = (v.detach() for v in sets[i][:2])
        if name == "angle":
            return x.sum(), y.sum(), x + y, y.clone()
        return x + y, x + gradient, y.clone()

    inputs = [v.detach().double().requires_grad_() for v in sets[0]]
    truth = torch.autograd.grad(OPS[name][1](*inputs), inputs, gradient.double())[0]
    contenders = [*_contenders(name, of, device), Contender("floor: sums and copies", floor, is_floor=True)]
    size = n * d * dtype.itemsize
    passes = 6.0 if name == "angle" else 8.0
    return Comparison(contenders, passes * size, "GB/s", SETS, 2 * size, _far(truth))
