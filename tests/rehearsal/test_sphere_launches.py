"""Every launch of the geometry of the sphere."""

import pytest
import torch

from tests.support import sphere_triton_cases as cases
from tests.support.launchers import launchers

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.rehearsal


def run(name, given, needs=None):
    out = cases.forward(name, given)
    cases.backward(name, torch.ones_like(out), given, needs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_shapes(name, dtype):
    for rows, dim in ((1, 1), (5, 600), (2, 20000), (0, 3), (3, 0)):
        run(name, cases.inputs(name, rows, dim, dtype))


@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_options(name):
    given = cases.inputs(name, 6, 5, torch.bfloat16, scales=3)
    run(name, given)
    for needed in range(len(given)):
        run(name, given, [i == needed for i in range(len(given))])
    run(name, [None if x is None else x.expand(6, 5) if len(x) == 1 else x for x in given])


@pytest.mark.parametrize("dtype", DTYPES)
def test_segment_sum(dtype):
    for rows, dim, segments in ((1, 1, 1), (0, 3, 2), (300, 300, 2), (5, 3, 5)):
        labels = torch.arange(rows) % segments
        offsets = torch.bincount(labels, minlength=segments).cumsum(0)
        launchers.segment_sum(
            torch.ones(rows, dim, dtype=dtype), labels, labels.argsort(), torch.nn.functional.pad(offsets, (1, 0))
        )
