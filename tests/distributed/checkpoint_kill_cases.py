"""Runs on one or two ranks that are killed while they save, and go on. A process that is started anew for each would
take seconds; here one process, in which no thread has been started, forks them."""

import contextlib
import os
import random
import resource
import signal
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

import hyperkernels as hk
from tests.support.ranks import TIMEOUT

from . import checkpoint_cases as cases

STEPS = 5


def go_on(folder, rank, size, store, said, room=None):
    """From the latest checkpoint to the last step, with a checkpoint after each; leave what came out."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT)
    model, optimizer = cases.made("AdamW")
    found, step = hk.distributed.latest(folder), 0
    if found is not None:
        step = hk.distributed.load(found, model, optimizer)["step"]
    while step < STEPS:
        cases.train(model, optimizer, [step])
        step += 1
        if rank == 0:
            os.write(said, b"s")
        if room and rank == room[0] and step == room[1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        hk.distributed.save(f"{folder}/step-{step}", model, optimizer, extra={"step": step})
    state = [dict(model.state_dict()), optimizer.state_dict()["state"]]
    rows = torch.utils._pytree.tree_map(lambda value: value.to_local() if hasattr(value, "to_local") else value, state)
    torch.save(torch.utils._pytree.tree_map(plain, rows), f"{folder}/end-{rank}.pt")


def plain(value):
    return value.local_shards()[0] if hasattr(value, "local_shards") else value


class Run:
    """The ranks, each a fork of this process."""

    def __init__(self, folder, size, room=None):
        self.folder, self.store = (
            folder,
            f"{folder}/store-{time.monotonic_ns()}",
        )  # what dead ranks left in one is wrong
        self.said, write = os.pipe()
        self.children = [self.fork(rank, size, write, room) for rank in range(size)]
        os.close(write)

    def fork(self, rank, size, write, room):
        child = os.fork()
        if child:
            return child
        try:
            go_on(self.folder, rank, size, self.store, write, room)
            os._exit(0)
        except BaseException:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            Path(self.folder, f"error-{rank}").write_text(traceback.format_exc())
        finally:
            os._exit(1)

    def kill(self, ranks):
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.children[rank], signal.SIGKILL)

    def ended(self):
        """The exit statuses."""
        os.close(self.said)
        end = time.monotonic() + TIMEOUT.total_seconds() + 60
        found = {}
        while len(found) < len(self.children) and time.monotonic() < end:
            for child in self.children:
                if child not in found:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        found[child] = os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.kill(range(len(self.children)))
        assert len(found) == len(self.children), "a rank hangs"
        return list(found.values())


def ends(folder, size):
    return [torch.load(f"{folder}/end-{rank}.pt") for rank in range(size)]


def same(found, wanted):
    leaves, others = (torch.utils._pytree.tree_leaves(value) for value in (found, wanted))
    assert len(leaves) == len(others) > 10
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(leaves, others, strict=True)
    )


def undisturbed(folder, size):
    """(what came out, seconds of a save with the step before it)."""
    torch.set_num_threads(1)
    folder.mkdir()
    once = cases.made("AdamW")  # imports what the forks need, before they are forked
    hk.distributed.save(folder.parent / "once", *once)
    hk.distributed.load(folder.parent / "once", *once)
    start = time.monotonic()
    assert Run(folder, size).ended() == [0] * size
    return ends(folder, size), (time.monotonic() - start) / STEPS


def killed(folder, size, rounds, seed):
    """Random moments from the beginning of a save on; on two ranks one of them or both."""
    wanted, seconds = undisturbed(folder / "straight", size)
    draw = random.Random(seed)
    while_saving = 0
    for number in range(rounds):
        here = folder / f"run-{number}"
        here.mkdir()
        run = Run(here, size)
        saves = draw.randint(1, STEPS)
        for _ in range(saves):
            os.read(run.said, 1)
        time.sleep(draw.uniform(0, seconds))
        run.kill(draw.choice([[0], [1], [0, 1]]) if size == 2 else [0])
        run.ended()
        found = hk.distributed.latest(here)
        step = 0 if found is None else int(found.name.removeprefix("step-"))
        assert step >= saves - 1, f"seed {seed}, round {number}: step {step} after {saves} saves had begun"
        while_saving += (here / f"step-{step + 1}").exists()
        assert Run(here, size).ended() == [0] * size, [path.read_text() for path in here.glob("error-*")]
        assert same(ends(here, size), wanted), f"seed {seed}, round {number}"
    return while_saving


def without_room(folder, size):
    """The last rank has no room for its third checkpoint: all ranks say so, and the second is there."""
    wanted, _ = undisturbed(folder / "straight", size)
    here = folder / "run"
    here.mkdir()
    assert Run(here, size, room=(size - 1, 3)).ended() == [1] * size
    for rank in range(size):
        error = (here / f"error-{rank}").read_text().splitlines()[-1]
        assert error == f"OSError: [Errno 27] File too large: '{here}/step-3'", error
    assert hk.distributed.latest(here) == here / "step-2"
    assert Run(here, size).ended() == [0] * size
    assert same(ends(here, size), wanted)
