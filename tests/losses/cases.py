"""Problems and comparisons of the tests of the pair losses."""

import contextlib

import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import normalize

import hyperkernels as hk

from . import formulas_margins as formulas

# Which pairs a problem is about: x [N, D] with labels, and where they are given ref [M, D] with labels, and ids.
PROBLEMS = (
    "self", "ids", "ref", "ref and ids", "one class", "singletons", "pairs", "one row", "one column",
    "no columns", "nothing",
)  # fmt: skip


def problem(name, dtype=torch.float64):
    n, m, d = (
        (1 if name == "one row" else 0 if name == "nothing" else 15),
        {"one column": 1, "no columns": 0}.get(name, 21),
        6,
    )
    centres = 0.7 * torch.randn(5, d, dtype=torch.float64)
    labels = torch.randint(4, (n,)) * 7 - 9
    if name == "one class":
        labels = torch.full((n,), 2)
    elif name == "singletons":
        labels = torch.arange(n) - 3
    elif name == "pairs":
        labels = torch.arange(n) // 2
    elif n > 1:
        labels[n // 2] = 2**40  # a row without a positive
    ref_labels = torch.randint(4, (m,)) * 7 - 9

    def embeddings(labels):
        x = centres[labels % 5] + torch.randn(len(labels), d, dtype=torch.float64)
        return (x * (0.5 + torch.rand(len(labels), 1))).to(dtype)

    given = {"x": embeddings(labels), "labels": labels}
    if name in ("ref", "ref and ids", "one row", "one column", "no columns"):
        given |= {"ref": embeddings(ref_labels), "ref_labels": ref_labels}
    if name in ("ids", "ref and ids"):
        given["ids"] = torch.randint(6, (n,))
    if name == "ref and ids":
        given["ref_ids"] = torch.randint(6, (m,))
    return given


def value_and_gradients(loss, given, backend=None):
    leaves = {k: given[k].detach().clone().requires_grad_() for k in ("x", "ref") if k in given}
    with contextlib.nullcontext() if backend is None else hk.backend(backend):
        value = loss(**{**given, **leaves})
        value.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())
    return value.detach(), *(leaf.grad for leaf in leaves.values())


def by_formula(formula, similarity, x, labels, ref=None, ref_labels=None, ids=None, ref_ids=None, normalize=True):
    u = formulas.matrix(x, ref, similarity, normalize)
    pos, neg = formulas.masks(labels, ref_labels, ids, ref_ids)
    # The formula of an empty batch may not lead back to the leaves.
    return formula(u, similarity in ("cosine", "dot"), pos, neg) + 0 * x.sum() + (0 if ref is None else 0 * ref.sum())


def agree(found, wanted, rtol=1e-10, atol=1e-10):
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right.to(ours.dtype), rtol=rtol, atol=atol)


def with_duplicates():
    """Equal rows of one class and of two classes, on axes so that their distances are exactly 0."""
    axes = torch.eye(4, dtype=torch.float64)
    x = torch.cat([axes[[0, 0, 0, 1, 1]], normalize(torch.randn(7, 4, dtype=torch.float64))])
    return {"x": x, "labels": torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 1, 2, 2, 3])}


def reads_nothing(loss):
    """A tensor without data refuses to be read."""
    with FakeTensorMode():
        x, labels = torch.randn(8, 5, requires_grad=True), torch.zeros(8, dtype=torch.int64)
        loss(x=x, labels=labels).backward()
        assert x.grad.shape == x.shape
