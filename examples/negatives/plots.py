"""The pictures of the report: what was mined, and what it is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.recognizer.data import Dataset
from examples.recognizer.evaluate import Evaluation
from examples.recognizer.metrics import roc
from examples.recognizer.plots import BLUE, GREY, RED, STYLE, plt, save

COLOURS = {"mined pairs": BLUE, "random pairs": RED, "untrained": GREY}


def verification(evaluations: dict[str, Evaluation], data: Dataset, path: Path) -> None:
    """TAR over FAR of every embedder, on the first pair set."""
    name, pairs = next(iter(data.pairs.items()))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.8, 4.4), layout="constrained")
        for label, evaluation in evaluations.items():
            curve = roc(evaluation.scores[name], pairs.same)
            shown = curve.far > 0
            axis.plot(curve.far[shown], curve.tar[shown], color=COLOURS[label], linewidth=1.8, label=label)
        axis.set(xscale="log", xlim=(1e-5, 1), ylim=(0, 1.02), xlabel="false accept rate (FAR)")
        axis.set(ylabel="true accept rate (TAR)", title="Verification of held-out classes")
        axis.legend(loc="lower right")
        save(figure, path)


def mined_negatives(
    data: Dataset, queries: np.ndarray, negatives: np.ndarray, scores: np.ndarray, own: np.ndarray, path: Path
) -> None:
    """A row a query: the probe, its own class, then the mined negatives with their cosines.

    Args:
        queries: [q] numbers of probes.
        negatives: [q, k] classes; scores: [q, k] their cosines; own: [q] the cosine with the query's own class.
    """
    rows, columns = len(queries), negatives.shape[1] + 2
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, grid = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.32 * rows), layout="constrained")
        for r, query in enumerate(queries):
            images = [data.probes[query], data.gallery[data.probe_labels[query]], *data.gallery[negatives[r]]]
            texts = ["", f"{own[r]:.2f}", *(f"{score:.2f}" for score in scores[r])]
            for c, (axis, image, text) in enumerate(zip(grid[r], images, texts, strict=True)):
                axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.set_xlabel(text, fontsize=9, labelpad=2)
                colour = "black" if c == 0 else BLUE if c == 1 else RED
                for spine in axis.spines.values():
                    spine.set(visible=True, color=colour, linewidth=1.6)
        for axis, title in zip(grid[0], ("query", "its class", "hardest\nnegatives"), strict=False):
            axis.set_title(title, fontsize=10)
        save(figure, path)
