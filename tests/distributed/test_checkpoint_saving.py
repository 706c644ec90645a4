"""What ``hk.distributed.save`` refuses, and which checkpoint is the latest."""

import errno
import fcntl
import os

import numpy as np
import pytest
import torch

import hyperkernels as hk
from hyperkernels.distributed import files
from tests.support import room


def made(lr=0.1):
    model = torch.nn.Linear(2, 3)
    return model, torch.optim.SGD(model.parameters(), lr, momentum=0.9)


class Odd:
    pass


class WithState(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 3)

    def get_extra_state(self):
        return Odd()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"step": 1, "loss": np.float64(0.5)}, r"extra\['loss'\] .* got numpy.float64"),
        ({"history": [{"a": 1}, {"tar": [0.1, np.float32(2)]}]}, r"extra\['history'\]\[1\]\['tar'\]\[1\] .*float32"),
        ({"a": (1, Odd())}, r"extra\['a'\]\[1\] .*Odd"),
        ({"a": lambda: 1}, r"extra\['a'\] .*function"),
        ({np.int64(1): 2}, "a key of extra .*int64"),
        (np.zeros(2), "extra must .*ndarray"),
    ],
    ids=["float64", "nested", "class", "function", "key", "array"],
)
def test_extra_that_load_would_refuse(tmp_path, extra, message):
    """Before anything is written, and a checkpoint that is there stays."""
    with pytest.raises(TypeError, match=message):
        hk.distributed.save(tmp_path / "a", *made(), extra=extra)
    assert not (tmp_path / "a").exists()


def test_extra_that_load_takes(tmp_path):
    extra = {"step": 3, "rate": 0.1, "none": None, "flag": True, "t": (1, torch.ones(2)), 5: [b"a", "b"], "c": 1j}
    hk.distributed.save(tmp_path / "a", *made(), extra=extra)
    found = hk.distributed.load(tmp_path / "a", *made())
    assert torch.equal(found.pop("t")[1], torch.ones(2)) and extra.pop("t") and found == extra


def test_states_that_load_would_refuse(tmp_path):
    with pytest.raises(TypeError, match=r"optimizer\.0\.param_groups\.0\.lr .*float64"):
        hk.distributed.save(tmp_path / "a", *made(np.float64(0.1)))
    model, optimizer = made()
    optimizer.state[model.weight]["odd"] = Odd()
    with pytest.raises(TypeError, match=r"optimizer\.0\.state\.weight\.odd .*Odd"):
        hk.distributed.save(tmp_path / "a", model, optimizer)
    model = WithState()
    with pytest.raises(TypeError, match=r"model\._extra_state .*Odd"):
        hk.distributed.save(tmp_path / "a", model)
    assert not list(tmp_path.rglob("*.distcp"))


def test_what_the_caller_trusts_is_taken(tmp_path):
    """torch's own list of classes that a file may name."""
    kinds = [np.float64, type(np.dtype(np.float64)), np._core.multiarray.scalar, np.dtype]
    with torch.serialization.safe_globals(kinds):
        hk.distributed.save(tmp_path / "a", *made(np.float64(0.25)), extra={"loss": np.float64(0.5)})
        model, optimizer = made()
        assert hk.distributed.load(tmp_path / "a", model, optimizer) == {"loss": 0.5}
    assert optimizer.param_groups[0]["lr"] == 0.25
    with pytest.raises(ValueError, match=r"(?s)optimizer\.0\.param_groups\.0\.lr of the checkpoint .*numpy"):
        hk.distributed.load(tmp_path / "a", model, optimizer)


def test_a_checkpoint_is_not_written_over(tmp_path):
    model, optimizer = made()
    hk.distributed.save(tmp_path / "a", model, optimizer, extra={"step": 1})
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for extra in ({"step": 2}, {"step": np.float64(2)}):
        with pytest.raises((FileExistsError, TypeError)):
            hk.distributed.save(tmp_path / "a", model, optimizer, extra=extra)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused while the first writes, not after it was killed."""
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(RuntimeError, match=f"another process is writing to {tmp_path}"):
        hk.distributed.save(tmp_path, *made())
    os.close(handle)
    assert not list(tmp_path.iterdir())
    hk.distributed.save(tmp_path, *made())
    (tmp_path / ".metadata").unlink()
    hk.distributed.save(tmp_path, *made())  # the first has let go of it


@pytest.mark.parametrize("size", [100, 20_000, 300_000])
def test_no_room_for_a_file(tmp_path, size):
    """Whatever of torch meets the error first, it says what is wrong, and where."""
    model = torch.nn.Linear(1000, 100)
    with pytest.raises(OSError, match=f"File too large: '{tmp_path}/a'") as caught, room(size):
        hk.distributed.save(tmp_path / "a", model, extra={"step": 1})
    assert caught.value.errno == errno.EFBIG and hk.distributed.latest(tmp_path) is None


def test_a_full_disk_is_called_one(tmp_path):
    with pytest.raises(OSError, match=f"the disk is full: '{tmp_path}'") as caught, files.naming(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "no space")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")
    assert caught.value.errno == errno.ENOSPC


def saved(folder, *names):
    for age, name in enumerate(names):
        hk.distributed.save(folder / name, torch.nn.Linear(1, 1))
        os.utime(folder / name / ".metadata", (1e9 + age,) * 2)


def test_latest_by_number(tmp_path):
    """Copied files are of another age than the steps."""
    assert hk.distributed.latest(tmp_path) is None
    saved(tmp_path, "step-10", "step-9", "step-11")
    assert hk.distributed.latest(tmp_path) == tmp_path / "step-11"
    (tmp_path / "step-11" / ".metadata").unlink()
    assert hk.distributed.latest(tmp_path) == tmp_path / "step-10"


def test_latest_by_time(tmp_path):
    """Numbers of different kinds say nothing."""
    saved(tmp_path, "step-900", "epoch-2")
    assert hk.distributed.latest(tmp_path) == tmp_path / "epoch-2"
    saved(tmp_path, "best")
    os.utime(tmp_path / "best" / ".metadata", (2e9,) * 2)
    assert hk.distributed.latest(tmp_path) == tmp_path / "best"


def test_latest_is_complete(tmp_path):
    saved(tmp_path, "1", "2", "3", "4")
    (tmp_path / "4" / "__0_0.distcp").unlink()
    path = tmp_path / "3" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / ".metadata").touch()
    assert hk.distributed.latest(tmp_path) == tmp_path / "2"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_insightface_weights_of_another_kind(tmp_path, dtype):
    torch.save({"weight": torch.ones(6, 4).to(dtype)}, tmp_path / "a.pt")
    with pytest.raises(TypeError, match=r"a\.pt must be floating-point"):
        hk.distributed.load_insightface(hk.nn.PartialFC(4, 6), [tmp_path / "a.pt"])


def test_insightface_files_that_are_none(tmp_path):
    head = hk.nn.PartialFC(4, 6)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": Odd()}, tmp_path / "code.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name, error in (("list", TypeError), ("code", ValueError), ("junk", ValueError)):
        with pytest.raises(error, match=rf"{name}\.pt"):
            hk.distributed.load_insightface(head, [tmp_path / f"{name}.pt"])
