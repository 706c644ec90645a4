"""Every pair op as a function of its tile alone, and the tiles that none of them takes."""

import pytest
import torch

import hyperkernels  # noqa: F401

from . import REFUSED
from .pair_selection_kernel_cases import make

N = 128
WRONG = (-(2**63), -1, 0, 4097, 2**31, 2**62, 2**63 - 1)
NAMES = (
    "pair_top_k", "pair_count", "pair_list", "pair_sample", "pair_bins", "pair_bins_backward", "pair_statistics",
    "pair_statistics_backward",
)  # fmt: skip


def run(name, suffix, *tile):
    """The results of an op for the CPU, or with the suffix "_triton" of its twin in the interpreter."""
    problem = make(n=N, m=N, labels="none", dtype=torch.float32)
    numbers, edges = torch.ones(4, N), (torch.zeros(0), torch.zeros(N + 1, dtype=torch.int64))
    no_columns = (False, None, None, None, None)
    before, after = {
        "pair_top_k": ((N,), ()),
        "pair_count": ((), ()),
        "pair_list": ((torch.arange(N + 1) * N, N * N), ()),
        "pair_sample": ((2, 0, "exponential", 1.0, 0.0, 1.0), ()),
        "pair_bins": (edges, ()),
        "pair_bins_backward": ((*edges, torch.ones(N)), (True, True)),
        "pair_statistics": ((None, None, *no_columns, True, True, "none", 0.0, 0.0), ()),
        "pair_statistics_backward": (
            (numbers, None, None, numbers[0], *no_columns, None, None, "none", 0.0, 0.0), (True, True)
        ),
    }[name]  # fmt: skip
    results = getattr(torch.ops.hyperkernels, name + suffix)(*problem, *before, *tile, *after)
    return results if isinstance(results, tuple) else (results,)


def check_refused(name, suffix=""):
    for size in WRONG:
        with pytest.raises(REFUSED, match=rf"row_tile must be in \[1, 4096\]; got {size}"):
            run(name, suffix, size, 128)
        with pytest.raises(REFUSED, match=rf"column_tile must be in \[1, 4096\]; got {size}"):
            run(name, suffix, 128, size)
