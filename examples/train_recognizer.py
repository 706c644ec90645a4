"""Train a recogniser of many classes with the fused margin-softmax head, and judge it on classes it has never seen.

Without arguments: 9,572 Han characters, a class each, rendered from two fonts (no network). With ``--data DIR_OR_ZIP``:
any images with a folder an identity, faces first of all. From the root of the repository::

    python examples/train_recognizer.py
    python examples/train_recognizer.py --data faces.zip --size 48 --holdout 0.2 --flip --batch 128 --rate 0.1
    python examples/train_recognizer.py --resume            # goes on where an interrupted run stopped
    torchrun --nproc-per-node 2 -m examples.train_recognizer --sample-rate 0.1

Under torchrun the classes and every batch are shared out among the processes (``hk.nn.PartialFC``, and
DistributedDataParallel around the embedder), on a GPU each or on the CPU. Rank 0 alone prints, judges and writes the
report. A run goes on with ``--resume`` on any number of processes. The batch norms see a rank's own share of the batch;
otherwise a step is that of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

if not __package__:
    # Run as a script: import from the root of the repository, as `python -m examples.train_recognizer` does.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from examples.options import at_least, positive
from examples.recognizer import folders, glyphs, report
from examples.recognizer.data import DataError, Dataset
from examples.recognizer.distort import Distortion
from examples.recognizer.evaluate import evaluate, heldout_tar
from examples.recognizer.heads import HEADS, MARGINS, head_peak_bytes, make_margin
from examples.recognizer.ranks import Ranks
from examples.recognizer.training import CheckpointError, Settings, Trainer
from hyperkernels.distributed.files import FolderInUse, locked

# What --data leaves to the data: little is known of a folder, and photographs bear less than writing.
GLYPHS = {"size": 32, "epochs": 4, "distortion": 1.0}
FOLDER = {"size": 64, "epochs": 30, "distortion": 0.5}
CHECKPOINTS = {False: "checkpoint.pt", True: "checkpoints"}  # by whether the head is sharded


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1; got {text}")
    return value


def _rate(text: str) -> float:
    return 1.0 if float(text) == 1 else _share(text)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Prints the defaults that are worth printing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _add_data_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("data").add_argument
    add("--data", type=Path, metavar="PATH", help="folder or zip with a sub-folder an identity, instead of glyphs")
    add("--size", type=at_least(8), help="side of the images in pixels; default: 32 for glyphs, 64 for --data")
    add("--characters", type=at_least(1), help="use only so many characters, not all")
    add("--min-images", type=at_least(1), default=1, help="with --data, train on identities with so many images")
    add("--holdout", type=_share, default=0.1, help="share of the classes that are never trained on")
    add("--split-seed", type=int, default=0, help="chooses the held-out classes and draws the pairs")
    add("--distortion", type=float, help="factor on all distortions; default: 1 for glyphs, 0.5 for --data")
    add("--flip", action="store_true", help="mirror half of the training images; for faces, not for writing")


def _add_head_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("head").add_argument
    add("--head", choices=HEADS, default="fused", help="the kernels, plain PyTorch, or torch.compile of the latter")
    add("--margin", choices=list(MARGINS), default="arcface")
    add("--m", type=float, help="size of the margin; default: 0.3 for arcface, 0.2 for cosface")
    add("--scale", type=positive, default=16.0, help="inverse temperature; learning starts later with a higher one")
    add("--skip-budget", type=float, default=0.0, help="share of the head's gradient that its backward may leave out")
    add("--sample-rate", type=_rate, default=1.0, help="share of the classes that a training step takes")
    add("--embedding", type=at_least(1), default=128, help="size of the embedding")


def _add_training_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("training").add_argument
    add("--epochs", type=at_least(1), help="default: 4 for glyphs, 30 for --data")
    add("--batch", type=at_least(2), default=256, help="images in a step")
    add("--rate", type=positive, default=0.2, help="highest learning rate of the embedder")
    add("--head-rate", type=positive, default=100.0, help="learning rate of the class centres, times the embedder's")
    add("--seed", type=int, default=0, help="of the weights, the order of the images and their distortions")
    add("--threads", type=at_least(1), help="threads of torch")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], formatter_class=_Help)
    _add_data_options(p)
    _add_head_options(p)
    _add_training_options(p)
    p.add_argument("--cache", type=Path, default=Path(".cache"), help="where rendered glyphs are kept")
    p.add_argument("--out", type=Path, default=Path("report"), help="where the report and the checkpoint go")
    return p


def load_data(args: argparse.Namespace, distortion: Distortion, speak: bool = True) -> Dataset:
    if args.data is not None:
        return folders.load(
            args.data, side=args.size, holdout=args.holdout, split_seed=args.split_seed, min_images=args.min_images
        )
    with tqdm(desc="rendering", unit="character", delay=1.0, disable=not speak) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return glyphs.load(
            cache=args.cache,
            side=args.size,
            characters=args.characters,
            holdout=args.holdout,
            split_seed=args.split_seed,
            distortion=distortion,
            progress=progress,
        )


def make_settings(args: argparse.Namespace) -> Settings:
    """The settings of the run; fills in the defaults that depend on the data, in ``args`` too."""
    for name, value in (GLYPHS if args.data is None else FOLDER).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    try:
        make_margin(args.margin, args.m)
    except ValueError as error:
        raise DataError(f"--m: {error}") from error
    usual = Distortion()
    factors = {name: value * args.distortion for name, value in vars(usual).items() if name != "flip"}
    source = "glyphs" if args.data is None else str(args.data)
    return Settings(
        data=f"{source} size={args.size} characters={args.characters} min_images={args.min_images} "
        f"holdout={args.holdout} split_seed={args.split_seed}",
        head=args.head,
        margin=args.margin,
        m=args.m,
        scale=args.scale,
        skip_budget=args.skip_budget,
        embedding_size=args.embedding,
        epochs=args.epochs,
        batch=args.batch,
        rate=args.rate,
        head_rate=args.head_rate,
        seed=args.seed,
        distortion=Distortion(**factors, flip=args.flip),
        sample_rate=args.sample_rate,
    )


def resume(trainer: Trainer, out: Path, checkpoint: Path) -> None:
    found = trainer.find(checkpoint)
    if found is not None:
        trainer.load(found)
        epochs = trainer.settings.epochs
        trainer.ranks.say(f"resumed from {found} after epoch {trainer.epoch} of {epochs}")
        return
    other = out / CHECKPOINTS[not trainer.sharded]
    if other.exists():
        launcher = "without torchrun" if trainer.sharded else "under torchrun (--nproc-per-node 1 will do)"
        raise CheckpointError(f"{other} goes on {launcher}; there is no {checkpoint}")
    trainer.ranks.say(f"no checkpoint at {checkpoint}: starting with the first epoch")


def hold(out: Path, held: contextlib.ExitStack, ranks: Ranks) -> bool:
    """Keep other runs from the folder of this one, whose checkpoints would take each other's places."""
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(out))
    return True


def run(args: argparse.Namespace, ranks: Ranks) -> report.Outcome | None:
    """Everything; what rank 0 found, and None on the others."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings = make_settings(args)
    if args.head == "compile" and (ranks.launched or args.sample_rate < 1):
        raise DataError("--head compile knows neither torchrun nor --sample-rate: take fused or reference")
    data = ranks.in_turn(lambda: load_data(args, settings.distortion, ranks.first))
    ranks.say(
        f"{data.name}: {len(data.train):,} images of {data.num_classes:,} classes to train on, "
        f"{len(set(data.heldout_labels.tolist())):,} classes held out\n{data.protocol}"
    )
    trainer = Trainer(data, settings, ranks)
    untrained = evaluate(trainer.embedder, data, None) if ranks.first else None
    checkpoint = args.out / CHECKPOINTS[trainer.sharded]
    if args.resume:
        resume(trainer, args.out, checkpoint)
    trainer.run(checkpoint, lambda embedder: heldout_tar(embedder, data))
    centres = trainer.centres()
    rows = len(ranks.share(trainer.labels[: trainer.batch]))
    head_bytes = {
        kind: head_peak_bytes(kind, trainer.make_head(), rows) for kind in dict.fromkeys([settings.head, "reference"])
    }
    if untrained is None:
        return None
    taking_part = len(trainer.head.weight)
    if settings.sample_rate < 1:
        taking_part = max(round(settings.sample_rate * taking_part), min(taking_part, trainer.batch))
    return report.Outcome(
        data=data,
        settings=settings,
        history=trainer.history,
        untrained=untrained,
        trained=evaluate(trainer.embedder, data, centres),
        parameters=sum(p.numel() for p in trainer.embedder.parameters()),
        head_bytes=head_bytes[settings.head],
        eager_bytes=head_bytes["reference"],
        gradient_bytes=4 * settings.embedding_size * (rows + taking_part),
        ranks=ranks.size,
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    args = parser().parse_args(argv)
    start = time.perf_counter()
    ranks = Ranks.here()
    try:
        ranks.join()  # first of all: a rank that fails ahead of rank 0 would have it ended before it can say why
        with contextlib.ExitStack() as held:
            ranks.in_turn(lambda: hold(args.out, held, ranks))
            outcome = run(args, ranks)
    except (DataError, CheckpointError, ImportError, OSError, FolderInUse) as error:
        ranks.say(f"error: {error}", file=sys.stderr)
        return ranks.leave(1)
    except KeyboardInterrupt:
        ranks.say("\ninterrupted; --resume goes on after the last complete epoch", file=sys.stderr)
        return ranks.leave(130)
    if outcome is not None:
        paths = report.write(outcome, args.out)
        print(f"\n{report.table(outcome)}\n")
        print("report: " + ", ".join(str(path) for path in paths))
        print(f"{time.perf_counter() - start:.0f} s in all")
    return ranks.leave(0)


if __name__ == "__main__":
    raise SystemExit(main())
