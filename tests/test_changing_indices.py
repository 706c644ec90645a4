"""Indices that another thread writes to while an op reads them: what is used is what was checked, and nothing crashes.

The op may raise or not, by what it finds; a process that reads or writes memory of others dies of a signal.
"""

import subprocess
import sys

import pytest

from tests.support import need_cpp_kernels

need_cpp_kernels()

SECONDS = 4
SCRIPT = """
import sys, threading, time
import torch
import hyperkernels
from tests.support import REFUSED

OPS, SEED = torch.ops.hyperkernels, torch.manual_seed(0)
N, D = 20000, 4
x = torch.randn(N, D)
none = torch.empty(0, dtype=torch.int32)
index = torch.randint(0, N, (N,))
order, offsets = torch.randperm(N), torch.arange(N + 1)
columns = torch.arange(0, 2 * N, 2)  # classes
scale = torch.full((N,), 8.0)

def problem(n):
    return (x[:n], x[:n], none, none, none, none, None, None, "all", "dot")

def head(x, weight, target, classes):
    return OPS.class_statistics(
        x, weight, target, scale[: len(x)], None, None, None, classes, "cosine", 1, True, True, 1e-12, -100, -1, 8, 0,
        0.0, None,
    )

def head_backward(target_center):
    weight = x[:64].repeat_interleave(2, 0)
    target = torch.zeros(N, dtype=torch.int64)
    return OPS.class_statistics_backward(
        scale, scale, scale, scale, x, weight, target, scale, None, None, None, None, scale, target_center, scale,
        scale, torch.ones(128), torch.empty(0), torch.empty(0, dtype=torch.uint8), "cosine", 2, True, True, 1e-12,
        -100, -1, 8, 0, True, True, False, False,
    )

wide = torch.arange(101) * 100
rows = torch.arange(N)
target = index % 64
CALLS = {
    "pair_values": (index, lambda: OPS.pair_values(x, None, index, order, "dot")),
    "pair_values_backward": (
        index, lambda: OPS.pair_values_backward(scale, x, None, index, order, "euclidean", True, True)
    ),
    "pair_list": (wide, lambda: OPS.pair_list(*problem(100), wide, 10000, 16, 16)),
    "pair_bins": (wide, lambda: OPS.pair_bins(*problem(100), scale[:10000], wide, 16, 16)),
    "pair_bins_backward": (
        wide,
        lambda: OPS.pair_bins_backward(*problem(100), scale[:10000], wide, scale[:10100], 16, 16, True, True),
    ),
    "segment_sum order": (order, lambda: OPS.segment_sum(x, index, order, offsets)),
    "segment_sum offsets": (offsets, lambda: OPS.segment_sum(x, index, order, offsets)),
    "sgd_rows_": (
        rows,
        lambda: OPS.sgd_rows_(
            x.clone(), None, torch.zeros(N, dtype=torch.int32), x, rows, None, None, None, 0.1, 0.0, 0.0, 0.0, False,
            False,
        ),
    ),
    "target": (target, lambda: head(x, x[:64], target, None)),
    "classes": (columns, lambda: head(x[:50], x.repeat(2, 1), target[:50], columns)),
    "target_center": (order, lambda: head_backward(order)),
}
tensor, call = CALLS[sys.argv[1]]
good = tensor.clone().clamp(0, 1) if sys.argv[1] == "target_center" else tensor.clone()
tensor.copy_(good)
call()
stop = False

def write():
    while not stop:
        at = int(torch.randint(0, len(tensor), ()))
        tensor[at] = 2**45
        tensor[at] = good[at]

writer = threading.Thread(target=write)
writer.start()
end, calls, refused = time.monotonic() + float(sys.argv[2]), 0, 0
while time.monotonic() < end:
    calls += 1
    try:
        call()
    except (IndexError, *REFUSED):
        refused += 1
stop = True
writer.join()
print(calls, refused)
"""
NAMES = (
    "pair_values", "pair_values_backward", "pair_list", "pair_bins", "pair_bins_backward", "segment_sum order",
    "segment_sum offsets", "sgd_rows_", "target", "classes", "target_center",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_crashes(name):
    command = [sys.executable, "-c", SCRIPT, name, str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)
    calls, refused = map(int, done.stdout.split())
    assert calls > refused, "no call got past its checks"
