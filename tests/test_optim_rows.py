"""SGD and AdamW by rows: against torch.optim on dense gradients, against a loop over single numbers on sparse ones."""

import copy
import pickle

import optim_cases as cases
import pytest
import torch
from accuracy import assert_as_accurate
from support import LOWER_CAPABILITIES, assert_passes_at

import hyperkernels as hk
from hyperkernels.kernels.optim import reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CPP = {kind: getattr(torch.ops.hyperkernels, f"{kind}_rows_") for kind in ("sgd", "adamw")}
REFERENCE = {kind: getattr(reference, f"{kind}_rows_") for kind in ("sgd", "adamw")}

SGD = {
    "plain": {"lr": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampening": {"lr": 0.05, "momentum": 0.8, "dampening": 0.4, "weight_decay": 0.1},
    "nesterov": {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "maximize": {"lr": 0.05, "momentum": 0.5, "maximize": True, "weight_decay": 0.01},
    "lr tensor": {"lr": torch.tensor(0.05, dtype=torch.float64), "momentum": 0.5},
}
ADAMW = {
    "default": {},
    "options": {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-4, "weight_decay": 0.3},
    "maximize": {"lr": 0.02, "maximize": True},
    "no memory": {"lr": 0.01, "betas": (0.0, 0.0), "weight_decay": 0.0},
    "lr tensor": {"lr": torch.tensor(0.05, dtype=torch.float64)},
}
OPTIMIZERS = [
    *(pytest.param(hk.optim.SGD, torch.optim.SGD, options, id=f"sgd {name}") for name, options in SGD.items()),
    *(pytest.param(hk.optim.AdamW, torch.optim.AdamW, options, id=f"adamw {name}") for name, options in ADAMW.items()),
]


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    with hk.backend(request.param):
        yield request.param


def parameter(*shape, dtype=torch.float64):
    return torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))


def sparse(rows, values, total):
    return torch.sparse_coo_tensor(
        torch.as_tensor(rows)[None], values, (total, *values.shape[1:]), check_invariants=True
    )


# The ops.


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("total", "dim", "count"), [(7, 1, 3), (9, 5, None), (30, 17, 30), (40, 37, 11)])
def test_against_the_loop_by_hand(kind, options, dtype, total, dim, count):
    p = cases.problem(kind, total, dim, count, dtype)
    cases.check(CPP, kind, p, cases.OPTIONS[kind][options], grad_scale=None if total == 9 else 8.0)


@pytest.mark.parametrize(("kind", "options"), cases.CASES)
def test_the_reference_itself(kind, options):
    p = cases.problem(kind, 12, 5, 7, torch.float64)
    cases.check(REFERENCE, kind, p, cases.OPTIONS[kind][options], grad_scale=4.0)
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
        ({"weight": torch.randn(6, 3).t().contiguous().t()}, ValueError, "weight must be contiguous"),
        ({"weight": torch.zeros(6, 3, dtype=torch.int64)}, TypeError, "gradient must have the dtype of weight"),
        ({"gradient": torch.randn(2, 4)}, ValueError, r"gradient must have shape \[2, 3\]"),
        ({"gradient": torch.randn(2, 3).double()}, TypeError, "gradient must have the dtype of weight"),
        ({"rows": torch.tensor([0, 1, 2])}, ValueError, r"gradient must have shape \[3, 3\]"),
        ({"rows": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "rows must have dtype int64"),
        ({"step": torch.zeros(5, dtype=torch.int32)}, ValueError, "step must have one entry per row"),
        ({"step": torch.zeros(6)}, TypeError, "step must have dtype int32"),
        ({"state": (torch.zeros(6, 4), torch.zeros(6, 4))}, ValueError, "must be contiguous of shape"),
        ({"state": (torch.zeros(6, 3).double(),) * 2}, TypeError, "must have dtype"),
    ],
)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_op_refuses_what_does_not_fit(kind, change, error, said):
    p = cases.problem(kind, 6, 3, 2)._replace(**change)
    p = p._replace(state=p.state[: 1 if kind == "sgd" else 2])
    options = cases.OPTIONS[kind]["momentum" if kind == "sgd" else "usual"]
    with pytest.raises(error, match=said):
        CPP[kind](*cases.arguments(kind, p, options, lr=0.1))


# The optimisers: dense gradients.


@pytest.mark.parametrize(("ours", "peer", "options"), OPTIMIZERS)
@pytest.mark.parametrize("shape", [(11, 6), (5,), (), (4, 3, 2, 2)])
def test_dense_gradients_are_those_of_torch(backend, ours, peer, options, shape):
    mine = parameter(*shape)
    theirs = copy.deepcopy(mine)
    optimizers = ours([mine], **options), peer([theirs], **options)
    for _ in range(5):
        mine.grad = torch.randn(shape, dtype=torch.float64)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    if "momentum" in options:
        found = (optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(optimizers, (mine, theirs), strict=True))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("ours", "peer", "options"), OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_dense_gradients_in_half_and_single_precision(backend, ours, peer, options, dtype):
    """Ten steps against torch's in float64: at most twice the error of torch's in the same dtype."""
    mine = parameter(40, 32, dtype=dtype)
    theirs, truth = copy.deepcopy(mine), torch.nn.Parameter(mine.detach().double())
    optimizers = ours([mine], **options), peer([theirs], **options), peer([truth], **options)
    for _ in range(10):
        gradient = torch.randn(40, 32, dtype=torch.float64).to(dtype)
        for optimizer, p in zip(optimizers, (mine, theirs, truth), strict=True):
            p.grad = gradient.to(p.dtype)
            optimizer.step()
    assert_as_accurate(mine.detach(), theirs.detach(), truth.detach())


def test_a_parameter_that_is_not_contiguous(backend):
    whole = torch.randn(6, 9, dtype=torch.float64)
    for ours, peer in ((hk.optim.SGD, torch.optim.SGD), (hk.optim.AdamW, torch.optim.AdamW)):
        mine, theirs = torch.nn.Parameter(whole.clone().t()), torch.nn.Parameter(whole.t().contiguous())
        optimizers = ours([mine], lr=0.1, weight_decay=0.1), peer([theirs], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            gradient = torch.randn(6, 9, dtype=torch.float64).t()
            mine.grad, theirs.grad = gradient, gradient.contiguous()
            for optimizer in optimizers:
                optimizer.step()
        assert not mine.is_contiguous()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


# Sparse gradients.


@pytest.mark.parametrize("options", list(cases.SGD_OPTIONS))
def test_sgd_with_rows_that_change(backend, options):
    options = cases.SGD_OPTIONS[options]
    weight = parameter(13, 4)
    optimizer = hk.optim.SGD([weight], lr=0.125, **options)
    p = cases.Problem(weight.detach().clone(), (torch.zeros(13, 4).double(),), torch.zeros(13), None, None)
    for _ in range(6):
        rows, values = torch.randperm(13)[:5], torch.randn(5, 4, dtype=torch.float64)
        weight.grad = sparse(rows, values, 13)
        optimizer.step()
        after = cases.sgd_by_hand(p._replace(rows=rows, gradient=values), 0.125, **options)
        p = p._replace(weight=after[0], state=after[1], step=after[2])
        torch.testing.assert_close(weight.detach(), p.weight, rtol=1e-12, atol=1e-12)
    assert torch.equal(optimizer.state[weight]["step"], p.step.int())


@pytest.mark.parametrize("options", list(cases.ADAMW_OPTIONS))
def test_adamw_with_rows_that_change(backend, options):
    by_hand = cases.ADAMW_OPTIONS[options]
    named = {"betas": (by_hand["beta1"], by_hand["beta2"])}
    named |= {name: by_hand[name] for name in ("eps", "weight_decay", "maximize")}
    weight = parameter(13, 4)
    optimizer = hk.optim.AdamW([weight], lr=0.125, **named)
    zeros = torch.zeros(13, 4, dtype=torch.float64)
    p = cases.Problem(weight.detach().clone(), (zeros, zeros), torch.zeros(13), None, None)
    for _ in range(6):
        rows, values = torch.randperm(13)[:5], torch.randn(5, 4, dtype=torch.float64)
        weight.grad = sparse(rows, values, 13)
        optimizer.step()
        after = cases.adamw_by_hand(p._replace(rows=rows, gradient=values), 0.125, **by_hand)
        p = p._replace(weight=after[0], state=after[1], step=after[2])
        torch.testing.assert_close(weight.detach(), p.weight, rtol=1e-12, atol=1e-12)
    assert torch.equal(optimizer.state[weight]["step"], p.step.int())


@pytest.mark.parametrize("make", [hk.optim.SGD, hk.optim.AdamW])
def test_repeated_rows_count_once(backend, make):
    """An embedding's gradient, not coalesced: the rows of a batch add up, and take one step."""
    table = torch.nn.Embedding(10, 3, sparse=True, dtype=torch.float64)
    dense = copy.deepcopy(table)
    dense.sparse = False
    tokens = torch.tensor([1, 4, 4, 4, 7, 1])
    for t in (table, dense):
        t(tokens).square().sum().backward()
    assert not table.weight.grad.is_coalesced()
    before = table.weight.detach().clone()
    make(table.parameters(), lr=0.1, weight_decay=0.1).step()
    make(dense.parameters(), lr=0.1, weight_decay=0.1).step()
    seen = torch.zeros(10, dtype=torch.bool).index_fill_(0, tokens, True)
    torch.testing.assert_close(table.weight[seen], dense.weight[seen], rtol=1e-12, atol=0)
    assert torch.equal(table.weight[~seen], before[~seen])


@pytest.mark.parametrize("make", [hk.optim.SGD, hk.optim.AdamW])
def test_a_gradient_of_no_rows(make):
    weight = parameter(4, 3)
    before = weight.detach().clone()
    weight.grad = sparse(torch.empty(0, dtype=torch.int64), torch.empty(0, 3, dtype=torch.float64), 4)
    make([weight], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("make", [hk.optim.SGD, hk.optim.AdamW])
def test_rows_of_higher_dimensions(make):
    """[rows, 2, 3] moves as [rows, 6] does, and a sparse gradient of every row as the dense one."""
    flat = parameter(5, 6)
    deep, dense = (torch.nn.Parameter(flat.detach().clone().view(shape)) for shape in ((5, 2, 3), (5, 6)))
    values = torch.randn(5, 6, dtype=torch.float64)
    flat.grad, deep.grad, dense.grad = sparse(range(5), values, 5), sparse(range(5), values.view(5, 2, 3), 5), values
    for p in (flat, deep, dense):
        make([p], lr=0.1).step()
    assert torch.equal(flat, deep.view(5, 6)) and torch.equal(flat, dense)


@pytest.mark.parametrize("make", [hk.optim.SGD, hk.optim.AdamW])
def test_gradients_that_are_refused(make):
    weight = parameter(4, 3)
    optimizer = make([weight])
    weight.grad = torch.ones(4, 3, dtype=torch.float64).to_sparse()
    with pytest.raises(ValueError, match="sparse in its first dimension alone"):
        optimizer.step()
    bad = torch.sparse_coo_tensor(torch.tensor([[1, 9]]), torch.ones(2, 3).double(), (4, 3), check_invariants=False)
    weight.grad = bad._coalesced_(True)
    with pytest.raises(IndexError, match=r"rows must lie in \[0, 4\); got 9"):
        optimizer.step()


def test_autograd_sees_that_the_weight_changed():
    weight = parameter(3, 2)
    loss = weight.square().sum()
    weight.grad = torch.ones_like(weight)
    hk.optim.SGD([weight]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert copy.deepcopy(hk.optim.SGD([weight])).defaults == pickle.loads(pickle.dumps(hk.optim.SGD([weight]))).defaults
