"""Training of both models: the same batches in the same order, each with the optimiser that it is usually given."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

import hyperkernels as hk

from .model import Normalised, PreNorm, Transformer
from .text import Text, windows

VALIDATION_WINDOWS = 128
MEASUREMENTS = 24  # of the validation loss, beside the one before the first step
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Plan:
    steps: int
    width: int
    layers: int
    heads: int
    context: int
    batch: int
    seed: int
    device: str


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, beside the plan. ``warm_up`` is the share of the steps in which the rate rises."""

    model: type[PreNorm] | type[Normalised]
    rate: float
    warm_up: float
    weight_decay: float


@dataclass
class Curve:
    """At ``step`` steps and after ``seconds`` of training alone, the loss on the validation text, nats a byte;
    ``train`` is that of every step's batch."""

    parameters: int
    step: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)


def rate_at(step: int, steps: int, warm_up: float) -> float:
    """Share of the highest learning rate: a straight rise, if any, then half a cosine down to zero."""
    rise = warm_up * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))


def make_optimizer(model: Transformer, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices alone; of nGPT it also brings them back to the sphere after every step."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=BETAS, fused=True)
    if isinstance(model, Normalised):
        hk.optim.renormalize(optimizer, model.unit_parameters())
    return optimizer


@torch.no_grad()
def validate(model: Transformer, text: Text, plan: Plan) -> float:
    """Mean loss over windows that stand evenly in the validation text."""
    starts = torch.linspace(0, len(text.validation) - plan.context - 1, VALIDATION_WINDOWS).long()
    tokens = windows(text.validation, starts, plan.context + 1).to(plan.device)
    chunks = tokens.split(plan.batch)
    return sum(model(chunk).item() * len(chunk) for chunk in chunks) / len(tokens)


def train(text: Text, plan: Plan, recipe: Recipe, name: str) -> tuple[Transformer, Curve]:
    torch.manual_seed(plan.seed)
    model = recipe.model(plan.width, plan.layers, plan.heads, plan.context).to(plan.device)
    optimizer = make_optimizer(model, recipe)
    draw = torch.Generator().manual_seed(plan.seed)
    curve = Curve(sum(p.numel() for p in model.parameters()))
    measured = {round(plan.steps * i / MEASUREMENTS) for i in range(MEASUREMENTS + 1)}
    seconds = 0.0
    with tqdm(range(plan.steps), desc=name, unit="step", mininterval=0.5) as bar:
        for step in range(plan.steps + 1):
            if step in measured:
                curve.step.append(step)
                curve.seconds.append(seconds)
                curve.validation.append(validate(model, text, plan))
                bar.set_postfix(validation=f"{curve.validation[-1]:.3f}")
            if step == plan.steps:
                break
            start = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_at(step, plan.steps, recipe.warm_up)
            starts = torch.randint(len(text.train) - plan.context, (plan.batch,), generator=draw)
            loss = model(windows(text.train, starts, plan.context + 1).to(plan.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            curve.train.append(loss.item())
            seconds += time.perf_counter() - start
            bar.update()
    return model, curve
