"""The command line: a campaign of random cases, or one case again.

python -m tests.fuzz --budget 300
python -m tests.fuzz --op pair_top_k --budget 60
python -m tests.fuzz --op pair_top_k --seed 17      # one case, in this process
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hostile calls of every op.")
    parser.add_argument("--op", action="append", metavar="NAME", help="this op alone; may be given several times")
    parser.add_argument("--seed", type=int, help="with one --op: run this one case here, and say what it was")
    parser.add_argument("--first-seed", type=int, help="where a campaign begins; otherwise anywhere")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS", help="of a campaign (default 300)")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="children at a time")
    parser.add_argument("--patience", type=float, default=120, metavar="SECONDS", help="a longer case hangs")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    if given.seed is not None:
        if not given.op or len(given.op) != 1:
            sys.exit("--seed needs one --op")
        return replay(given.op[0], given.seed)
    from .processes import campaign
    from .registry import ops

    names = given.op or list(ops())
    unknown = sorted(set(names) - set(ops()))
    if unknown:
        sys.exit(f"no such ops: {', '.join(unknown)}")
    seed = random.randrange(2**31) if given.first_seed is None else given.first_seed
    print(f"{len(names)} ops for {given.budget:.0f} s, seeds from {seed}", flush=True)
    begin = time.monotonic()
    tally = campaign(names, seed, given.budget, given.jobs, given.patience)
    returned = sum(n for counts in tally.ended.values() for ended, n in counts.items() if ended.endswith("returned"))
    print(
        f"{tally.cases} cases in {time.monotonic() - begin:.0f} s: {returned} returned, {tally.cases - returned} "
        f"refused, {len(tally.found)} findings"
    )
    silent = sorted(set(names) - {name for name, counts in tally.ended.items() if counts["valid returned"]})
    if silent:
        print(f"without a valid call in this time: {', '.join(silent)}")
    return 1 if tally.found else 0


def replay(name: str, seed: int) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1" if name.endswith("triton") else "0")
    from . import case, memory
    from .processes import MEMORY

    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        memory.limit(MEMORY)
    call = case.make(name, seed)
    print(f"{name}, a call of kind {call.kind}:")
    for argument, value in call.arguments.items():
        print(f"  {argument} = {described(value)}", flush=True)
    verdict = case.run(name, seed)
    print(verdict.ended, *verdict.faults, sep="\n")
    return 1 if verdict.faults else 0


def described(value: object) -> str:
    import torch

    if isinstance(value, list):
        return "[" + ", ".join(map(described, value)) + "]"
    if not isinstance(value, torch.Tensor):
        return repr(value)
    text = f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
    if value.layout != torch.strided or value.is_meta:
        return f"{text} {value.device} {value.layout}"
    text += f" strides {value.stride()} offset {value.storage_offset()}"
    return f"{text}: {value.flatten()[:8].tolist()}{'...' if value.numel() > 8 else ''}"


if __name__ == "__main__":
    sys.exit(main())
