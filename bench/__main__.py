"""``python -m bench [family ...] [--device cpu|cuda] [--quick] [--json FILE] [--plots DIR]``: times, rates, memory."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from .harness import environment, table, write_json
from .heads import absent_peers

FAMILIES = {"cpu": ("margin_softmax", "unit_norm"), "cuda": ("margin_softmax", "unit_norm")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("families", nargs="*", help="margin_softmax, unit_norm; default: all that run there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes and few samples")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write pictures there")
    arguments = parser.parse_args()
    known = FAMILIES[arguments.device]
    unknown = set(arguments.families) - set(known)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(known)} on {arguments.device}")
    facts = environment(arguments.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    absent = absent_peers(arguments.device)
    if absent:
        print(f"not installed, and so not compared: {', '.join(absent)}", end="\n\n")
    collected = []
    for family in arguments.families or known:
        module = importlib.import_module(f"bench.bench_{family}")
        for rows in module.rows(arguments.device, arguments.quick):
            print(table(rows, module.OURS), end="\n\n", flush=True)
            collected += rows
        if hasattr(module, "summary"):
            print(module.summary(collected), end="\n\n", flush=True)
        if arguments.plots and family == "margin_softmax":
            from .plots import against_classes

            mine = [row for row in collected if row.op == "margin_softmax ArcFace forward+backward"]
            mine = [row for row in mine if row.dtype == mine[0].dtype]
            caption = f"{mine[0].op}, {mine[0].dtype}, {facts['threads']} threads of {facts['processor']}"
            against_classes(mine, arguments.plots / f"{family}_{arguments.device}.png", caption)
    if arguments.json:
        write_json(arguments.json, collected, arguments.device, "python -m bench " + " ".join(sys.argv[1:]))


if __name__ == "__main__":
    main()
