"""What pair losses over several ranks cost: the memory of a rank, and what travels."""

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import hyperkernels as hk

from .pair_cases import COMMUNICATIONS, SIZE, embeddings, labels, learned, step, two


class Watch(TorchDispatchMode):
    """The largest floating tensor that an op returns, and the reads from the device."""

    def __init__(self):
        super().__init__()
        self.largest, self.reads = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "unique_dim", "_unique2"):
            self.reads.append(func)
        for v in torch.utils._pytree.tree_leaves(out):
            if isinstance(v, torch.Tensor) and v.is_floating_point():
                self.largest = max(self.largest, v.numel())
        return out


def check_memory(alone):
    """In the ring no tensor is larger than a rank's own embeddings; nothing is read back but the sizes."""
    n, size, world = 4, 64, dist.get_world_size()
    for communication, most in (("ring", n * size), ("gather", world * n * size)):
        for arguments in (
            {"x": embeddings(n, size), "labels": labels(n)},
            {"x": embeddings(n, size), "ref": embeddings(n, size), "symmetric": True, "temperature": learned(0.3)},
        ):
            with Watch() as watch:
                step(hk.losses.info_nce, arguments, process_group=dist.group.WORLD, communication=communication)
            assert watch.largest == most and not watch.reads


def bytes_moved(loss, arguments, **options):
    """Bytes that the collectives of one step leave on this rank, by kind, in their order."""
    moved, originals = {}, {}

    def note(name, output):
        moved.setdefault(name, []).append(output.numel() * output.element_size())

    def counted(name):
        def call(output, *args, **kwargs):
            note(name, output)
            return originals[name](output, *args, **kwargs)

        return call

    def hop(ops):
        note("hop", next(one.tensor for one in ops if one.op is dist.irecv))
        return originals["batch_isend_irecv"](ops)

    names = [name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name)]
    for name in [names[0], "all_reduce", "all_to_all_single", "batch_isend_irecv"]:
        originals[name] = getattr(dist, name)
        setattr(dist, name, hop if name == "batch_isend_irecv" else counted(name))
    try:
        step(loss, arguments, process_group=dist.group.WORLD, **options)
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)
    return {name.removesuffix("_single").removesuffix("_into_tensor"): sizes for name, sizes in moved.items()}


def check_communication(alone):
    world, n, number = dist.get_world_size(), 4, 8  # bytes of a float64 or an int64
    exchanged, integers, reduced = world * 8 * number, world * n * number, world * 2 * number
    block = n * SIZE * number
    one_set = {"x": embeddings(n), "labels": labels(n)}
    assert bytes_moved(hk.losses.info_nce, one_set, communication="gather") == {
        "all_gather": [exchanged, integers, integers, world * block, reduced],
        "all_to_all": [world * block],
    }
    assert bytes_moved(hk.losses.info_nce, one_set, communication="ring") == {
        "all_gather": [exchanged, integers, integers, reduced],
        "hop": [block] * (world - 1) + [block] * (2 * world - 1),
    }
    two_views = two(n, n, symmetric=True, temperature=learned(0.3))
    columns = world * n * 2 * number  # count and log-sum-exp
    for communication in COMMUNICATIONS:
        found = bytes_moved(hk.losses.info_nce, two_views, communication=communication)
        gathered = communication == "gather"
        assert found["all_gather"] == [exchanged, integers, *([world * block] * gathered), reduced, reduced]
        assert found["all_to_all"] == [columns, columns, *([world * block] * gathered)]
        assert found["all_reduce"] == [number]
        assert found.get("hop", []) == ([] if gathered else [block] * (3 * world - 2))
