"""Driving points apart on the sphere: three objectives, one loop, and what a step costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

import hyperkernels as hk
from bench.memory import exhausted, limited, peak_bytes

# Of points [N, D] and a temperature, which only the soft one heeds.
Objective = Callable[[torch.Tensor, float], torch.Tensor]


def soft(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Every pair repels, the closer the more: the largest cosine, softened."""
    return hk.sphere.packing(x, temperature)


def nearest(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Every point is driven away from the one that is nearest to it."""
    largest = hk.pair_statistics(x, statistics=("extremes",)).max
    assert largest is not None
    return largest.mean()


def pair(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """HyperFace's own: only the closest pair of all is driven apart."""
    return hk.losses.nearest_pair_packing(x)


def _cosines(x: torch.Tensor) -> torch.Tensor:
    """All N x N of them, as plain PyTorch would have them; a point is no pair with itself."""
    unit = torch.nn.functional.normalize(x)
    return (unit @ unit.T).fill_diagonal_(-torch.inf)


def eager_soft(x: torch.Tensor, temperature: float) -> torch.Tensor:
    pairs = len(x) * (len(x) - 1)
    return temperature * ((_cosines(x) / temperature).flatten().logsumexp(0) - math.log(pairs))


def eager_nearest(x: torch.Tensor, temperature: float) -> torch.Tensor:
    return _cosines(x).max(1).values.mean()


def eager_pair(x: torch.Tensor, temperature: float) -> torch.Tensor:
    return _cosines(x).flatten().max(0).values - 1


OBJECTIVES: dict[str, Objective] = {"soft": soft, "nearest": nearest, "pair": pair}
EAGER: dict[str, Objective] = {"soft": eager_soft, "nearest": eager_nearest, "pair": eager_pair}


@dataclass(frozen=True)
class Plan:
    """``points`` in ``dimension`` dimensions, ``steps`` steps; rate and temperature fall as the steps go on."""

    points: int
    dimension: int
    steps: int
    rate: float
    first_temperature: float
    last_temperature: float
    seed: int
    device: str = "cpu"

    def rate_at(self, share: float) -> float:
        return self.rate * (1 + math.cos(math.pi * share)) / 2

    def temperature_at(self, share: float) -> float:
        return self.first_temperature * (self.last_temperature / self.first_temperature) ** share


@dataclass
class History:
    """What was seen after ``step`` steps, and the ``seconds`` of all steps together."""

    step: list[int] = field(default_factory=list)
    largest_cosine: list[float] = field(default_factory=list)
    mean_nearest_cosine: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Of one step: the memory beyond points and optimizer, and the time."""

    peak_bytes: int
    seconds: float


def random_points(plan: Plan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(plan.seed)
    return hk.unit_norm(torch.randn(plan.points, plan.dimension, generator=generator)).to(plan.device)


def nearest_cosines(x: torch.Tensor) -> torch.Tensor:
    """[N], the cosine of every point and the one nearest to it."""
    largest = hk.pair_statistics(x.detach(), statistics=("extremes",)).max
    assert largest is not None
    return largest


def optimizer_of(x: torch.Tensor, rate: float) -> torch.optim.Optimizer:
    # The gradient of a mean over all pairs is small: no epsilon may rival it.
    return hk.optim.SphereAdam([x], lr=rate, eps=1e-16)


def step(x: torch.Tensor, optimizer: torch.optim.Optimizer, objective: Objective, temperature: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    objective(x, temperature).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def pack(plan: Plan, name: str, looks: int = 50) -> tuple[torch.Tensor, History]:
    """The points after all steps from the random start, and what was seen on the way at about ``looks`` of them."""
    x = random_points(plan).requires_grad_()
    optimizer, history = optimizer_of(x, plan.rate), History()
    every = max(1, plan.steps // looks)
    with tqdm(total=plan.steps, desc=name, unit="step", mininterval=0.5) as bar:

        def look(done: int) -> None:
            cosines = nearest_cosines(x)
            history.step.append(done)
            history.largest_cosine.append(float(cosines.max()))
            history.mean_nearest_cosine.append(float(cosines.mean()))
            bar.set_postfix(largest_cosine=f"{history.largest_cosine[-1]:.4f}", refresh=False)

        look(0)
        start = time.perf_counter()
        for done in range(plan.steps):
            share = done / plan.steps
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(share)
            step(x, optimizer, OBJECTIVES[name], plan.temperature_at(share))
            if (done + 1) % every == 0 or done + 1 == plan.steps:
                history.seconds += time.perf_counter() - start
                look(done + 1)
                start = time.perf_counter()
            bar.update()
    return x.detach(), history


def cost(plan: Plan, objective: Objective) -> Cost | None:
    """What one step from the random start costs; None where memory does not suffice, or the system does not tell."""
    x = random_points(plan).requires_grad_()
    optimizer = optimizer_of(x, plan.rate)
    seconds = []

    def timed() -> None:
        start = time.perf_counter()
        step(x, optimizer, objective, plan.first_temperature)
        float(x.detach()[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - start)

    try:
        with limited(plan.device):
            timed()  # creates what lives for ever
            x.grad = None
            return Cost(peak_bytes(timed, plan.device), seconds[-1])
    except OSError:
        return None
    except (MemoryError, RuntimeError) as problem:
        if exhausted(problem):
            return None
        raise
