"""The outcome: a table on the terminal, a folder with the numbers and the pictures."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tabulate
import torch

import hyperkernels as hk

from . import plots
from .data import Dataset
from .evaluate import Evaluation
from .training import History, Settings

MIB = 2**20
tabulate.PRESERVE_WHITESPACE = True  # the table's indents


@dataclass(frozen=True)
class Outcome:
    """Everything a run found; ``head_bytes`` and ``eager_bytes`` are the peaks of one forward and backward on one of
    its ``ranks``."""

    data: Dataset
    settings: Settings
    history: History
    untrained: Evaluation
    trained: Evaluation
    parameters: int
    head_bytes: int | None
    eager_bytes: int | None
    gradient_bytes: int
    ranks: int = 1

    @property
    def images_per_second(self) -> float:
        return sum(self.history.images) / sum(self.history.seconds)

    @property
    def head_share(self) -> float:
        return sum(self.history.head_seconds) / sum(self.history.seconds)


def cpu_name() -> str:
    """The processor's name as the system gives it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _percent(value: float | None) -> str:
    return "too few pairs" if value is None else f"{100 * value:.2f} %"


def _mebibytes(size: int | None) -> str:
    return "cannot be measured here" if size is None else f"{size / MIB:.1f} MiB"


def _verification_rows(outcome: Outcome) -> list[list[str]]:
    rows = []
    for name in outcome.data.pairs:
        before, after = outcome.untrained.verification[name], outcome.trained.verification[name]
        rows.append([f"{name}: {after.same_pairs:,} same, {after.different_pairs:,} different", "", ""])
        rows.append(
            [
                "  accuracy, 10 folds",
                _percent(before.accuracy),
                f"{_percent(after.accuracy)} +- {100 * after.accuracy_std:.2f}",
            ]
        )
        rows.append(["  equal error rate", _percent(before.eer), _percent(after.eer)])
        for far in after.tar_at_far:
            rows.append([f"  TAR at FAR {far}", _percent(before.tar_at_far[far]), _percent(after.tar_at_far[far])])
    return rows


def table(outcome: Outcome) -> str:
    """The numbers for the terminal."""
    settings, data = outcome.settings, outcome.data
    rows = _verification_rows(outcome)
    if len(data.probes):
        rows.append([f"{data.num_classes:,} trained classes, {len(data.probes):,} probes", "", ""])
        before, after = outcome.untrained, outcome.trained
        rows.append(
            ["  rank-1, nearest enrolled image", _percent(before.rank1_template), _percent(after.rank1_template)]
        )
        rows.append(["  rank-1, nearest class centre", "-", _percent(after.rank1_centre)])
    quality = tabulate.tabulate(
        rows, headers=["", "untrained", "trained"], colalign=("left", "right", "right"), disable_numparse=True
    )
    skipped = f"{100 * outcome.history.skipped[-1]:.1f} % (budget {settings.skip_budget:g})"
    cost = tabulate.tabulate(
        [
            ["training", f"{sum(outcome.history.seconds):.0f} s, {outcome.images_per_second:,.0f} images/s"],
            ["head's share of the training step", f"{100 * outcome.head_share:.1f} % ({settings.head})"],
            *([["head's tiles skipped in the last epoch", skipped]] if settings.skip_budget else []),
            [f"head's peak memory, {settings.head}", _mebibytes(outcome.head_bytes)],
            ["head's peak memory, plain PyTorch", _mebibytes(outcome.eager_bytes)],
            ["of which gradients, in either", _mebibytes(outcome.gradient_bytes)],
        ],
        disable_numparse=True,
        colalign=("left", "right"),
        tablefmt="plain",
    )
    return f"{quality}\n\n{cost}"


def _quality(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "verification": {name: asdict(v) for name, v in evaluation.verification.items()},
        "rank1_template": evaluation.rank1_template,
        "rank1_centre": evaluation.rank1_centre,
    }


def plain(value: Any) -> Any:
    """JSON has no infinity: a threshold that accepts nothing is null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def numbers(outcome: Outcome) -> dict[str, Any]:
    """The contents of ``report.json``."""
    data, history = outcome.data, outcome.history
    return {
        "protocol": data.protocol,
        "settings": outcome.settings.as_dict(),
        "data": {
            "name": data.name,
            **data.facts,
            "train_images": len(data.train),
            "train_classes": data.num_classes,
            "heldout_classes": len(np.unique(data.heldout_labels)),
            "side": data.train.shape[-1],
        },
        "embedder_parameters": outcome.parameters,
        "untrained": _quality(outcome.untrained),
        "trained": _quality(outcome.trained),
        "images_per_second": outcome.images_per_second,
        "head_share": outcome.head_share,
        "head_peak_bytes": {
            outcome.settings.head: outcome.head_bytes,
            "eager": outcome.eager_bytes,
            "gradients": outcome.gradient_bytes,
        },
        "history": vars(history),
        "machine": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "ranks": outcome.ranks,
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "hyperkernels": hk.__version__,
        },
    }


def write(outcome: Outcome, folder: Path) -> list[Path]:
    """Write ``report.json`` and the pictures; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    main = next(iter(outcome.data.pairs))
    names = ["report.json", "training.png", "cosines.png", "roc.png", "hard_pairs.png"]
    paths = [folder / name for name in names]
    paths[0].write_text(json.dumps(plain(numbers(outcome)), indent=1, allow_nan=False) + "\n")
    untrained_tar = outcome.untrained.verification[main].tar_at_far["0.01"]
    plots.training_curves(outcome.history, untrained_tar, paths[1])
    plots.cosine_histograms(outcome.untrained, outcome.trained, main, outcome.data.pairs[main].same, paths[2])
    plots.roc_curves(outcome.untrained, outcome.trained, outcome.data.pairs, paths[3])
    plots.hard_pairs(outcome.data, main, outcome.trained, paths[4])
    return paths
