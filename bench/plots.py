"""Pictures of the rows: time and extra memory against a size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .harness import Row

STYLES = {
    "hyperkernels": {"color": "#0b6e4f", "marker": "o", "linewidth": 2.4},
    "torch.compile": {"color": "#d17b0f", "marker": "s"},
    "eager PyTorch": {"color": "#a4243b", "marker": "^"},
    "pytorch-metric-learning": {"color": "#5b4a9e", "marker": "D"},
    "floor: two bare GEMMs": {"color": "#777777", "linestyle": "--"},
    "floor: three bare GEMMs": {"color": "#777777", "linestyle": "--"},
}


def against_size(rows: Sequence[Row], size: str, label: str, path: Path, caption: str) -> None:
    """Two panels on log axes, milliseconds and megabytes against the size that rows' shapes name so, "C" for one."""
    points: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        found = re.search(rf"\b{size}=(\d+)", row.shape)
        if found and row.name in STYLES:
            points.setdefault(row.name, []).append((int(found[1]), row))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for name, series in points.items():
        sizes = [number for number, _ in series]
        left.loglog(sizes, [r.median_ms for _, r in series], label=name, **STYLES[name])
        if all(r.peak_mb is not None for _, r in series):
            right.loglog(sizes, [r.peak_mb for _, r in series], **STYLES[name])
    left.set(xlabel=label, ylabel="forward + backward, ms", title="Time")
    right.set(xlabel=label, ylabel="MB beyond inputs and gradients", title="Extra memory")
    for axis in (left, right):
        axis.grid(True, which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(caption, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
