"""The C++ kernels and the reference of SGD and AdamW by rows, against a loop over single numbers."""

import pytest
import torch

from tests.support import LOWER_CAPABILITIES, REFUSED, assert_passes_at
from tests.support import optim_cases as cases
from tests.support.launchers import reference_updates

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CPP = {kind: getattr(torch.ops.hyperkernels, f"{kind}_rows_") for kind in ("sgd", "adamw")}
REFERENCE = {kind: getattr(reference_updates, f"{kind}_rows_") for kind in ("sgd", "adamw")}


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("total", "dim", "count"), [(7, 1, 3), (9, 5, None), (30, 17, 30), (40, 37, 11)])
def test_against_the_loop_by_hand(kind, options, dtype, total, dim, count):
    p = cases.problem(kind, total, dim, count, dtype)
    cases.check(CPP, kind, p, cases.OPTIONS[kind][options], grad_scale=None if total == 9 else 8.0)


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
def test_the_reference_itself(kind, options):
    """Half of its own error and a few units of rounding: its own error alone would allow any."""
    p = cases.problem(kind, 12, 5, 7, torch.float64)
    cases.check(REFERENCE, kind, p, cases.OPTIONS[kind][options], grad_scale=4.0, factor=0.5)
    cases.check_skipped(REFERENCE, kind, p, cases.OPTIONS[kind][options])
    cases.check_lr_tensor(REFERENCE, kind, p, cases.OPTIONS[kind][options])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaler_and_learning_rate(kind, dtype):
    for options in cases.OPTIONS[kind].values():
        p = cases.problem(kind, 12, 9, 5, dtype)
        cases.check_skipped(CPP, kind, p, options)
        cases.check_lr_tensor(CPP, kind, p, options)


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
@pytest.mark.parametrize("functions", [CPP, REFERENCE], ids=["cpp", "reference"])
def test_the_last_step(kind, options, functions):
    cases.check_last_step(functions, kind, cases.problem(kind, 6, 5), cases.OPTIONS[kind][options])


@pytest.mark.parametrize("capability", LOWER_CAPABILITIES)
def test_every_instruction_set_is_right(capability):
    assert_passes_at(capability, __file__, "against_the_loop")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_many_rows_over_threads(kind):
    """The same bits whatever the number of threads, and those of the rows one at a time."""
    p = cases.problem(kind, 5000, 64, 3000)
    options = next(iter(cases.OPTIONS[kind].values())) | ({"momentum": 0.9} if kind == "sgd" else {})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        many = cases.run(CPP[kind], kind, p, options, lr=0.1)
    finally:
        torch.set_num_threads(before)
    one = cases.run(CPP[kind], kind, p, options, lr=0.1)
    flat = [(weight, *state, step) for weight, state, step in (many, one)]
    assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
    row = p.rows[1234:1235]
    alone = cases.run(CPP[kind], kind, p._replace(rows=row, gradient=p.gradient[1234:1235]), options, lr=0.1)
    assert torch.equal(alone[0][row], many[0][row])


@pytest.mark.parametrize("functions", [CPP, REFERENCE], ids=["cpp", "reference"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nothing_to_do(functions, kind):
    options = cases.OPTIONS[kind]["decay" if kind == "sgd" else "usual"]
    for total, dim, count in ((5, 3, 0), (0, 3, None), (0, 3, 0), (4, 0, 2), (4, 0, None)):
        p = cases.problem(kind, total, dim, count)
        weight, _, step = cases.run(functions[kind], kind, p, options, lr=0.1)
        assert torch.equal(weight, p.weight)
        assert step.sum() == p.step.sum() + (total if count is None else count)


@pytest.mark.parametrize("functions", [CPP, REFERENCE], ids=["cpp", "reference"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("row", [-1, 6, 2**62])
def test_a_row_out_of_range(functions, kind, row):
    options = next(iter(cases.OPTIONS[kind].values()))
    p = cases.problem(kind, 6, 3, 2)
    p = p._replace(rows=torch.tensor([1, row]))
    with pytest.raises(IndexError, match=r"rows must lie in \[0, 6\)"):
        functions[kind](*cases.arguments(kind, cases.copied(p), options, lr=0.1))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_special_values(kind):
    """NaN and infinities stay in their row, and are those of the reference."""
    for options in cases.OPTIONS[kind].values():
        for dtype in DTYPES:
            p = cases.problem(kind, 9, 4, 4, dtype)
            p.gradient[0, 0], p.gradient[1, 1], p.gradient[2, :] = torch.nan, torch.inf, 0
            mine = cases.run(CPP[kind], kind, p, options, lr=0.5)[0]
            theirs = cases.run(REFERENCE[kind], kind, p, options, lr=0.5)[0]
            torch.testing.assert_close(mine, theirs, equal_nan=True)
            assert mine[p.rows[2:]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"weight": torch.randn(6, 3).t().contiguous().t()}, REFUSED, "weight must be contiguous"),
        ({"weight": torch.zeros(6, 3, dtype=torch.int64)}, REFUSED, "weight must have dtype"),
        ({"gradient": torch.randn(2, 4)}, REFUSED, r"gradient must have shape \[2, 3\]"),
        ({"gradient": torch.randn(2, 3).double()}, REFUSED, "gradient must have dtype float32; got float64"),
        ({"rows": torch.tensor([0, 1, 2])}, REFUSED, r"gradient must have shape \[3, 3\]"),
        ({"rows": torch.tensor([0, 1], dtype=torch.int32)}, REFUSED, "rows must have dtype int64"),
        ({"step": torch.zeros(5, dtype=torch.int32)}, REFUSED, "step must have one entry per row"),
        ({"step": torch.zeros(6)}, REFUSED, "step must have dtype int32"),
        ({"state": (torch.zeros(6, 4), torch.zeros(6, 4))}, REFUSED, "must be contiguous of shape"),
        ({"state": (torch.zeros(6, 3).double(),) * 2}, REFUSED, "must have dtype"),
    ],
)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_op_refuses_what_does_not_fit(kind, change, error, said):
    p = cases.problem(kind, 6, 3, 2)._replace(**change)
    p = p._replace(state=p.state[: 1 if kind == "sgd" else 2])
    options = cases.OPTIONS[kind]["momentum" if kind == "sgd" else "usual"]
    with pytest.raises(error, match=said):
        CPP[kind](*cases.arguments(kind, p, options, lr=0.1))
