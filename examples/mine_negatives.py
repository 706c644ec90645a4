"""Mine hard negatives, and see what they are worth: an embedder trained on mined pairs against one on random pairs.

Two embedders start alike and see the same images of Han characters: one learns from the multi-similarity loss with its
mining fused in, the other from the same loss over random pairs. Both are judged on characters and a font that they have
never seen. Then the hardest negatives of the better one are mined and drawn. From the root of the repository::

    python -m examples.mine_negatives
    python -m examples.mine_negatives --characters 1000 --steps 200     # a quick look
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
from tqdm import tqdm

if not __package__:
    # Run as a script: import from the root of the repository, as `python -m examples.mine_negatives` does.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hyperkernels as hk
from examples.negatives import plots
from examples.negatives.training import Loss, Plan, mined_pairs, random_pairs, train
from examples.recognizer import glyphs
from examples.recognizer.data import DataError, Dataset
from examples.recognizer.distort import Distortion
from examples.recognizer.evaluate import Evaluation, embed, evaluate
from examples.recognizer.model import Embedder
from examples.recognizer.report import plain

LOSSES: dict[str, Loss] = {"mined pairs": mined_pairs, "random pairs": random_pairs}
SHOWN, NEGATIVES = 10, 7  # queries and negatives in the picture


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--characters", type=int, default=2000, help="characters to render, a class each")
    p.add_argument("--steps", type=int, default=300, help="training steps of each embedder")
    p.add_argument("--classes", type=int, default=64, help="classes of a batch")
    p.add_argument("--images", type=int, default=4, help="images of a class in a batch")
    p.add_argument("--embedding", type=int, default=128, help="size of the embedding")
    p.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    p.add_argument("--seed", type=int, default=0, help="of weights, batches and distortions")
    p.add_argument("--threads", type=int, help="threads of torch")
    p.add_argument("--cache", type=Path, default=Path(".cache"), help="where rendered glyphs are kept")
    p.add_argument("--out", type=Path, default=Path("report/negatives"), help="where the report goes")
    return p


def load_data(args: argparse.Namespace) -> Dataset:
    with tqdm(desc="rendering", unit="character", delay=1.0) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return glyphs.load(cache=args.cache, characters=args.characters, distortion=Distortion(), progress=progress)


@torch.no_grad()
def mine(embedder: Embedder, data: Dataset, path: Path) -> dict[str, Any]:
    """Hard negatives of every probe among the enrolled images, a picture of the hardest, and the numbers behind it."""
    probes, gallery = embed(embedder, data.probes), embed(embedder, data.gallery)
    labels = torch.from_numpy(data.probe_labels)
    start = time.perf_counter()
    found = hk.mining.mine_hard_negatives(
        probes, gallery, labels=labels, ref_labels=torch.arange(data.num_classes), num_negatives=NEGATIVES
    )
    seconds = time.perf_counter() - start
    own = (probes * gallery[labels]).sum(1)
    # Those with the most similar negative; every second, since two characters that look alike are each other's.
    hardest = torch.argsort(found.scores[:, 0], descending=True)[: 2 * SHOWN : 2]
    plots.mined_negatives(
        data,
        hardest.numpy(),
        found.indices[hardest].numpy(),
        found.scores[hardest].numpy(),
        own[hardest].numpy(),
        path,
    )
    return {
        "queries": len(probes),
        "documents": len(gallery),
        "seconds": seconds,
        "mean_hardest_cosine": float(found.scores[:, 0].mean()),
        "mean_own_cosine": float(own.mean()),
        "nearest_is_another_class": float((found.scores[:, 0] > own).double().mean()),
    }


def table(evaluations: dict[str, Evaluation], rates: dict[str, float]) -> str:
    rows = []
    for name, evaluation in evaluations.items():
        v = next(iter(evaluation.verification.values()))
        tars = [f"{100 * tar:.1f} %" if tar is not None else "" for tar in v.tar_at_far.values()]
        rank1 = "" if evaluation.rank1_template is None else f"{100 * evaluation.rank1_template:.1f} %"
        speed = f"{rates[name]:.0f}" if name in rates else ""
        rows.append([name, f"{100 * v.accuracy:.1f} %", f"{100 * v.eer:.1f} %", *tars, rank1, speed])
    head = ["", "accuracy", "EER", "TAR at 1e-2", "TAR at 1e-3", "rank-1", "images/s"]
    return tabulate.tabulate(rows, headers=head, disable_numparse=True, colalign=("left", *["right"] * 6))


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    data = load_data(args)
    plan = Plan(args.steps, args.classes, args.images, args.embedding, args.rate, args.seed)
    if not 1 < plan.classes <= data.num_classes:
        raise DataError(f"--classes must lie between 2 and {data.num_classes}; got {plan.classes}")
    print(f"{len(data.train):,} images of {data.num_classes:,} classes\n{data.protocol}")
    args.out.mkdir(parents=True, exist_ok=True)
    embedders, losses, rates = {}, {}, {}
    for name, loss in LOSSES.items():
        start = time.perf_counter()
        embedders[name], losses[name] = train(data, plan, loss, Distortion(), name)
        rates[name] = plan.steps * plan.classes * plan.images / (time.perf_counter() - start)
    evaluations = {name: evaluate(embedder, data, None) for name, embedder in embedders.items()}
    plots.verification(evaluations, data, args.out / "verification.png")
    mined = mine(embedders["mined pairs"], data, args.out / "hard_negatives.png")
    print(f"\n{table(evaluations, rates)}\n")
    print(
        f"hardest negatives of {mined['queries']:,} probes among {mined['documents']:,} enrolled images: "
        f"{mined['seconds']:.2f} s, mean cosine {mined['mean_hardest_cosine']:.2f} "
        f"(own class {mined['mean_own_cosine']:.2f})"
    )
    return {
        "protocol": data.protocol,
        "plan": asdict(plan) | {"characters": args.characters},
        "verification": {
            name: {k: asdict(v) for k, v in evaluation.verification.items()} for name, evaluation in evaluations.items()
        },
        "rank1": {name: evaluation.rank1_template for name, evaluation in evaluations.items()},
        "images_per_second": rates,
        "loss": losses,
        "mined": mined,
        "torch": torch.__version__,
        "hyperkernels": hk.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    args = parser().parse_args(argv)
    start = time.perf_counter()
    try:
        numbers = run(args)
    except (DataError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = args.out / "report.json"
    path.write_text(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n")
    print(f"report: {path}, {args.out / 'verification.png'}, {args.out / 'hard_negatives.png'}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
