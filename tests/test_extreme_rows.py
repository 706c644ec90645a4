"""What is called finite is finite and right at the ends of the dtypes' ranges."""

import pytest
import torch

import hyperkernels as hk
from tests.support import extreme_rows_cases as cases


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("rows", cases.ROWS)
@pytest.mark.parametrize("name", cases.FUNCTIONS)
def test_extreme_rows(name, rows, both, backend):
    cases.check(name, rows, both, backend)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e37), (torch.float64, 1e300)])
def test_a_long_velocity_retracts_to_its_direction(dtype, size, backend):
    x, v = torch.randn(2, 5, 7, dtype=torch.float64)
    with hk.backend(backend):
        found = hk.sphere.retract(x.to(dtype), (v * size).to(dtype))
    wanted = hk.sphere.tangent(x, v)
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=16 * torch.finfo(dtype).eps)
