"""The pictures of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from .data import Dataset, Index, Pairs
from .evaluate import Evaluation
from .metrics import Verification, roc
from .training import History

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, RED, GREY = "#2c6fbb", "#c8452f", "#8a8a8a"
STYLE = {
    "figure.dpi": 130,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
HARD = 10  # pairs in a row of the picture of hard pairs


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _smooth(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Mean of the last ``window`` values (of as many as there are at the start)."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    result: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return result


def training_curves(history: History, untrained_tar: float | None, path: Path) -> None:
    """Loss a step, learning rate a step, held-out TAR an epoch."""
    loss = np.array(history.loss)
    epochs = len(history.seconds)
    x = np.arange(1, len(loss) + 1) * epochs / len(loss)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
        axes[0].plot(x, loss, color=BLUE, alpha=0.25, linewidth=0.8, label="each step")
        axes[0].plot(x, _smooth(loss, max(1, len(loss) // 50)), color=BLUE, linewidth=1.8, label="running mean")
        axes[0].set(title="Training loss", ylim=(0, None))
        axes[0].legend()
        axes[1].plot(x, history.rate, color=BLUE, linewidth=1.8)
        axes[1].set(title="Learning rate of the embedder", ylim=(0, None))
        tars = [np.nan if untrained_tar is None else untrained_tar, *history.heldout_tar]
        axes[2].plot(range(epochs + 1), tars, "o-", color=BLUE, linewidth=1.8, markersize=5)
        axes[2].annotate(f"{tars[-1]:.3f}", (epochs, tars[-1]), (-4, -16), textcoords="offset points", ha="right")
        axes[2].set(title="TAR at FAR 0.01, held-out classes", ylim=(0, 1.02))
        for axis in axes:
            axis.set(xlabel="epoch", xlim=(0, epochs * 1.02))
            axis.xaxis.get_major_locator().set_params(integer=True)
        save(figure, path)


def cosine_histograms(
    before: Evaluation, after: Evaluation, name: str, same: npt.NDArray[np.bool_], path: Path
) -> None:
    """Cosines of same and different pairs, untrained and trained, with the thresholds of the FARs."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
        for axis, title, evaluation in zip(
            axes, ("Untrained embedder", "Trained embedder"), (before, after), strict=True
        ):
            scores = evaluation.scores[name]
            bins = np.linspace(-1, 1, 101 if min(same.sum(), (~same).sum()) > 2000 else 41)
            for kind, colour, label in ((~same, RED, "different"), (same, BLUE, "same")):
                text = f"{label}, {int(kind.sum()):,} pairs"
                axis.hist(scores[kind], bins, density=True, color=colour, alpha=0.6, label=text)
            _mark_thresholds(axis, evaluation.verification[name])
            axis.set(title=title, xlabel="cosine of the pair", xlim=(-1, 1), yticks=[])
            axis.set_ylabel("density of pairs")
            axis.legend(loc="upper left")
        save(figure, path)


def _mark_thresholds(axis: Any, verification: Verification) -> None:
    """A line a FAR at its threshold, explained in the legend."""
    axis.margins(y=0.4)
    for (far, threshold), line in zip(verification.threshold_at_far.items(), ("--", ":"), strict=False):
        if threshold is not None and np.isfinite(threshold):
            label = f"FAR {far}, TAR {verification.tar_at_far[far]:.3f}"
            axis.axvline(threshold, color="black", linewidth=1, linestyle=line, label=label)


def roc_curves(before: Evaluation, after: Evaluation, pairs: dict[str, Pairs], path: Path) -> None:
    """TAR over FAR, the FAR on a log axis, for every pair set."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
        lowest = 1.0
        for (name, chosen), line in zip(pairs.items(), ("-", "--"), strict=False):
            for evaluation, colour, label in ((after, BLUE, "trained"), (before, GREY, "untrained")):
                curve = roc(evaluation.scores[name], chosen.same)
                shown = curve.far > 0
                lowest = min(lowest, 1 / int((~chosen.same).sum()))
                text = f"{label}, {name}" if len(pairs) > 1 else label
                axis.plot(curve.far[shown], curve.tar[shown], line, color=colour, linewidth=1.8, label=text)
        axis.set(xscale="log", xlim=(max(lowest, 1e-5), 1), ylim=(0, 1.02), xlabel="false accept rate (FAR)")
        axis.set(ylabel="true accept rate (TAR)", title="Verification of held-out classes")
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        save(figure, path)


def _distinct(order: Index, pairs: Pairs, labels: Index) -> list[int]:
    """The first ``HARD`` of ``order`` that do not repeat a class, so that one odd class does not fill the row."""
    chosen: list[int] = []
    seen: set[int] = set()
    for i in order:
        classes = {int(labels[pairs.first[i]]), int(labels[pairs.second[i]])}
        if not classes & seen:
            chosen.append(int(i))
            seen |= classes
        if len(chosen) == HARD:
            break
    return chosen


def hard_pairs(data: Dataset, name: str, evaluation: Evaluation, path: Path) -> None:
    """Pairs of two classes with the highest cosines, pairs of one class with the lowest."""
    pairs, scores = data.pairs[name], evaluation.scores[name]
    order = np.argsort(scores, kind="stable")
    rows = (
        ("Different classes, highest cosine", _distinct(order[~pairs.same[order]][::-1], pairs, data.heldout_labels)),
        ("Same class, lowest cosine", _distinct(order[pairs.same[order]], pairs, data.heldout_labels)),
    )
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure = plt.figure(figsize=(12, 6.2), layout="constrained")
        for part, (title, chosen) in zip(figure.subfigures(2, 1, hspace=0.04), rows, strict=True):
            part.suptitle(title, fontsize=12)
            grid = part.subplots(2, HARD, gridspec_kw={"hspace": 0.03})
            for column in range(HARD):
                for axis in grid[:, column]:
                    axis.axis("off")
                if column < len(chosen):
                    i = chosen[column]
                    for axis, image in zip(grid[:, column], (pairs.first[i], pairs.second[i]), strict=True):
                        axis.imshow(data.heldout[image], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                    grid[1, column].set_title(f"{scores[i]:.2f}", y=-0.28, fontsize=10)
        save(figure, path)
