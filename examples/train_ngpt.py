"""Train a transformer whose every vector is on the unit sphere (nGPT, arXiv 2410.01131), and the usual one beside it.

Both model the bytes of Python's own standard library (no network), with the same matrices and the same batches in the
same order; a tenth of the files is held out. From the root of the repository::

    python -m examples.train_ngpt
    python -m examples.train_ngpt --steps 100 --width 64 --layers 2     # a quick look
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import tabulate
import torch

if not __package__:
    # Run as a script: import from the root of the repository, as `python -m examples.train_ngpt` does.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hyperkernels as hk
from examples.ngpt import plots, text
from examples.ngpt.model import Normalised, PreNorm
from examples.ngpt.training import Curve, Plan, Recipe, train
from examples.options import at_least, positive
from examples.recognizer.data import DataError
from examples.recognizer.report import cpu_name, plain


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--steps", type=at_least(1), default=300, help="training steps of each model")
    p.add_argument("--width", type=at_least(2), default=96, help="size of the embedding")
    p.add_argument("--layers", type=at_least(1), default=4, help="layers, of attention and gated MLP each")
    p.add_argument("--heads", type=at_least(1), default=3, help="heads of the attention")
    p.add_argument("--context", type=at_least(2), default=128, help="bytes of a sequence")
    p.add_argument("--batch", type=at_least(1), default=16, help="sequences of a batch")
    p.add_argument("--gpt-rate", type=positive, default=4e-3, help="highest learning rate of the usual transformer")
    p.add_argument("--ngpt-rate", type=positive, default=2e-2, help="highest learning rate of the normalised one")
    p.add_argument("--seed", type=int, default=0, help="of weights and batches")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    p.add_argument("--threads", type=at_least(1), default=argparse.SUPPRESS, help="threads of torch")
    p.add_argument("--output", type=Path, default=Path("report/ngpt"), help="where the report goes")
    return p


def make_plan(args: argparse.Namespace) -> Plan:
    if args.width % (2 * args.heads):
        raise DataError(f"--width must be a multiple of twice --heads ({2 * args.heads}); got {args.width}")
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without the device
        reason = str(error).partition("\n")[0]
        raise DataError(f"--device must be one that torch can use; got {args.device}: {reason}") from error
    names = Plan.__dataclass_fields__
    return Plan(**{name: value for name, value in vars(args).items() if name in names})


def recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    return {
        "GPT": Recipe(PreNorm, args.gpt_rate, warm_up=0.05, weight_decay=0.1),
        "nGPT": Recipe(Normalised, args.ngpt_rate, warm_up=0.0, weight_decay=0.0),
    }


def crossing(x: Sequence[float], losses: list[float], goal: float) -> float | None:
    """The x at which the losses first come down to ``goal``, by a straight line between measurements."""
    for (x0, x1), (before, after) in zip(pairwise(x), pairwise(losses), strict=True):
        if after <= goal < before:
            return x0 + (x1 - x0) * (before - goal) / (before - after)
    return None


def table(curves: dict[str, Curve], rates: dict[str, float]) -> str:
    """The numbers for the terminal; the loss that both reach is the end of the one that ends higher."""
    goal = max(curve.validation[-1] for curve in curves.values())
    rows = []
    for name, curve in curves.items():
        reached = (crossing(x, curve.validation, goal) for x in (curve.step, curve.seconds))
        rows.append(
            [
                name,
                f"{rates[name]:g}",
                f"{curve.parameters:,}",
                f"{1000 * curve.seconds[-1] / curve.step[-1]:.0f}",
                f"{curve.validation[-1]:.3f}",
                f"{curve.validation[-1] / math.log(2):.3f}",
                *("-" if x is None else f"{x:.0f}" for x in reached),
            ]
        )
    head = ["", "rate", "parameters", "ms a step", "nats a byte", "bits a byte"]
    head += [f"steps to {goal:.3f}", f"seconds to {goal:.3f}"]
    return tabulate.tabulate(rows, headers=head, disable_numparse=True, colalign=("left", *["right"] * 7))


def run(args: argparse.Namespace) -> dict[str, Any]:
    if "threads" in args:
        torch.set_num_threads(args.threads)
    plan = make_plan(args)
    data = text.load()
    if min(len(data.train), len(data.validation)) <= plan.context:
        raise DataError(f"--context must be shorter than the text ({len(data.validation)} bytes); got {plan.context}")
    print(f"{data.files:,} files of the standard library, {len(data.train):,} bytes to train on", end=", ")
    print(f"{len(data.validation):,} to validate on")
    chosen = recipes(args)
    curves = {name: train(data, plan, recipe, name)[1] for name, recipe in chosen.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    plots.curves(curves, args.output / "ngpt.png")
    print(f"\n{table(curves, {name: recipe.rate for name, recipe in chosen.items()})}\n")
    return {
        "plan": asdict(plan),
        "text": {"files": data.files, "train_bytes": len(data.train), "validation_bytes": len(data.validation)},
        "recipes": {name: {**vars(recipe), "model": recipe.model.__name__} for name, recipe in chosen.items()},
        "curves": {name: asdict(curve) for name, curve in curves.items()},
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "hyperkernels": hk.__version__},
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    args = parser().parse_args(argv)
    start = time.perf_counter()
    try:
        numbers = run(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = args.output / "ngpt.json"
    path.write_text(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n")
    print(f"report: {path}, {args.output / 'ngpt.png'}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
