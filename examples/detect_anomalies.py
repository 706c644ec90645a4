"""Detect anomalies by how far they lie from what is normal on a compressed sphere.

DOHSC and DO2HSC (arXiv 2302.06430) on the digits of scikit-learn: each class in turn is the normal one, half of it is
learned from, and the other half must be told from all other classes. From the root of the repository::

    python -m examples.detect_anomalies
    python -m examples.detect_anomalies --classes 3 8 --seeds 1        # a quick look
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tabulate
import torch
from tqdm import tqdm

if not __package__:
    # Run as a script: import from the root of the repository, as `python -m examples.detect_anomalies` does.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hyperkernels as hk
from examples.anomalies import plots
from examples.anomalies.data import Split, auc, digits, split
from examples.anomalies.plots import Distances
from examples.anomalies.training import Detector, Plan, start, train_ball, train_shell
from examples.options import at_least, below_half, positive
from examples.recognizer.report import cpu_name, plain

BALL, SHELL, UNTRAINED = "DOHSC", "DO2HSC", "projection, untrained"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--classes", type=int, choices=range(10), nargs="+", default=list(range(10)), metavar="DIGIT",
                   help="the digits that are normal, in turn")  # fmt: skip
    p.add_argument("--shown", type=int, choices=range(10), metavar="DIGIT",
                   help="the one whose distances are drawn; default: the last of --classes")  # fmt: skip
    p.add_argument("--epochs", type=at_least(1), default=100, help="for the ball, and as many more for the shell")
    p.add_argument("--hidden", type=at_least(1), default=128, help="units of the encoder's hidden layer")
    p.add_argument("--latent", type=at_least(1), default=32, help="dimensions that rows are projected to")
    p.add_argument("--rate", type=positive, default=1e-3, help="learning rate")
    p.add_argument("--nu", type=below_half, default=0.03, help="share of normal rows that may lie outside")
    p.add_argument("--seeds", type=at_least(1), default=5, help="runs, with a split and an encoder each")
    p.add_argument("--seed", type=int, default=0, help="of the first run")
    p.add_argument("--threads", type=at_least(1), default=1, help="threads of torch; matrices this small want one")
    p.add_argument("--output", type=Path, default=Path("report/anomalies"), help="where the report goes")
    return p


def one_class_svm(found: Split, nu: float) -> float:
    from sklearn.svm import OneClassSVM

    model = OneClassSVM(nu=nu, gamma="scale").fit(found.train.numpy())
    normal, anomalous = (torch.from_numpy(-model.score_samples(v.numpy())) for v in (found.normal, found.anomalous))
    return auc(normal, anomalous)


def distance_to_mean(found: Split) -> float:
    mean = found.train.mean(0)
    normal, anomalous = (torch.linalg.vector_norm(v - mean, dim=1) for v in (found.normal, found.anomalous))
    return auc(normal, anomalous)


def distances(detector: Detector, found: Split, inner: float) -> Distances:
    return Distances(*(detector.distances(v) for v in found), inner, detector.outer)


def judge(found: Split, plan: Plan, seed: int) -> tuple[dict[str, float], dict[str, Distances]]:
    """AUC of every method on one split, and where its rows lie."""
    aucs = {"distance to mean": distance_to_mean(found), "OneClassSVM": one_class_svm(found, plan.nu)}
    detector = start(found.train, plan, seed)
    aucs[UNTRAINED] = auc(detector.ball_scores(found.normal), detector.ball_scores(found.anomalous))
    train_ball(detector, found.train, plan)
    aucs[BALL] = auc(detector.ball_scores(found.normal), detector.ball_scores(found.anomalous))
    lie = {BALL: distances(detector, found, 0.0)}
    train_shell(detector, found.train, plan)
    aucs[SHELL] = auc(detector.shell_scores(found.normal), detector.shell_scores(found.anomalous))
    lie[SHELL] = distances(detector, found, detector.inner)
    return aucs, lie


def table(aucs: dict[str, np.ndarray], classes: list[int]) -> str:
    rows = [[str(c), *(f"{v[:, i].mean():.3f}" for v in aucs.values())] for i, c in enumerate(classes)]
    rows.append(["mean", *(f"{v.mean():.3f}" for v in aucs.values())])
    rows.append(["+- over the runs", *(f"{v.mean(1).std():.3f}" for v in aucs.values())])
    head = ["normal", *aucs]
    return tabulate.tabulate(rows, headers=head, disable_numparse=True, colalign=("left", *["right"] * len(aucs)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    x, labels = digits()
    plan = Plan(args.hidden, args.latent, args.epochs, args.rate, args.nu)
    classes = list(dict.fromkeys(args.classes))
    shown = classes[-1] if args.shown is None else args.shown
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{len(x):,} digits, {len(classes)} normal classes in turn, {args.seeds} runs")
    found: list[list[dict[str, float]]] = []
    lie: dict[str, Distances] = {}
    with tqdm(total=args.seeds * len(classes), unit="class", mininterval=0.5) as bar:
        for seed in range(args.seed, args.seed + args.seeds):
            found.append([])
            for c in classes:
                aucs_here, lie_here = judge(split(x, labels, c, seed), plan, seed)
                found[-1].append(aucs_here)
                lie = lie_here if c == shown and not lie else lie
                bar.update()
    aucs = {name: np.array([[f[name] for f in row] for row in found]) for name in found[0][0]}
    plots.anomalies(aucs, classes, shown, lie, args.output / "anomalies.png")
    print(f"\nAUC\n{table(aucs, classes)}\n")
    return {
        "plan": asdict(plan) | {"classes": classes, "seeds": args.seeds, "seed": args.seed},
        "auc": {name: values.tolist() for name, values in aucs.items()},
        "mean": {name: float(values.mean()) for name, values in aucs.items()},
        "std_over_runs": {name: float(values.mean(1).std()) for name, values in aucs.items()},
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "hyperkernels": hk.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if args.shown is not None and args.shown not in args.classes:
        p.error(f"argument --shown: must be one of --classes; got {args.shown}")
    start_time = time.perf_counter()
    try:
        numbers = run(args)
    except ImportError as error:
        print(f"error: {error}; the digits need scikit-learn", file=sys.stderr)
        return 1
    path = args.output / "anomalies.json"
    numbers["seconds"] = time.perf_counter() - start_time
    path.write_text(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n")
    print(f"report: {path}, {args.output / 'anomalies.png'}")
    print(f"{numbers['seconds']:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
