"""Every launch of the unit norm."""

import pytest
import torch

from tests.support.launchers import launchers

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.rehearsal


def run(x, eps=1e-12):
    launchers.unit_norm(x, eps)
    launchers.unit_norm_backward(x, x, eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 511, 1024, 20000])
def test_widths(dim, dtype):
    run(torch.ones(1, dim, dtype=dtype))
    launchers.unit_norm_(torch.ones(1, dim, dtype=dtype), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(dtype):
    for rows, dim in ((0, 5), (5, 0)):
        run(torch.ones(rows, dim, dtype=dtype))
    for eps in (0.0, 1.0, 1e300):
        run(torch.ones(3, 5, dtype=dtype), eps)
    run(torch.ones(3, 6, dtype=dtype)[1:, 1:])


def test_more_than_2_to_the_31_elements():
    run(torch.ones(2**22, 1024, dtype=torch.bfloat16, device="meta"))
    run(torch.ones(2**33, 1, dtype=torch.bfloat16, device="meta"))
