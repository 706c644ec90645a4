"""Pictures of the rows: time and extra memory against the number of classes."""

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
    "floor: three bare GEMMs": {"color": "#777777", "linestyle": "--"},
}


def against_classes(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Two panels on log axes, milliseconds and megabytes against C, for rows whose shape names C."""
    points: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        found = re.search(r"C=(\d+)", row.shape)
        if found and row.name in STYLES:
            points.setdefault(row.name, []).append((int(found[1]), row))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for name, series in points.items():
        classes = [c for c, _ in series]
        left.loglog(classes, [r.median_ms for _, r in series], label=name, **STYLES[name])
        if all(r.peak_mb is not None for _, r in series):
            right.loglog(classes, [r.peak_mb for _, r in series], **STYLES[name])
    left.set(xlabel="classes C", ylabel="forward + backward, ms", title="Time")
    right.set(xlabel="classes C", ylabel="MB beyond inputs and gradients", title="Extra memory")
    for axis in (left, right):
        axis.grid(True, which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(caption, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
