"""SGD and AdamW by rows: against torch.optim on dense gradients, against a loop over single numbers on sparse ones."""

import copy
import pickle

import pytest
import torch

import hyperkernels as hk
from tests.support import optim_cases as cases
from tests.support.accuracy import assert_as_accurate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

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
