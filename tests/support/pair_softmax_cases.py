"""Inputs of the pair losses, and the comparison of values and gradients with a formula."""

import torch

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def points(n, d=7, dtype=torch.float64):
    return torch.randn(n, d, dtype=torch.float64).to(dtype).requires_grad_()


def labels_of(n, classes, first=0):
    return torch.randint(classes, (n,)) - first


def compare(mine, theirs, leaves):
    torch.testing.assert_close(mine, theirs, **CLOSE)
    upstream = torch.rand_like(mine) + 0.5
    got = torch.autograd.grad(mine, leaves, upstream, retain_graph=True)
    wanted = torch.autograd.grad(theirs, leaves, upstream, retain_graph=True, allow_unused=True)
    for leaf, a, b in zip(leaves, got, wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(leaf) if b is None else b, **CLOSE)


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)
