"""``python -m bench.trained_head DIR``: the backward of the head that ``make demo`` trained (its checkpoint is in DIR),
on batches of its own training data, exact and under skip budgets."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import hyperkernels as hk
from examples import train_recognizer
from examples.recognizer.training import Trainer, to_float

from .harness import Contender, environment, measure, table, write_json

OURS = "exact"
BATCHES = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.trained_head", description=__doc__)
    parser.add_argument("folder", type=Path, help="the demo's report folder")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    demo = train_recognizer.parser().parse_args(["--out", str(arguments.folder)])
    settings = train_recognizer.make_settings(demo)
    data = train_recognizer.load_data(demo, settings.distortion)
    trainer = Trainer(data, settings)
    trainer.load(arguments.folder / "checkpoint.pt")
    torch.manual_seed(1)
    batches = []
    for _ in range(BATCHES):
        rows = torch.randperm(len(trainer.labels))[: trainer.batch]
        with torch.no_grad():  # batch statistics, as in training
            x = trainer.embedder(settings.distortion(to_float(trainer.images[rows])))
        batches.append((x.detach().requires_grad_(), trainer.labels[rows]))
    weight = trainer.head.weight

    def contender(name: str, budget: float) -> Contender:
        losses, leaves = [], []
        for x, target in batches:
            report = torch.zeros(2, dtype=torch.float64)
            options = {"margin": trainer.head.margin, "scale": settings.scale, "workspace": 0}
            loss = hk.margin_softmax_loss(x, weight, target, skip_budget=budget, skip_report=report, **options)
            torch.autograd.grad(loss, (x, weight), retain_graph=True)
            losses.append(loss)
            leaves.append((x, weight))
            if budget:
                print(f"{name}: loss {loss.item():.3f}, dropped {report[0]:.1e}, tiles skipped {report[1]:.1%}")
        return Contender(name, lambda i: torch.autograd.grad(losses[i], leaves[i], retain_graph=True))

    contenders = [
        contender(OURS, 0.0),
        contender("  skip_budget=1e-3", 1e-3),
        contender("  skip_budget=1e-2", 1e-2),
        contender("  skip_budget=1e-1", 1e-1),
    ]
    n, c, d = len(batches[0][1]), *weight.shape
    rows_found = measure(
        contenders,
        op="margin_softmax ArcFace backward, the demo's trained head",
        shape=f"N={n} C={c} D={d}",
        dtype="float32",
        work=6.0 * n * c * d,
        unit="GFLOP/s",
        samples=41,
        input_sets=BATCHES,
    )
    print(", ".join(f"{key} {value}" for key, value in environment("cpu").items()), end="\n\n")
    print(table(rows_found, OURS))
    if arguments.json:
        write_json(arguments.json, rows_found, "cpu", f"python -m bench.trained_head {arguments.folder}")


if __name__ == "__main__":
    main()
