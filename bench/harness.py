"""Interleaved timing, and tables and JSON of what it gave."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import hyperkernels


@dataclass(frozen=True)
class Contender:
    """One way to do the work. ``run(i)`` does it on input set i and returns what it computed."""

    name: str
    run: Callable[[int], object]
    is_floor: bool = False


@dataclass(frozen=True)
class Row:
    op: str
    shape: str
    dtype: str
    name: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    rate: float
    rate_unit: str
    peak_mb: float | None = None
    error: float | None = None
    over_floor: float | None = None
    is_floor: bool = False


CUDA_CALLS = 10  # in one sample: the queue stays full, so the gaps of single launches are not charged to the kernel


def _time_one(run: Callable[[int], object], i: int, input_sets: int, device: str) -> float:
    """Seconds of one call on input set i; on a GPU of several calls in a row on input sets that rotate, per call."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for k in range(CUDA_CALLS):
            run((i + k) % input_sets)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / CUDA_CALLS
    start_time = time.perf_counter()
    run(i % input_sets)
    return time.perf_counter() - start_time


def measure(
    contenders: Sequence[Contender],
    *,
    op: str,
    shape: str,
    dtype: str,
    work: float,
    unit: str,
    device: str = "cpu",
    samples: int = 11,
    input_sets: int = 3,
    peaks: dict[str, float] | None = None,
    errors: dict[str, float] | None = None,
) -> list[Row]:
    """Rows of all contenders, timed in turns, so that a noisy machine favours none.

    ``work`` is what one call must do at least, in flops or bytes; ``unit`` is "GFLOP/s" or "GB/s". Input sets rotate,
    so caches are as cold as the sizes make them. Two warm-up rounds are thrown away.
    """
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for i in tqdm(range(samples + 2), desc=f"{op} {shape} {dtype}", leave=False, disable=None):
        for c in contenders:
            seconds = _time_one(c.run, i, input_sets, device)
            if i >= 2:
                times[c.name].append(seconds)
    floor = min((statistics.median(times[c.name]) for c in contenders if c.is_floor), default=None)
    rows = []
    for c in contenders:
        median = statistics.median(times[c.name])
        deciles = statistics.quantiles(times[c.name], n=10, method="inclusive")
        rows.append(
            Row(
                op=op,
                shape=shape,
                dtype=dtype,
                name=c.name,
                median_ms=median * 1e3,
                p20_ms=deciles[1] * 1e3,
                p80_ms=deciles[7] * 1e3,
                rate=work / median / 1e9,
                rate_unit=unit,
                peak_mb=(peaks or {}).get(c.name),
                error=(errors or {}).get(c.name),
                over_floor=median / floor if floor else None,
                is_floor=c.is_floor,
            )
        )
    return rows


def table(rows: Sequence[Row], ours: str) -> str:
    """A text table; the last column says how many times longer than `ours` each took."""
    mine = next(r for r in rows if r.name == ours)
    cells = [
        [
            r.name,
            f"{r.median_ms:.3g}",
            f"{r.p20_ms:.3g} - {r.p80_ms:.3g}",
            f"{r.rate:.3g} {r.rate_unit}",
            "" if r.over_floor is None else f"{r.over_floor:.2f}",
            "" if r.peak_mb is None else f"{r.peak_mb:.0f}",
            "" if r.error is None else f"{r.error:.1e}",
            f"{r.median_ms / mine.median_ms:.2f}x",
        ]
        for r in rows
    ]
    head = ["", "ms", "p20 - p80", "rate", "x floor", "extra MB", "error", f"time / {ours}"]
    return f"{rows[0].op}  {rows[0].shape}  {rows[0].dtype}\n" + tabulate(cells, headers=head, disable_numparse=True)


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


def environment(device: str) -> dict[str, Any]:
    facts = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hyperkernels": hyperkernels.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        import triton

        facts["triton"] = triton.__version__
    return facts


def write_json(path: Path, rows: Sequence[Row], device: str, command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "environment": environment(device), "rows": [asdict(r) for r in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
