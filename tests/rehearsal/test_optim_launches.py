"""Every launch of the optimisers."""

import optim_cases as rows
import pytest
import sphere_optim_cases as sphere
import torch

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.rehearsal

ONE = torch.ones(1)
SCALED = {"lr_tensor": ONE.double(), "grad_scale": ONE, "found_inf": ONE}


@pytest.mark.parametrize(("kind", "name"), rows.CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(kind, name, dtype):
    function = getattr(torch.ops.hyperkernels, f"{kind}_rows_triton")
    options = rows.OPTIONS[kind][name]
    for total, dim, count in ((1, 1, None), (1, 1, 1), (5, 600, 3), (4, 3, 0)):
        problem = rows.problem(kind, total, dim, count, dtype)
        rows.run(function, kind, problem, options, lr=0.1)
    rows.run(function, kind, problem, options, lr=1, **SCALED)


@pytest.mark.parametrize(("kind", "name"), sphere.CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sphere(kind, name, dtype):
    function = getattr(torch.ops.hyperkernels, f"sphere_{kind}_triton")
    problem = sphere.problem(kind, name, [(1, 1), (3, 600), (0, 4), (4, 0), (1, 20000)], dtype)
    for named in ({}, SCALED):
        sphere.run(function, problem, sphere.OPTIONS[kind][name], lr=0.1, **named)
