"""``python -m bench [family ...]``: times, rates, memory and errors of every kernel beside its peers and its floor.

A family is margin_softmax, pair_mining, unit_norm, sphere or optim; default: all. ``--quick`` takes seconds, the
default minutes, ``--full`` adds the sweeps and the large shapes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .progress import PROGRESS

HERE = Path(__file__).resolve().parent
FAMILIES = tuple(sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="family", help=f"{', '.join(FAMILIES)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", action="append", default=[], help="only cases of this dtype; may be given again")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_const", dest="level", const="quick", default="default")
    level.add_argument("--full", action="store_const", dest="level", const="full")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="the demo's report folder: its trained head alone"
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="only cases whose names match, as pytest's -k")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw pictures there")
    arguments = parser.parse_args()
    unknown = set(arguments.families) - set(FAMILIES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(FAMILIES)}")
    if arguments.device == "cpu":  # a GPU is looked for before anything is said
        PROGRESS.start("finding out what is installed")
    import pytest  # it takes a while, and its plugins longer

    quiet = ["-q", "-s", "--no-header", "--benchmark-quiet", "--benchmark-disable-gc", "-p", "no:cacheprovider"]
    quiet += ["-W", "ignore::DeprecationWarning"]  # of torch, by peers
    options = [f"--device={arguments.device}", f"--level={arguments.level}"]
    options += [f"--dtype={dtype}" for dtype in arguments.dtype]
    options += [f"--{name}={path}" for name in ("checkpoint", "json", "plots") if (path := getattr(arguments, name))]
    options += ["-k", arguments.k] if arguments.k else []
    if arguments.checkpoint:
        arguments.families = ["margin_softmax"]
    files = [str(HERE / f"bench_{family}.py") for family in arguments.families or FAMILIES]
    return pytest.main([*quiet, *options, *files])


if __name__ == "__main__":
    sys.exit(main())
