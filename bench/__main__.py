"""``python -m bench [family ...] [--device cpu|cuda] [--quick] [--json FILE] [--plots DIR]``: times, rates, memory."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from . import heads, pairs
from .harness import environment, table, write_json

FAMILIES = ("margin_softmax", "pair_mining", "unit_norm")
# Which rows are drawn, against which size.
PLOTS = {
    "margin_softmax": ("margin_softmax ArcFace forward+backward", "C", "classes C"),
    "pair_mining": ("multi_similarity forward+backward", "N", "embeddings N"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("families", nargs="*", help=f"{', '.join(FAMILIES)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes and few samples")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write pictures there")
    arguments = parser.parse_args()
    unknown = set(arguments.families) - set(FAMILIES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(FAMILIES)}")
    facts = environment(arguments.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    absent = sorted({*heads.absent_peers(arguments.device), *pairs.absent_peers()})
    if absent:
        print(f"not installed, and so not compared: {', '.join(absent)}", end="\n\n")
    collected = []
    for family in arguments.families or FAMILIES:
        module = importlib.import_module(f"bench.bench_{family}")
        for rows in module.rows(arguments.device, arguments.quick):
            print(table(rows, module.OURS), end="\n\n", flush=True)
            collected += rows
            if arguments.json:  # every time: an interrupted run keeps what it measured
                write_json(arguments.json, collected, arguments.device, "python -m bench " + " ".join(sys.argv[1:]))
        if hasattr(module, "summary"):
            print(module.summary(collected), end="\n\n", flush=True)
        if arguments.plots and family in PLOTS:
            from .plots import against_size

            op, size, label = PLOTS[family]
            mine = [row for row in collected if row.op == op]
            mine = [row for row in mine if row.dtype == mine[0].dtype]
            machine = facts.get("gpu") or f"{facts['threads']} threads of {facts['processor']}"
            caption = f"{op}, {mine[0].dtype}, {machine}"
            against_size(mine, size, label, arguments.plots / f"{family}_{arguments.device}.png", caption)


if __name__ == "__main__":
    main()
