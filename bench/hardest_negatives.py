"""``python -m bench.hardest_negatives [N]``: the hardest negative of each of N embeddings among all others, once.

Prints time and peak memory, and the time that the bare products would take: a few thousand rows of them are timed
before and after, and scaled up.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import hyperkernels as hk

from .bench_pair_mining import DIM
from .harness import OURS, Row
from .memory import peak_bytes
from .report import environment, table, write_json

PROBE = 4_096  # rows of the bare product that is timed


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hardest_negatives", description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    n = arguments.n
    x, labels = torch.nn.functional.normalize(torch.randn(n, DIM)), torch.randint(n // 10, (n,))
    probe = x[: min(n, PROBE)]

    def ours(x: torch.Tensor, labels: torch.Tensor) -> hk.PairStatistics:
        return hk.pair_statistics(x, labels, select="negative", similarity="dot", statistics=("extremes",))

    ours(x[:2048], labels[:2048])
    probes = [_seconds(lambda: probe @ x.T) for _ in range(2)]
    found: list[hk.PairStatistics] = []
    seconds: list[float] = []
    peak = peak_bytes(lambda: seconds.append(_seconds(lambda: found.append(ours(x, labels)))))
    probes += [_seconds(lambda: probe @ x.T) for _ in range(2)]
    chosen = torch.randint(n, (256,))
    s = (x[chosen].double() @ x.double().T).masked_fill_(labels[chosen, None] == labels, -torch.inf)
    error = float((s.amax(1) - s.gather(1, found[0].argmax[chosen, None])[:, 0]).max())
    floor, work = min(probes) * n / len(probe), 2.0 * n * n * DIM
    common = {"op": "hardest negatives", "shape": f"N={n} D={DIM}", "dtype": "float32", "rate_unit": "GFLOP/s"}

    def row(name: str, t: float, **more) -> Row:
        ms = t * 1e3
        times = {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "samples": 1, "rate": work / t / 1e9}
        times |= {"over_floor": t / floor, "over_ours": t / seconds[0]}
        return Row(name=name, **common, **times, **more)

    rows = [
        row(OURS, seconds[0], peak_mb=peak / 1e6, error=error),
        row(f"floor: one bare GEMM, {len(probe)} rows of it scaled up", floor, is_floor=True),
    ]
    facts = environment("cpu")
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    print(table(rows))
    print(f"the matrix of similarities would take {4e-9 * n * n:,.0f} GB; the embeddings take {4e-9 * n * DIM:.2f} GB")
    if arguments.json:
        write_json(arguments.json, rows, facts, f"python -m bench.hardest_negatives {n}")


if __name__ == "__main__":
    main()
