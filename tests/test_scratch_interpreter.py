"""Under FakeTensorMode the Triton launchers allocate what a run does, and launch nothing: a memory tracker sees the
scratch of a step before there is a GPU."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

import hyperkernels as hk
from hyperkernels._ops import OPERATIONS

pytestmark = pytest.mark.interpreter

FACTORIES = {"empty", "empty_like", "new_empty", "new_full", "new_zeros", "zeros", "zeros_like", "full", "full_like"}


class Allocations(TorchDispatchMode):
    """Shapes and dtypes of what is allocated in turn, also inside the launchers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "hyperkernels":
            with self:
                return OPERATIONS[name.removesuffix("_triton")].launch(*args)
        out = function(*args, **(kwargs or {}))
        if name in FACTORIES and out.numel():  # the interpreter makes empty ones of its own
            self.seen.append((name, tuple(out.shape), out.dtype))
        return out


def rows(n, d, dtype=torch.float32):
    return torch.randn(n, d).to(dtype).requires_grad_()


def labels(n, classes):
    return torch.arange(n) % classes


def head(**options):
    dtype = options.pop("dtype", torch.float32)
    return hk.margin_softmax_loss(rows(20, 24, dtype), rows(70, 24, dtype), labels(20, 70), scale=8.0, **options)


def residual():
    return hk.sphere.residual(rows(9, 40), rows(9, 40), torch.full((40,), 0.1, requires_grad=True)).sum()


STEPS = {
    "head": lambda: head(margin=hk.margins.ArcFace()),
    "head in float16, centres": lambda: head(dtype=torch.float16, sub_centers=2, margin=hk.margins.MVSoftmax()),
    "head of sampled classes": lambda: head(classes=torch.arange(70)),
    "SFace": lambda: hk.sface_loss(rows(20, 24), rows(70, 24), labels(20, 70)),
    "SupCon": lambda: hk.losses.supcon(rows(20, 24), labels(20, 9)),
    "circle in float16": lambda: hk.losses.circle(rows(20, 24, torch.float16), labels(20, 9)).float(),
    "distances": lambda: hk.losses.multi_similarity(rows(20, 24), labels(20, 9), similarity="euclidean"),
    "other rows": lambda: hk.losses.info_nce(rows(33, 24), ref=rows(33, 24)),
    "residual": residual,
    "unit_norm": lambda: hk.unit_norm(rows(9, 40)).sum(),
    "segments": lambda: hk.sphere.segment_mean(rows(40, 24), labels(40, 5), 5)[0].sum(),
}  # fmt: skip


def step(name):
    with hk.backend("triton"):
        STEPS[name]().backward()


@pytest.mark.parametrize("name", STEPS)
def test_a_dry_run_allocates_what_a_run_does(name):
    with Allocations() as run:
        step(name)
    with FakeTensorMode(), Allocations() as dry:
        step(name)
    assert run.seen and dry.seen == run.seen


def test_a_memory_tracker_sees_the_scratch():
    """Beyond x, weight, their gradients and numbers a row or class there is one workspace, and it is seen."""
    n, classes, d = 256, 200_000, 64
    with FakeTensorMode(), MemTracker() as tracker:
        x, weight = rows(n, d), rows(classes, d)
        with hk.backend("triton"):
            hk.margin_softmax_loss(x, weight, torch.zeros(n, dtype=torch.int64)).backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    held = 2 * 4 * d * (n + classes)
    assert 128 * 2**20 <= peak - held < 128 * 2**20 + 4 * classes * 8 + 4 * n * d * 64
