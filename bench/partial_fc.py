"""``python -m bench.partial_fc [--json FILE]``: steps of ``hk.nn.PartialFC`` on gloo processes of this machine: the
bytes that travel, the peak memory of a rank, the time. ``--setup W C D n r`` takes another: ranks, classes, embedding
size, rows of each rank, share of the classes sampled."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from tabulate import tabulate
from tqdm import tqdm

import hyperkernels as hk

from .memory import peak_bytes
from .report import environment

COLLECTIVES = ("all_gather_single", "all_gather_into_tensor", "all_reduce", "all_to_all_single")


def received(call: Any) -> int:
    """Bytes that the collectives leave on this rank during the call."""
    total, originals = 0, {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}

    def counting(name: str) -> Any:
        def collective(output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            nonlocal total
            total += output.numel() * output.element_size()
            return originals[name](output, *arguments, **options)

        return collective

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        call()
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)
    return total


class Setup(NamedTuple):
    ranks: int
    classes: int
    size: int
    rows: int  # of each rank
    sample_rate: float


SETUPS = (
    Setup(2, 200_000, 128, 64, 1.0),
    Setup(2, 800_000, 128, 64, 1.0),
    Setup(4, 800_000, 128, 64, 1.0),
    Setup(2, 1_000_000, 512, 32, 1.0),
    Setup(2, 800_000, 128, 64, 0.1),
    Setup(2, 3_125_000, 512, 32, 0.1),  # the shard of a rank at 100 million classes on 64
)


def predicted_bytes(setup: Setup) -> float:
    """Of a step beyond the weight, in float32: gradient, cosines kept, gathered embeddings, statistics, the draw."""
    local, n = setup.classes / setup.ranks, setup.rows * setup.ranks
    part = max(round(setup.sample_rate * local), min(local, n))
    kept = min(4 * n * part, part * setup.size)
    draw = 32 * local if setup.sample_rate < 1 else 0
    return 4 * setup.size * part + max(kept, draw) + 12 * setup.size * n + (100 + 12 * setup.ranks) * n


def _rank(rank: int, store: str, setup: Setup, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=setup.ranks)
    head = hk.nn.PartialFC(setup.size, setup.classes, sample_rate=setup.sample_rate, batch_size=setup.rows)
    x = torch.randn(setup.rows, setup.size, requires_grad=True)
    target = torch.randint(setup.classes, (setup.rows,))

    def step() -> None:
        head.weight.grad = x.grad = None
        head(x, target).backward()

    step()
    travelled = received(step)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    head.weight.grad = x.grad = None
    dist.barrier()
    peak = peak_bytes(step)
    if rank == 0:
        found = {"weight_mib": head.weight.numel() * 4 / 2**20, "peak_mib": peak / 2**20}
        queue.put(found | {"received_kib": travelled / 2**10, "step_ms": statistics.median(times) * 1e3})
    dist.barrier()
    dist.destroy_process_group()


def measure(setup: Setup) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"file://{folder}/store", setup, queue)
        ranks = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(setup.ranks)]
        for process in ranks:
            process.start()
        found = queue.get(timeout=600)
        for process in ranks:
            process.join()
    return {**setup._asdict(), **found, "predicted_mib": predicted_bytes(setup) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.partial_fc", description=__doc__)
    parser.add_argument("--setup", nargs=5, metavar=("W", "C", "D", "n", "r"), help="another setup")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args()
    setups = SETUPS
    if options.setup:
        setups = (Setup(*map(int, options.setup[:4]), float(options.setup[4])),)
    rows = [measure(setup) for setup in tqdm(setups, disable=None)]
    print(tabulate(rows, headers="keys", floatfmt=",.1f", intfmt=","))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"command": "python -m bench.partial_fc", "environment": environment("cpu"), "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
