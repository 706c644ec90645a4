"""torch.func over each op: first derivatives and batches of them, and what the kernels refuse by name."""

import pytest
import torch

import hyperkernels as hk

from .cases import FUNCTIONS, SIZE, case_of, same

LISTED = ("triplet", "contrastive")  # the number of pairs is read, which a batch of problems has no one of
CHECKED = ("sampled classes",)  # so are the classes, and PyTorch makes no batch of sparse gradients
BATCHED = [name for name in FUNCTIONS if name not in (*LISTED, *CHECKED)]
TWICE = ("unit_norm", "segment_mean")
ONCE = [name for name in FUNCTIONS if name not in TWICE]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def scalar(name):
    """A function of the batch alone, and a batch."""
    case = case_of(name)
    upstream, others = case.upstream[: len(case.plain[0])], case.leaves[1:]
    return lambda x: (case.function(x, *others) * upstream).sum(), case.leaves[0]


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives(name):
    function, x = scalar(name)
    right = gradient(function, x)
    value, pull = torch.func.vjp(function, x)
    found = torch.func.grad(function)(x), pull(torch.ones_like(value))[0], torch.func.jacrev(function)(x)
    same(value, function(x))
    for mine in found:
        same(mine, right, **CLOSE)


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_of_derivatives(name):
    """Of the batch, and of both inputs; of two batches at once."""
    function, x = scalar(name)
    several = torch.randn(3, *x.shape, dtype=torch.float64)
    found = torch.func.vmap(torch.func.grad(function))(several)
    for mine, one in zip(found, several, strict=True):
        same(mine, gradient(function, one), **CLOSE)
    same(torch.func.vmap(function)(several), torch.stack([function(one) for one in several]), **CLOSE)
    twice = torch.func.vmap(torch.func.vmap(function))(torch.stack([several, 2 * several], 1))
    same(twice[2, 1], function(2 * several[2]), **CLOSE)
    both = case_of(name)
    others = torch.randn(3, *both.leaves[1].shape, dtype=torch.float64)
    values = torch.func.vmap(both.function)(several, others)
    same(values, torch.stack([both.function(*pair) for pair in zip(several, others, strict=True)]), **CLOSE)


@pytest.mark.parametrize("name", BATCHED)
def test_a_jacobian_of_rows(name):
    """One backward for each value, one after the other and vectorised."""
    case = case_of(name)
    found = torch.func.jacrev(case.function, (0, 1))(*case.leaves)
    same(found, torch.autograd.functional.jacobian(case.function, case.leaves), **CLOSE)
    same(found, torch.autograd.functional.jacobian(case.function, case.leaves, vectorize=True), **CLOSE)


@pytest.mark.parametrize("name", ONCE)
def test_second_derivatives_are_refused(name):
    function, x = scalar(name)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda v: torch.func.grad(function)(v).sum())(x)
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives(name):
    function, x = scalar(name)
    assert torch.autograd.gradgradcheck(function, x.clone().requires_grad_())
    found = torch.func.grad(lambda v: torch.func.grad(function)(v).sum())(x)
    with hk.backend("reference"):
        right = torch.func.grad(lambda v: torch.func.grad(function)(v).sum())(x)
    same(found, right, **CLOSE)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "riesz_energy"])
def test_forward_mode_is_refused(name):
    function, x = scalar(name)
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative in its kernels; use .*backend\('reference'\)"):
        torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        function(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", ONCE)
def test_a_hessian_is_refused(name):
    with pytest.raises(RuntimeError):
        torch.func.hessian(scalar(name)[0])(torch.randn(8, SIZE, dtype=torch.float64))
