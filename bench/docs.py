"""``python -m bench.docs [--check]``: the tables of README.md and docs/*.md, written from the committed results.

A table stands between two comments, and the first says what it shows, relative to bench/results: a file, and rows by
op, shape and dtype::

    <!-- rows: cpu-epyc-2-cores/pair_mining.json; supcon forward+backward; N=8192 D=512; float32 -->
    <!-- end -->

``rows`` gives every contender of the one case. ``cases`` gives a line to each case and a column to each contender, as
times of ours; there op, shape and dtype are lists, parted by ``|``, and an empty one takes all. ``compiled`` gives what
the compiler says of the kernels of a family for a target and dtype, ``ranks`` what `bench.partial_fc` found::

    <!-- compiled: gpu/compiled.json; pair_mining; sm_90; bf16 -->
    <!-- ranks: cpu-epyc-2-cores/partial_fc.json -->
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from .harness import OURS, Row
from .report import number, read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- (rows|cases|compiled|ranks): ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {"  workspace=0": "hyperkernels, `workspace=0`", "  workspace=all": "hyperkernels, everything kept"}


def rows_table(rows: list[Row]) -> str:
    """Every contender of one case."""
    head = ["", "time, ms", "against ours", "times the floor", "extra memory, MB", "error"]
    ours = rows[0]
    return _markdown(head, [[_name(row.name), *_figures(row, ours)] for row in rows])


def cases_table(rows: list[Row]) -> str:
    """A line a case: our time, every other contender as times of it, and the memory of ours and of the hungriest."""
    cases: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.name == OURS or not row.name.startswith(" "):
            cases.setdefault((row.op, row.shape, row.dtype), {})[_family(row.name)] = row
    names = list(dict.fromkeys(name for found in cases.values() for name in found if name != OURS))
    lines = []
    for (op, shape, dtype), found in cases.items():
        ours = found[OURS]
        ratios = [_ratio(found[name], ours) if name in found else "" for name in names]
        peaks = [row.peak_mb for row in found.values() if row.peak_mb is not None and not row.is_floor]
        memory = f"{max(ours.peak_mb, 0):,.0f} / {max(peaks):,.0f}" if ours.peak_mb is not None else ""
        lines.append([f"{op}, {_sizes(shape)}, {dtype}", f"**{number(ours.median_ms)}**", *ratios, memory])
    return _markdown(["", "**hyperkernels**, ms", *names, "extra MB, ours / most"], lines)


def compiled_table(kernels: list[dict[str, Any]], family: str, target: str, dtype: str) -> str:
    """A line a kernel and tile: registers, shared memory and the blocks at once on a multiprocessor, their ranges over
    the options that were compiled."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in kernels:
        of, name = entry["kernel"].split(".")
        if (of, entry["target"], entry["dtype"]) == (family, target, dtype):
            found.setdefault((name, entry["tile"], entry["warps"]), []).append(entry)

    def spread(entries: list[dict[str, Any]], key: str, unit: int = 1) -> str:
        values = [entry[key] / unit for entry in entries if key in entry]
        if not values:
            return ""
        low, high = min(values), max(values)
        return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} - {high:.0f}"

    lines = [
        [name, tile, str(warps or ""), *(spread(e, "registers"), spread(e, "shared", 1024), spread(e, "blocks"))]
        for (name, tile, warps), e in sorted(found.items())
    ]
    return _markdown(["kernel", "tile", "warps", "registers", "shared, KB", "blocks / multiprocessor"], lines)


def ranks_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            *(f"{row[name]:,}" for name in ("classes", "ranks", "size")),
            f"{row['ranks'] * row['rows']}",
            "all" if row["sample_rate"] == 1 else f"{row['sample_rate']:.0%}",
            *(f"{row[name]:,.1f}" for name in ("weight_mib", "peak_mib", "predicted_mib", "received_kib")),
        ]
        for row in rows
    ]
    sizes = ["classes", "ranks", "D", "N", "sampled"]
    found = ["weight of a rank, MiB", "peak of a step above it, MiB", "by the formulas, MiB", "received, KiB"]
    return _markdown(sizes + found, lines)


def _family(name: str) -> str:
    """One name for a peer's several functions and for the floors."""
    return next((family for family in ("floor", "pytorch-metric-learning") if name.startswith(family)), name)


def _name(name: str) -> str:
    if name == OURS:
        return f"**{OURS}**"
    return NAMES.get(name, f"{OURS}, {name.strip()}" if name.startswith(" ") else name)


def _figures(row: Row, ours: Row) -> list[str]:
    if row.out_of_memory:
        return ["out of memory", "", "", "", ""]
    return [
        number(row.median_ms),
        _ratio(row, ours),
        "" if row.over_floor is None else f"{row.over_floor:.2f}",
        "" if row.peak_mb is None or row.is_floor else f"{max(row.peak_mb, 0):,.0f}",
        "" if row.error is None else f"{row.error:.1e}",
    ]


def _ratio(row: Row, ours: Row) -> str:
    return "out of memory" if row.out_of_memory else f"{row.median_ms / ours.median_ms:.2f}x"


def _sizes(shape: str) -> str:
    sizes = re.findall(r"(\w+)=([\d.]+)", shape)
    return ", ".join(f"{name} = {int(size):,}" if size.isdigit() else f"{name} = {size}" for name, size in sizes)


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])


def written(text: str) -> str:
    """The text with every table as the results have it."""

    def table(block: re.Match[str]) -> str:
        opening, kind, wanted, closing = block.groups()
        file, *keys = (part.strip() for part in wanted.split(";"))
        if kind == "compiled":
            return opening + compiled_table(json.loads((RESULTS / file).read_text())["kernels"], *keys) + closing
        if kind == "ranks":
            return opening + ranks_table(json.loads((RESULTS / file).read_text())["rows"]) + closing
        ops, shapes, dtypes = ([part.strip() for part in key.split("|") if part.strip()] for key in keys)
        _, rows = read_json(RESULTS / file)
        mine = [
            row
            for row in rows
            if all(not allowed or value in allowed for allowed, value in
                   ((ops, row.op), (shapes, row.shape), (dtypes, row.dtype)))
        ]  # fmt: skip
        mine.sort(key=lambda row: ops.index(row.op) if ops else 0)
        if not mine:
            raise SystemExit(f"no such rows in {file}: {wanted}")
        return opening + (rows_table(mine) if kind == "rows" else cases_table(mine)) + closing

    return BLOCK.sub(table, text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    stale = []
    for page in pages():
        before = page.read_text()
        after = written(before)
        if after != before:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(after)
    if "--check" in sys.argv and stale:
        sys.exit(f"not what the results say: {', '.join(stale)}; run python -m bench.docs")
    print(*stale, sep="\n")


if __name__ == "__main__":
    main()
