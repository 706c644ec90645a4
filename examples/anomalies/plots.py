"""The picture of the report: how well each method tells anomalies, and where normal and anomalous rows lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from examples.recognizer.plots import BLUE, GREY, RED, STYLE, plt, save

COLOURS = {
    "distance to mean": "#cfcfcf",
    "OneClassSVM": GREY,
    "projection, untrained": "#e3b04b",
    "DOHSC": RED,
    "DO2HSC": BLUE,
}


class Distances(NamedTuple):
    """To the centre, and the radii between which the normal rows should lie."""

    train: torch.Tensor
    normal: torch.Tensor
    anomalous: torch.Tensor
    inner: float
    outer: float


def anomalies(
    aucs: dict[str, np.ndarray], classes: list[int], shown: int, distances: dict[str, Distances], path: Path
) -> None:
    """AUC of every class and method, and the distances to the centre where class ``shown`` is normal.

    Args:
        aucs: [seeds, classes] by method.
        distances: by method.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 7.2), layout="constrained")
        grid = figure.add_gridspec(2, len(distances))
        _bars(figure.add_subplot(grid[0, :]), aucs, classes)
        below = [figure.add_subplot(grid[1, i]) for i in range(len(distances))]
        for axis, (name, found) in zip(below, distances.items(), strict=True):
            _histogram(axis, f"{name}, {shown} is normal", found)
        save(figure, path)


def _bars(axis: Any, aucs: dict[str, np.ndarray], classes: list[int]) -> None:
    """From 0.5, where a score says nothing; the mean over the classes stands apart."""
    places, width = np.array([*range(len(classes)), len(classes) + 0.4]), 0.8 / len(aucs)
    for i, (name, values) in enumerate(aucs.items()):
        heights = np.append(values.mean(0), values.mean())
        offset = (i - (len(aucs) - 1) / 2) * width
        label = f"{name}, {values.mean():.3f}"
        axis.bar(places + offset, heights - 0.5, 0.9 * width, bottom=0.5, color=COLOURS[name], label=label)
    axis.set_xticks(places, [*map(str, classes), "mean"])
    axis.set(ylim=(0.5, 1), xlabel="the digit that is normal", ylabel="AUC")
    axis.set_title("How well anomalies are told from normal digits, 0.5 being chance")
    axis.grid(False, axis="x")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(aucs), fontsize=9)


def _histogram(axis: Any, title: str, found: Distances) -> None:
    parts = (
        ("anomalous", found.anomalous, RED),
        ("normal", found.normal, BLUE),
        ("normal, trained on", found.train, GREY),
    )
    every = torch.cat([values for _, values, _ in parts]).numpy()
    bins = np.geomspace(every.min(), every.max(), 60)
    for label, values, colour in parts:
        shares = np.full(len(values), 100 / len(values))
        axis.hist(values.numpy(), bins, weights=shares, color=colour, alpha=0.6, label=label)
    for radius in (found.inner, found.outer):
        if radius > 0:
            axis.axvline(radius, color="black", linewidth=1, linestyle="--")
    axis.axvspan(max(found.inner, bins[0]), found.outer, color="black", alpha=0.07, label="taken for normal", zorder=0)
    axis.set(title=title, xscale="log", xlabel="distance to the centre", ylabel="% of the rows")
    axis.xaxis.set_minor_formatter(plt.NullFormatter())
    ticks = [t for t in (1, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500) if bins[0] <= t <= bins[-1]]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.legend(loc="upper right", fontsize=9)
