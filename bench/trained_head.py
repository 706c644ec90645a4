"""The backward of the head that ``make demo`` trained, on batches of its own training data, exact and under budgets."""

from __future__ import annotations

from pathlib import Path

import torch

from examples import train_recognizer
from examples.recognizer.training import Trainer, to_float

from . import heads
from .harness import OURS, Case, Comparison, Contender

BATCHES = 3
BUDGETS = {OURS: 0.0, **{f"  skip_budget=1e-{k}": 10.0**-k for k in (3, 2, 1)}}


def case(folder: Path) -> Case:
    """The head of the checkpoint in ``folder``, the demo's report folder."""
    demo = train_recognizer.parser().parse_args(["--out", str(folder)])
    settings = train_recognizer.make_settings(demo)
    data = train_recognizer.load_data(demo, settings.distortion)
    trainer = Trainer(data, settings)
    trainer.load(folder / "checkpoint.pt")
    weight = trainer.head.weight
    n, (c, d) = trainer.batch, weight.shape

    def build() -> Comparison:
        torch.manual_seed(1)
        batches = []
        for _ in range(BATCHES):
            rows = torch.randperm(len(trainer.labels))[: trainer.batch]
            with torch.no_grad():  # batch statistics, as in training
                x = trainer.embedder(settings.distortion(to_float(trainer.images[rows])))
            batches.append((x.detach().requires_grad_(), trainer.labels[rows]))

        def backward(name: str, budget: float) -> Contender:
            options = {"skip_budget": budget, "workspace": 0, "scale": settings.scale}
            head = heads.fused(trainer.head.margin, **options)
            losses = [head(x, weight, target) for x, target in batches]
            return Contender(name, lambda i: torch.autograd.grad(losses[i], (batches[i][0], weight), retain_graph=True))

        contenders = [backward(*budget) for budget in BUDGETS.items()]
        exact = [g.double() for g in contenders[0].run(0)]
        return Comparison(
            contenders,
            6.0 * n * c * d,
            "GFLOP/s",
            BATCHES,
            (n + c) * d * 4,
            lambda got: max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)),
        )

    return Case("ArcFace backward, the demo's trained head", f"N={n} C={c} D={d}", torch.float32, build, samples=41)
