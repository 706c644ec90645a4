"""``python -m bench.partial_fc [--ranks W] [--classes C ...] [--rows n] [--size D] [--sample-rate r]``: a step of
``hk.nn.PartialFC`` on gloo processes of this machine: the bytes that travel, the peak memory of a rank, the time."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from tabulate import tabulate

import hyperkernels as hk

from .memory import peak_bytes

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


def _rank(rank: int, store: str, options: argparse.Namespace, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.ranks)
    for classes in options.classes:
        head = hk.nn.PartialFC(options.size, classes, sample_rate=options.sample_rate, batch_size=options.rows)
        x = torch.randn(options.rows, options.size, requires_grad=True)
        target = torch.randint(classes, (options.rows,))

        def step(head: hk.nn.PartialFC = head, x: torch.Tensor = x, target: torch.Tensor = target) -> None:
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
            queue.put((classes, head.weight.numel() * 4, peak, travelled, statistics.median(times)))
        del head, x
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.partial_fc", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--rows", type=int, default=64, help="of each rank")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        ranks = [context.Process(target=_rank, args=(rank, store, options, queue)) for rank in range(options.ranks)]
        for process in ranks:
            process.start()
        rows = [queue.get() for _ in options.classes]
        for process in ranks:
            process.join()
    print(f"{options.ranks} ranks, {options.rows} rows each, D = {options.size}, sample_rate {options.sample_rate}")
    table = [
        (classes, weight / 2**20, peak / 2**20, travelled / 2**10, seconds * 1e3)
        for classes, weight, peak, travelled, seconds in rows
    ]
    headers = ["classes", "weight of a rank, MiB", "peak of a step above it, MiB", "received, KiB", "step, ms"]
    print(tabulate(table, headers, floatfmt=",.1f", intfmt=","))


if __name__ == "__main__":
    main()
