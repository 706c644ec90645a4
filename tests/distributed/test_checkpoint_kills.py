"""kill -9 and full disks while a checkpoint is written: one before it is whole, and the run ends as if undisturbed."""

import os
import random
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

import hyperkernels as hk

from . import checkpoint_kill_cases as cases

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def elsewhere(function, *arguments):
    """In a process that has no threads."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.parametrize(("size", "rounds"), [(1, 20), (2, 14)])
def test_kills_while_saving(tmp_path, size, rounds):
    while_saving = elsewhere(cases.killed, tmp_path, size, rounds, random.randrange(10**6))
    assert while_saving >= rounds // 5  # the moments are of the kind that is meant


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_without_room(tmp_path, size):
    elsewhere(cases.without_room, tmp_path, size)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    """The checkpoint before is there, and the folder can be used when there is room again."""
    model = torch.nn.Linear(150, 1000)
    hk.distributed.save(small_disk / "step-1", model, extra={"step": 1})
    for _ in range(2):
        with pytest.raises(OSError, match=f"the disk is full: '{small_disk}/step-2'"):
            hk.distributed.save(small_disk / "step-2", model, extra={"step": 2})
        assert hk.distributed.latest(small_disk) == small_disk / "step-1"
    for path in (small_disk / "step-1").iterdir():
        path.unlink()
    hk.distributed.save(small_disk / "step-2", model, extra={"step": 2})
    assert hk.distributed.load(hk.distributed.latest(small_disk), model) == {"step": 2}


def test_a_full_disk_under_a_file(small_disk):
    path = small_disk / "checkpoint.pt"
    for size, fits in ((100_000, True), (300_000, False)):
        try:
            with hk.distributed.files.whole(path) as file:
                torch.save(torch.zeros(size), file)
        except OSError as error:
            assert not fits and "the disk is full" in str(error) and error.filename == str(path)
        else:
            assert fits
    assert torch.load(path).shape == (100_000,) and [other.name for other in small_disk.iterdir()] == [path.name]
