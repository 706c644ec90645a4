"""Run checks on several gloo processes of this machine: one launch, many checks, each against one process's result."""

import datetime
import os
import pickle
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = datetime.timedelta(seconds=60)


def _work(rank, world_size, folder, checks, last):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    alone = [dist.new_group([other]) for other in range(world_size)][rank]
    failures = {}
    for name, check in [*checks.items(), *([last] if last else [])]:
        if last and name == last[0]:
            Path(folder, f"failures{rank}").write_bytes(pickle.dumps(failures))
        torch.manual_seed(sum(map(ord, name)))  # all ranks draw alike: each makes the whole problem
        try:
            check(alone)
        except Exception:
            failures[name] = traceback.format_exc()
            break  # the ranks may be out of step
    Path(folder, f"failures{rank}").write_bytes(pickle.dumps(failures))
    os._exit(0)  # without waiting for a rank that is lost


def launch(world_size, checks, last=None):
    """Run `check(alone)` for every named check on all ranks, `alone` being a group of one rank for what is compared
    with; fail with all that went wrong. In `last`, a name and a check, ranks may die."""
    context = mp.get_context("forkserver")
    # Imported once, and not by every rank of every launch. DistributedDataParallel and dispatch modes import the last.
    context.set_forkserver_preload(["pytest", "hyperkernels", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, folder, checks, last)
        processes = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(world_size)]
        for process in processes:
            process.start()
        failures = []
        for rank, process in enumerate(processes):
            process.join(240)
            process.kill()
            found = Path(folder, f"failures{rank}")
            results = pickle.loads(found.read_bytes()) if found.exists() else {"": f"ended with {process.exitcode}"}
            failures += [f"{name}, rank {rank} of {world_size}\n{text}" for name, text in results.items()]
        assert not failures, "\n".join(failures)
