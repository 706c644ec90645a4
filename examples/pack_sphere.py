"""Pack points on the sphere: ten thousand of them, as far from each other as gradient descent gets them.

HyperFace (arXiv 2411.08470) packs points so, to draw faces of people who look least alike. Each step needs the cosines
of all pairs; the kernels reduce them without storing them. From the root of the repository::

    python -m examples.pack_sphere
    python -m examples.pack_sphere --objective soft nearest pair       # the objectives beside each other
    python -m examples.pack_sphere --points 2000 --dimension 64        # a quick look
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tabulate
import torch

if not __package__:
    # Run as a script: import from the root of the repository, as `python -m examples.pack_sphere` does.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hyperkernels as hk
from examples.options import at_least, positive
from examples.packing import plots
from examples.packing.bound import least_largest_cosine
from examples.packing.training import EAGER, OBJECTIVES, Cost, History, Plan, cost, nearest_cosines, pack, random_points
from examples.recognizer.report import cpu_name, plain


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--points", type=at_least(2), default=10_000, help="points to pack")
    p.add_argument("--dimension", type=at_least(3), default=128, help="of the space around the sphere")
    p.add_argument(
        "--objective", choices=list(OBJECTIVES), nargs="+", default=["soft"],
        help="what is driven apart: all pairs, the closer the more (soft), every point and its nearest (nearest), the "
        "closest pair of all, as in the paper (pair); several are run one after the other",
    )  # fmt: skip
    p.add_argument("--steps", type=at_least(1), default=300, help="steps of each objective")
    p.add_argument("--rate", type=positive, default=0.15, help="how far a point moves in the first steps, in radians")
    p.add_argument(
        "--temperature", type=positive, nargs=2, default=[0.05, 0.002], metavar=("FIRST", "LAST"),
        help="of the soft objective, in the first step and in the last",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the random start")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the points live")
    p.add_argument("--threads", type=at_least(1), help="threads of torch")
    p.add_argument("--output", type=Path, default=Path("report/packing"), help="where the report goes")
    return p


def _degrees(cosine: float) -> str:
    return f"{torch.tensor(cosine, dtype=torch.float64).clamp(-1, 1).acos().rad2deg():.2f}"


def packing_table(histories: dict[str, History], bound: float) -> str:
    start = next(iter(histories.values()))
    rows = [["random points", start.largest_cosine[0], start.mean_nearest_cosine[0], ""]]
    for name, history in histories.items():
        rows.append([name, history.largest_cosine[-1], history.mean_nearest_cosine[-1], f"{history.seconds:.0f}"])
    body = [[name, f"{most:.4f}", _degrees(most), f"{mean:.4f}", seconds] for name, most, mean, seconds in rows]
    body.append(["Levenshtein's bound", f"{bound:.4f}", _degrees(bound), "", ""])
    head = ["", "largest cosine", "smallest angle", "mean to nearest", "seconds"]
    return tabulate.tabulate(body, headers=head, disable_numparse=True, colalign=("left", *["right"] * 4))


def cost_table(costs: dict[str, Cost | None], matrix_bytes: int) -> str:
    rows = [
        [name, "not measured", ""] if c is None else [name, f"{c.peak_bytes / 1e6:,.1f}", f"{1e3 * c.seconds:,.0f}"]
        for name, c in costs.items()
    ]
    rows.append(["the matrix of cosines alone", f"{matrix_bytes / 1e6:,.1f}", ""])
    head = ["one step", "peak memory, MB", "time, ms"]
    return tabulate.tabulate(rows, headers=head, disable_numparse=True, colalign=("left", "right", "right"))


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    plan = Plan(args.points, args.dimension, args.steps, args.rate, *args.temperature, args.seed, args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{plan.points:,} points in {plan.dimension} dimensions, {plan.steps} steps")
    bound = least_largest_cosine(plan.points, plan.dimension)
    histories, points = {}, {}
    for name in dict.fromkeys(args.objective):
        points[name], histories[name] = pack(plan, name)
    torch.save({name: x.cpu() for name, x in points.items()}, args.output / "points.pt")
    cosines = {name: nearest_cosines(x) for name, x in {"random": random_points(plan), **points}.items()}
    # The memory is that of the first objective; they differ little.
    name = next(iter(histories))
    costs = {f"{name},\nkernels": cost(plan, OBJECTIVES[name]), f"{name},\nplain PyTorch": cost(plan, EAGER[name])}
    matrix_bytes = 4 * plan.points**2
    title = f"{plan.points:,} points on the sphere in {plan.dimension} dimensions"
    plots.packing(histories, cosines, bound, costs, matrix_bytes, title, args.output / "packing.png")
    flat = {name.replace("\n", " "): c for name, c in costs.items()}
    print(f"\n{packing_table(histories, bound)}\n\n{cost_table(flat, matrix_bytes)}\n")
    return {
        "plan": asdict(plan),
        "bound": bound,
        "packings": {name: asdict(history) for name, history in histories.items()},
        "step": {name: None if c is None else asdict(c) for name, c in flat.items()},
        "matrix_bytes": matrix_bytes,
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "hyperkernels": hk.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if args.temperature[0] < args.temperature[1]:
        p.error(f"argument --temperature: must not rise; got {args.temperature[0]:g} {args.temperature[1]:g}")
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error("argument --device: no CUDA device was found")
    start = time.perf_counter()
    numbers = run(args)
    path = args.output / "packing.json"
    path.write_text(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n")
    print(f"report: {path}, {args.output / 'packing.png'}, {args.output / 'points.pt'}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
