"""The op pair_statistics: what it refuses, what it leaves out, and what PyTorch makes of it."""

import pytest
import torch

from hyperkernels.kernels.pair_mining import op
from hyperkernels.kernels.pair_mining.op import Tile
from tests.support import REFUSED, need_cpp_kernels
from tests.support.pair_cases import arguments_of, make

need_cpp_kernels()


@pytest.mark.parametrize("need", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("m", [None, 13])
def test_only_what_is_needed(need, m):
    case = make(n=12, m=m, columns=True)
    p, columns = case.problem, case.columns is not None
    out = torch.ops.hyperkernels.pair_statistics(*arguments_of(case))
    coefficients = [torch.randn(4, count, dtype=torch.float64) for count in (12, m or 0)]
    given = case.columns or op.Columns()
    arguments = [
        *p, coefficients[0], case.scale, case.offset, out[7], columns, *given, coefficients[1] if columns else None,
        out[17] if columns else None, *case.transform, 4, 8,
    ]  # fmt: skip
    whole = torch.ops.hyperkernels.pair_statistics_backward(*arguments, True, True)
    found = torch.ops.hyperkernels.pair_statistics_backward(*arguments, *need)
    for mine, right, needed in zip(found, whole, need, strict=True):
        if needed:
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
        else:
            assert mine.shape == (0,)


def test_wrong_arguments():
    case = make(n=8, m=9, columns=True, window="both", transform="softplus")
    arguments = arguments_of(case)
    run = torch.ops.hyperkernels.pair_statistics

    def changed(at, value):
        return [*arguments[:at], value, *arguments[at + 1 :]]

    single = torch.ones(8, dtype=torch.float32)
    for at, value in (
        (0, case.problem.x.int()), (1, case.problem.ref.float()), (2, case.problem.label.short()), (4, torch.arange(8)),
        (6, single), (10, single), (11, single),
    ):  # fmt: skip
        with pytest.raises(REFUSED):
            run(*changed(at, value))
    long = torch.ones(10, dtype=torch.float64)
    for at, value in (
        (0, case.problem.x[0]), (1, case.problem.ref[:, :3]), (2, case.problem.label[:3]), (5, case.problem.ref_id[:3]),
        (6, long), (8, "some"), (9, "cosine"), (10, long), (10, None), (13, long), (15, long), (15, None), (16, long),
        (19, "square"), (22, 0), (23, -1), (1, None),
    ):  # fmt: skip
        with pytest.raises(REFUSED):
            run(*changed(at, value))
    out = run(*arguments)
    coefficients = [torch.randn(4, n, dtype=torch.float64) for n in (8, 9)]
    backward = [
        *case.problem, coefficients[0], case.scale, case.offset, out[7], True, *case.columns, coefficients[1], out[17],
        "linear", 0.0, 0.0, 4, 4, True, True,
    ]  # fmt: skip
    run_backward = torch.ops.hyperkernels.pair_statistics_backward
    run_backward(*backward)
    for at, value, error in (
        (10, coefficients[0].float(), REFUSED), (10, coefficients[0][:3], REFUSED),
        (10, coefficients[1], REFUSED), (13, out[17], REFUSED), (13, out[7].float(), REFUSED),
        (19, None, REFUSED), (20, None, REFUSED), (20, out[7], REFUSED),
    ):  # fmt: skip
        with pytest.raises(error):
            run_backward(*backward[:at], value, *backward[at + 1 :])


def test_there_is_no_second_derivative():
    case = make(n=6)
    x = case.problem.x.requires_grad_()
    value = torch.ops.hyperkernels.pair_statistics(*arguments_of(case))[7]
    (dx,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("m", [None, 9])
def test_opcheck(m):
    case = make(n=8, m=m, columns=True, transform="softplus", dtype=torch.float32)
    case.problem.x.requires_grad_()
    # The checks of AOT autograd add all outputs to the first, which here is of integers; the compiled test has them.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    run = torch.ops.hyperkernels.pair_statistics.default
    torch.library.opcheck(run, tuple(arguments_of(case)), test_utils=checks)


def test_compiles_whole():
    case = make(n=30, m=20, columns=True, dtype=torch.float32)

    def loss(x, ref):
        problem = case.problem._replace(x=x, ref=ref)
        rows, columns = op.pair_statistics(
            problem, case.scale, None, True, True, case.transform, case.columns, Tile(16, 16)
        )
        return rows.lse.sum() + columns.sum.sum() + rows.d_scale.sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        x, ref = (t.clone().requires_grad_() for t in (case.problem.x, case.problem.ref))
        value = function(x, ref)
        results.append((value.detach(), *torch.autograd.grad(value, (x, ref))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
