"""What a run found, as a table, as JSON, and what it ran on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tabulate
import torch

import hyperkernels

from .harness import OURS, Row

tabulate.PRESERVE_WHITESPACE = True  # variants of ours are indented
HEAD = ["", "ms", "p20 - p80", "rate", "x floor", "extra MB", "error", f"time / {OURS}"]


def number(value: float) -> str:
    """Three digits, or all before the point: 0.0301, 9.4, 67.7, 1,905."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def cells(row: Row) -> list[str]:
    """A row's columns, in the order of ``HEAD``; empty where nothing was measured."""
    if row.out_of_memory:
        return [row.name, "out of memory", *[""] * 6]
    return [
        row.name,
        number(row.median_ms),
        f"{number(row.p20_ms)} - {number(row.p80_ms)}",
        f"{row.rate:.3g} {row.rate_unit}",
        "" if row.over_floor is None else f"{row.over_floor:.2f}",
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.over_ours is None else f"{row.over_ours:.2f}x",
    ]


def table(rows: Sequence[Row]) -> str:
    """A text table of one case."""
    text = tabulate.tabulate([cells(row) for row in rows], headers=HEAD, disable_numparse=True)
    samples = "".join(f", {row.name.strip()} {row.samples}" for row in rows if row.samples not in (0, rows[0].samples))
    return f"{rows[0].op}  {rows[0].shape}  {rows[0].dtype}  ({rows[0].samples} samples{samples})\n{text}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    here = Path(__file__).resolve().parent
    result = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(device: str, peers: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the versions of what is compared (None: not installed) and the commit."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hyperkernels": hyperkernels.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": _version("triton")}
    if peers:
        facts["peers"] = {name: _version(name) for name in peers}
    return facts


def machine(facts: dict[str, Any]) -> str:
    return str(facts.get("gpu") or f"{facts['threads']} threads of {facts['processor']}")


def write_json(path: Path, rows: Sequence[Row], facts: dict[str, Any], command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "environment": facts, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The environment and the rows of a file that `write_json` wrote."""
    content = json.loads(path.read_text())
    return content["environment"], [Row(**row) for row in content["rows"]]
