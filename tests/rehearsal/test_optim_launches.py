"""Every launch of the optimisers."""

import pytest
import torch

from tests.support import optim_cases as rows
from tests.support import sphere_optim_cases as sphere

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.rehearsal

ONE = torch.ones(1)
SCALED = {"lr_tensor": ONE.double(), "grad_scale": ONE, "found_inf": ONE}


def turns(cases, first):
    """Every option in one dtype, and in every dtype those of which `first` are the names."""
    for turn, (kind, name) in enumerate(cases):
        for i, dtype in enumerate(DTYPES):
            if name in first or i == turn % len(DTYPES):
                yield pytest.param(kind, name, dtype, id=f"{kind}-{name}-{str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize(("kind", "name", "dtype"), turns(rows.CASES, ("momentum", "usual")))
def test_rows(kind, name, dtype):
    function = getattr(torch.ops.hyperkernels, f"{kind}_rows__triton")
    options = rows.OPTIONS[kind][name]
    for total, dim, count in ((4, 3, 0), (1, 1, None), (5, 600, 3)):
        problem = rows.problem(kind, total, dim, count, dtype)
        rows.run(function, kind, problem, options, lr=1)
    rows.run(function, kind, problem, options, lr=0.1, **SCALED)


@pytest.mark.parametrize(("kind", "name", "dtype"), turns(sphere.CASES, ("momentum", "usual")))
def test_sphere(kind, name, dtype):
    function = getattr(torch.ops.hyperkernels, f"sphere_{kind}__triton")
    options = sphere.OPTIONS[kind][name]
    sphere.run(function, sphere.problem(kind, name, [(1, 1), (0, 4), (4, 0), (1, 20000)], dtype), options, lr=1)
    sphere.run(function, sphere.problem(kind, name, [(3, 600)], dtype), options, lr=0.1, **SCALED)
