"""The Triton kernels of the optimisers in Triton's interpreter, whose bfloat16 is garbage: that dtype waits for a
GPU."""

import copy

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.optim.triton import kernels as triton_kernels
from hyperkernels.kernels.triton.rows import row_blocks
from tests.support import combinations
from tests.support import optim_cases as cases
from tests.support.launchers import launchers

TRITON = {kind: getattr(launchers, f"{kind}_rows_") for kind in ("sgd", "adamw")}
pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("total", "dim", "count"), [(150, 1, 140), (9, 5, None), (30, 17, 30)])
def test_against_the_loop_by_hand(kind, options, dtype, total, dim, count):
    p = cases.problem(kind, total, dim, count, dtype)
    cases.check(TRITON, kind, p, cases.OPTIONS[kind][options], grad_scale=None if total == 9 else 8.0)


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
def test_the_last_step(kind, options):
    cases.check_last_step(TRITON, kind, cases.problem(kind, 6, 5), cases.OPTIONS[kind][options])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_rows_of_more_than_a_block(kind, monkeypatch):
    monkeypatch.setattr(
        triton_kernels, "configuration", lambda dim, _: {"blocks": row_blocks(dim, 2, 16), "num_warps": 1}
    )
    cases.check(TRITON, kind, cases.problem(kind, 11, 37, 5), next(iter(cases.OPTIONS[kind].values())))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_scaler_and_learning_rate(kind):
    for options in cases.OPTIONS[kind].values():
        p = cases.problem(kind, 12, 9, 5)
        cases.check_skipped(TRITON, kind, p, options)
        cases.check_lr_tensor(TRITON, kind, p, options)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_row_out_of_range_is_left_out(kind):
    options = next(iter(cases.OPTIONS[kind].values()))
    p = cases.problem(kind, 6, 3, 5)
    keep = torch.tensor([0, 2, 4])
    given = p._replace(rows=p.rows.clone().index_copy_(0, torch.tensor([1, 3]), torch.tensor([-1, 2**62])))
    mine = cases.run(TRITON[kind], kind, given, options, lr=0.5)
    right = cases.run(TRITON[kind], kind, p._replace(rows=p.rows[keep], gradient=p.gradient[keep]), options, lr=0.5)
    assert torch.equal(mine[0], right[0]) and torch.equal(mine[2], right[2])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nothing_to_do(kind):
    options = next(iter(cases.OPTIONS[kind].values()))
    for total, dim, count in ((5, 3, 0), (0, 3, None), (4, 0, 2)):
        p = cases.problem(kind, total, dim, count)
        weight, _, step = cases.run(TRITON[kind], kind, p, options, lr=0.1)
        assert torch.equal(weight, p.weight)
        assert step.sum() == p.step.sum() + (total if count is None else count)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_does_not_fit_is_refused(kind):
    p = cases.problem(kind, 6, 3, 2)
    options = next(iter(cases.OPTIONS[kind].values())) | ({"momentum": 0.5} if kind == "sgd" else {})
    for change, said in (
        ({"gradient": torch.randn(2, 4)}, "gradient must be"),
        ({"rows": torch.tensor([0])}, "gradient must be"),
        ({"rows": torch.tensor([0, 1], dtype=torch.int32)}, "rows must be int64"),
        ({"step": torch.zeros(6)}, "step must be contiguous int32"),
        ({"state": tuple(s.double() for s in p.state)}, "state must be contiguous"),
        ({"weight": torch.randn(3, 6).t()}, "weight must be contiguous"),
    ):
        with pytest.raises(ValueError, match=said):
            TRITON[kind](*cases.arguments(kind, p._replace(**change), options, lr=0.1))
    with pytest.raises(ValueError, match="found_inf must hold one number"):
        TRITON[kind](*cases.arguments(kind, p, options, lr=0.1, found_inf=torch.zeros(2)))


HEADS = [{}, {"sub_centers": 2, "bias": True, "class_scale": True}, {"skip_budget": 0.3}]


@pytest.mark.parametrize("options", combinations(HEADS, everyday=lambda options: not options))
def test_the_update_in_the_backward(options):
    """Rows of several groups of the skip plan, chunks of several tiles, and a target out of range, which stays NaN."""
    head = hk.nn.MarginSoftmax(8, 300, **options)
    heads = head, copy.deepcopy(head)
    optimizers = [hk.optim.AdamW(h.parameters(), lr=0.01) for h in heads]
    hk.optim.update_in_backward(heads[1].weight, optimizers[1], chunk_classes=150)
    rows = 140 if "skip_budget" in options else 20
    for target in (torch.randint(0, 300, (rows,)), torch.tensor([299, 5, 300, -1])):
        x = torch.randn(len(target), 8)
        target[::9] = -100
        found = []
        for h, optimizer in zip(heads, optimizers, strict=True):
            v = x.clone().requires_grad_()
            with hk.backend("triton"):
                h(v, target).backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append((v.grad, *h.parameters()))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert heads[1].weight.grad is None
