"""torch.func over one op of each family: first derivatives and batches of them, and what the kernels refuse by name."""

import pytest
import torch

import hyperkernels as hk

N, D = 7, 5
LABELS = torch.tensor([0, 1, 0, 2, 1, 2, 0])
WEIGHT, OTHER = torch.linspace(-1, 1, 4 * D).sin().view(4, D), torch.linspace(1, 9, N * D).cos().view(N, D)
FUNCTIONS = {
    "unit_norm": lambda x: (hk.unit_norm(x) ** 3).sum(),
    "margin_softmax_loss": lambda x: hk.margin_softmax_loss(x, WEIGHT.to(x), LABELS, scale=8.0),
    "supcon": lambda x: hk.losses.supcon(x, LABELS),
    "info_nce": lambda x: hk.losses.info_nce(x, ref=OTHER.to(x)),
    "triplet": lambda x: hk.losses.triplet(x, LABELS),
    "contrastive": lambda x: hk.losses.contrastive(x, LABELS),
    "slerp": lambda x: hk.sphere.slerp(x, OTHER.to(x), 0.3).sum(),
    "retract": lambda x: hk.sphere.retract(x, OTHER.to(x)).sum(),
    "segment_mean": lambda x: (hk.sphere.segment_mean(x, LABELS, 3)[0] ** 3).sum(),
    "riesz_energy": lambda x: hk.sphere.riesz_energy(x),
}
LISTED = ("triplet", "contrastive")  # the number of pairs is read, which a batch of problems has no one of
TWICE = ("unit_norm", "segment_mean")


def rows(*shape):
    return torch.randn(*shape, N, D, dtype=torch.float64)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives(name):
    function, x = FUNCTIONS[name], rows()
    right = gradient(function, x)
    value, pull = torch.func.vjp(function, x)
    found = torch.func.grad(function)(x), pull(torch.ones_like(value))[0], torch.func.jacrev(function)(x)
    torch.testing.assert_close(value, function(x))
    for mine in found:
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in LISTED])
def test_a_batch_of_derivatives(name):
    function, x = FUNCTIONS[name], rows(3)
    found = torch.func.vmap(torch.func.grad(function))(x)
    for mine, one in zip(found, x, strict=True):
        torch.testing.assert_close(mine, gradient(function, one))
    torch.testing.assert_close(torch.func.vmap(function)(x), torch.stack([function(one) for one in x]))


def test_a_jacobian_of_rows():
    """Of an op with several numbers, one backward a number."""
    x = rows()
    found = torch.func.jacrev(hk.unit_norm)(x)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(hk.unit_norm, x))
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(hk.unit_norm, x, vectorize=True))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in TWICE])
def test_second_derivatives_are_refused(name):
    x = rows()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda v: torch.func.grad(FUNCTIONS[name])(v).sum())(x)
    x.requires_grad_()
    (first,) = torch.autograd.grad(FUNCTIONS[name](x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives(name):
    function, x = FUNCTIONS[name], rows()
    assert torch.autograd.gradgradcheck(function, x.clone().requires_grad_())
    found = torch.func.grad(lambda v: torch.func.grad(function)(v).sum())(x)
    with hk.backend("reference"):
        right = torch.func.grad(lambda v: torch.func.grad(function)(v).sum())(x)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "riesz_energy"])
def test_forward_mode_is_refused(name):
    x = rows()
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative in its kernels; use .*backend\('reference'\)"):
        torch.func.jvp(FUNCTIONS[name], (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        FUNCTIONS[name](torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in TWICE])
def test_a_hessian_is_refused(name):
    with pytest.raises(RuntimeError):
        torch.func.hessian(FUNCTIONS[name])(rows())
