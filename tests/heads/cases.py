"""Problems on which the heads are hard, and what is asked of the result."""

import contextlib

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _backend


@contextlib.contextmanager
def forced(name):
    """That backend, or the test is skipped where this install lacks it."""
    with hk.backend(name):
        try:
            _backend.choose("margin_softmax", "cpu")
        except RuntimeError as obstacle:
            pytest.skip(str(obstacle))
        yield


def hard_problem(n=16, c=11, d=5, ignored=2):
    """Float64 x, weight and target with rows near their centre, opposite to it, near another, and anywhere."""
    weight = torch.randn(c, d, dtype=torch.float64) * torch.rand(c, 1, dtype=torch.float64).add(0.2)
    target = torch.randint(c, (n,))
    unit = weight / weight.norm(dim=1, keepdim=True)
    kind = torch.arange(n) % 4
    pull = torch.stack([0 * unit[target], unit[target], -unit[target], unit[(target + 1) % c]])[kind, torch.arange(n)]
    x = torch.randn(n, d, dtype=torch.float64) * 0.15 + pull
    norms = torch.logspace(0.3, 2.6, n, dtype=torch.float64)[torch.randperm(n)]  # 2 to 400
    x = x * (norms / x.norm(dim=1))[:, None]
    target[:ignored] = -100
    return x, weight, target


def value_and_gradients(loss, *leaves):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


def agree(found, wanted, rtol=1e-8):
    """Equal up to rounding, measured by each tensor's largest entry."""
    for one, other in zip(found, wanted, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=rtol * float(other.abs().max()) + 1e-12)
