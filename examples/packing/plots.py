"""The picture of the report: how far apart the points came, and what a step took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.recognizer.plots import BLUE, GREY, RED, STYLE, plt, save

from .training import Cost, History

COLOURS = {"soft": BLUE, "nearest": RED, "pair": "#7b5ba7"}
BLACK = "#222222"


def packing(
    histories: dict[str, History],
    cosines: dict[str, torch.Tensor],
    bound: float,
    costs: dict[str, Cost | None],
    matrix_bytes: int,
    title: str,
    path: Path,
) -> None:
    """Largest cosine over the steps, the angles of nearest points, the memory of a step.

    Args:
        cosines: of every point and its nearest: "random", then by objective.
        costs: of a step, by what computed it.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 3.9), layout="constrained", width_ratios=[1.15, 1.15, 1])
        figure.suptitle(title)
        _progress(axes[0], histories, bound)
        _angles(axes[1], cosines, bound)
        _memory(axes[2], costs, matrix_bytes)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=9)
        save(figure, path)


def _progress(axis: Any, histories: dict[str, History], bound: float) -> None:
    for name, history in histories.items():
        axis.plot(history.step, history.largest_cosine, color=COLOURS[name], linewidth=1.8, label=name)
    start = next(iter(histories.values()))
    axis.axhline(start.largest_cosine[0], color=GREY, linewidth=1, linestyle="--", label="random points")
    axis.axhline(bound, color=BLACK, linewidth=1, linestyle=":", label="Levenshtein's bound")
    axis.set(title="Largest cosine of two points", xlabel="step", xlim=(0, start.step[-1]))
    axis.set_ylim(min(0.0, 1.1 * bound))


def _angles(axis: Any, cosines: dict[str, torch.Tensor], bound: float) -> None:
    degrees = {name: np.rad2deg(np.arccos(c.double().clamp(-1, 1).cpu().numpy())) for name, c in cosines.items()}
    farthest = float(np.rad2deg(np.arccos(bound)))
    first = min(float(angles.min()) for angles in degrees.values())
    last = max(farthest, *(float(angles.max()) for angles in degrees.values()))
    bins = np.linspace(first, last, 90)
    for name, angles in degrees.items():
        axis.hist(angles, bins, color=COLOURS.get(name, GREY), alpha=0.75)
    axis.axvline(farthest, color=BLACK, linewidth=1, linestyle=":")
    axis.set(title="Angle to the nearest point", xlabel="degrees", ylabel="points", yscale="log", ylim=(0.7, None))


def _memory(axis: Any, costs: dict[str, Cost | None], matrix_bytes: int) -> None:
    measured = {name: cost.peak_bytes / 1e6 for name, cost in costs.items() if cost is not None}
    bars = {**measured, "the matrix of\ncosines alone": matrix_bytes / 1e6}
    colours = [BLUE if "kernels" in name else GREY for name in bars]
    drawn = axis.barh(list(bars), [max(v, 1e-3) for v in bars.values()], color=colours, height=0.6)
    axis.bar_label(drawn, [f"{v:,.0f} MB" if v >= 10 else f"{v:.1f} MB" for v in bars.values()], padding=4, fontsize=9)
    axis.set(title="Memory of a step", xlabel="MB", xscale="log")
    axis.margins(x=0.35)
    axis.grid(False, axis="y")
    axis.invert_yaxis()
