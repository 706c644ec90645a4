"""Pictures of the rows: time and memory against a size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from . import memory
from .harness import OURS, Row

STYLES = {
    OURS: {"color": "#0b6e4f", "marker": "o", "linewidth": 2.4, "zorder": 3},
    "torch.compile": {"color": "#d17b0f", "marker": "s"},
    "eager PyTorch": {"color": "#a4243b", "marker": "^"},
    "pytorch-metric-learning": {"color": "#5b4a9e", "marker": "D"},
    "F.normalize": {"color": "#a4243b", "marker": "^"},
    "chunked mm + topk, no filter": {"color": "#2274a5", "marker": "v", "linestyle": ":"},
    "chunked mm + topk": {"color": "#2274a5", "marker": "v"},
    "chunked eager PyTorch": {"color": "#2274a5", "marker": "v"},
    "faiss IndexFlatIP, no filter": {"color": "#5b4a9e", "marker": "P"},
    "skip_budget=1e-3": {"color": "#2274a5", "marker": "o", "linewidth": 2.4},
    "skip_budget=1e-2": {"color": "#83bde0", "marker": "o", "linewidth": 2.4},
    "floor": {"color": "#777777", "linestyle": "--"},
}


@dataclass(frozen=True)
class Panel:
    """``value`` ("time" or "memory") of the rows of ``op`` against the size that their shapes name ``size``."""

    op: str
    size: str
    label: str
    value: str = "time"
    title: str = ""
    log: bool = True


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    panels: tuple[Panel, ...]


def time_and_memory(name: str, op: str, size: str, label: str) -> Figure:
    return Figure(name, op, (Panel(op, size, label, "time", "Time"), Panel(op, size, label, "memory", "Extra memory")))


def style(name: str) -> tuple[str, dict] | None:
    """The contender's family and how it is drawn; None where it is only for the tables."""
    for family, look in STYLES.items():
        if name.strip().startswith(family):
            return family, look
    return None


def draw(figure: Figure, rows: Sequence[Row], folder: Path, machine: str, device: str) -> Path | None:
    """The picture in ``folder``, or None where the rows hold nothing of it. A cross is a contender that ran out of
    memory."""
    panels = [panel for panel in figure.panels if any(row.op == panel.op for row in rows)]
    if not panels:
        return None
    canvas, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained", squeeze=False)
    drawn: dict[str, object] = {}
    machine_bytes = memory.machine_bytes(device)
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel, rows, machine_bytes, drawn)
    columns = 2 * len(panels)
    canvas.legend(drawn.values(), drawn.keys(), frameon=False, ncols=columns, loc="outside lower center", fontsize=9)
    dtype = next(row.dtype for row in rows if row.op == panels[0].op)
    canvas.suptitle(f"{figure.title}\n{dtype}, {machine}", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}_{device}.png"
    canvas.savefig(path, dpi=150)
    plt.close(canvas)
    return path


def _panel(axis: Axes, panel: Panel, rows: Sequence[Row], machine_bytes: int, drawn: dict[str, object]) -> None:
    mine = [row for row in rows if row.op == panel.op]
    mine = [row for row in mine if row.dtype == mine[0].dtype]
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in mine:
        found = re.search(rf"\b{panel.size}=([\d.]+)", row.shape)
        if found and style(row.name) is not None:
            series.setdefault(row.name, []).append((float(found[1]), row))
    value = (lambda r: r.median_ms) if panel.value == "time" else (lambda r: r.peak_mb)
    for name, points in series.items():
        family, look = style(name)  # type: ignore[misc]
        points.sort(key=lambda point: point[0])
        there = [(size, value(row)) for size, row in points if value(row) is not None]
        if not there:
            continue
        (line,) = axis.plot(*zip(*there, strict=True), **look)
        drawn.setdefault(name if family == "floor" else family, line)
        fell = [size for size, row in points if row.out_of_memory]
        if fell:
            # Where it would be if it went on as it did; its memory is at least the machine's.
            last_size, last = there[-1]
            guess = last * fell[0] / last_size
            if panel.value == "memory":
                guess = max(guess, machine_bytes / 1e6)
            axis.plot([last_size, fell[0]], [last, guess], color=look["color"], linestyle=":", linewidth=1)
            axis.plot(fell[0], guess, color=look["color"], marker="x", markersize=10)
            drawn.setdefault("out of memory", Line2D([], [], color="#444444", marker="x", linestyle=""))
    if panel.log:
        axis.set_xscale("log")
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    if panel.log and len(sizes := {size for points in series.values() for size, _ in points}) <= 6:
        axis.set_xticks(sorted(sizes), [_short(size) for size in sorted(sizes)])
        axis.xaxis.set_minor_locator(NullLocator())
    if panel.value == "memory":
        axis.axhline(machine_bytes / 1e6, color="#bbbbbb", linewidth=1)
        axis.annotate("the machine's memory", (0.01, machine_bytes / 1e6), xycoords=("axes fraction", "data"),
                      fontsize=8, color="#888888", va="bottom")  # fmt: skip
    unit = "ms" if panel.value == "time" else "MB beyond inputs and gradients"
    axis.set(xlabel=panel.label, ylabel=unit, title=panel.title)
    axis.grid(True, which="major", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _short(size: float) -> str:
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if size >= unit and size % unit == 0:
            return f"{size / unit:g}{suffix}"
    return f"{size:g}"
