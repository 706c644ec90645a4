"""Every launch of the class softmax."""

import pytest
import torch

from hyperkernels.kernels.margin_softmax.negatives import KINDS
from hyperkernels.kernels.margin_softmax.triton.kernels import tile_classes
from tests.support import margin_softmax_kernel_cases as cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.rehearsal


def run(n, c, d, dtype=torch.bfloat16, kind="cosine", sub_centers=1, skip_budget=0.0, sampled=None, **options):
    """The statistics and every gradient; `sampled`: how many of the classes take part."""
    case = cases.make(n, c, d, kind, sub_centers, dtype=dtype, **options)
    if sampled:
        case.classes = torch.arange(sampled)
        case.target.fill_(0)
        case.class_scale, case.bias = (None if t is None else t[:sampled] for t in (case.class_scale, case.bias))
    if skip_budget:
        case.gradients[3].zero_()
    rest = (tile_classes(d, dtype, sub_centers), 0, skip_budget, None)
    cases.run(case, lambda *problem: torch.ops.hyperkernels.class_statistics_triton(*problem, *rest))


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(dtype):
    for shape in ((1, 1, 1), (0, 5, 8)):
        run(*shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tiles(dtype):
    run(7, 1000, 100, dtype)


@pytest.mark.parametrize("turn", range(len(KINDS)), ids=lambda turn: list(KINDS)[turn])
def test_every_kind(turn):
    """The dtypes take turns, and so do the numbers that a class may have."""
    kind, numbers = list(KINDS)[turn], {"class_scale": turn % 3 != 0, "bias": turn % 3 != 1}
    run(3, 5, 8, DTYPES[turn % 4], kind, ignored=1, absent=1, **numbers)


@pytest.mark.parametrize(
    "options",
    [
        {"n": 1, "c": 1, "d": 1, "sub_centers": 3},
        {"n": 3, "c": 50, "d": 64, "sub_centers": 3, "sampled": 1, "dtype": torch.float64},
        {"n": 3, "c": 50, "d": 64, "sampled": 1, "class_scale": True, "dtype": torch.float32},
        {"n": 3, "c": 50, "d": 64, "sampled": 7, "bias": True, "dtype": torch.float16},
        {"n": 200, "c": 3000, "d": 64, "skip_budget": 0.1},
        {"n": 1, "c": 300, "d": 3, "skip_budget": 0.1, "sub_centers": 2, "sampled": 200, "dtype": torch.float16},
        {"n": 2, "c": 3, "d": 1, "normalize_x": False, "dtype": torch.float32},
        {"n": 2, "c": 3, "d": 1, "normalize_weight": False, "class_scale": True, "dtype": torch.float16},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options(options):
    run(**options)
