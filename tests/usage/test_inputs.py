"""Rows as users have them: in any layout, of any dtype, under autocast, of a subclass of Tensor; and who is told."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hyperkernels._ops import OPERATIONS

from .cases import FUNCTIONS, HALF, SIZE, N, case_of, near, same


def strided(v):
    """The same numbers, each a few places from the next."""
    if not v.dim():
        return v.clone()
    wide = torch.full([2 * n for n in reversed(v.shape)], torch.nan, dtype=v.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in v.shape)].permute(*reversed(range(v.dim())))
    view.copy_(v)
    return view


def test_strides(case):
    """Of the leaves themselves, and of views through which the gradient has to come back."""
    leaves = [strided(v).requires_grad_() for v in case.leaves]
    assert not any(v.is_contiguous() for v in leaves if v.numel() > 1)
    values = case.function(*leaves)
    found = torch.autograd.grad(values, leaves, case.upstream[: len(values)])
    same((values.detach(), *(gradient.to_dense() for gradient in found)), case.plain)
    same(case.run(lambda x, *others: case.function(x.mT.clone().mT, *others)), case.plain)


def test_expanded_rows(case):
    """One row in memory for the whole batch."""
    row = case.leaves[0][:1]
    expanded = case.run(lambda x, *others: case.function(x.expand(N, SIZE), *others), [row, *case.leaves[1:]])
    copied = case.run(lambda x, *others: case.function(x.repeat(N, 1), *others), [row, *case.leaves[1:]])
    same(expanded, copied, rtol=1e-12, atol=1e-12)
    upstream = torch.ones(1, dtype=torch.float64)
    leaves = [v.clone().requires_grad_() for v in case.leaves]
    values = case.function(*leaves)
    expanded = torch.autograd.grad(values, leaves, upstream.expand(len(values)), retain_graph=True)
    copied = torch.autograd.grad(values, leaves, upstream.repeat(len(values)))
    same([v.to_dense() for v in expanded], [v.to_dense() for v in copied])


@pytest.mark.parametrize("dtype", HALF)
def test_half(case, dtype):
    """What float64 says of the rounded numbers; gradients have the dtype of the leaf."""
    leaves = case.cast(dtype)
    found, wanted = case.run(leaves=leaves), case.run(leaves=[v.double() for v in leaves])
    assert all(gradient.dtype == dtype for gradient in found[1:])
    near(case.name, found, wanted, HALF[dtype])


def test_double_and_single(case):
    leaves = case.cast(torch.float32)
    found, wanted = case.run(leaves=leaves), case.run(leaves=[v.double() for v in leaves])
    assert all(value.dtype == torch.float32 for value in found)
    near(case.name, found, wanted, 1e-4)


def test_autocast(case):
    """It rounds embeddings of single precision, and nothing of double; gradients have the dtype of the leaf."""
    leaves = case.cast(torch.float32)
    wanted = case.run(leaves=leaves)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.run(leaves=leaves)
        same(case.run(), case.plain)
        with torch.autocast("cpu", enabled=False):
            same(case.run(leaves=leaves), wanted)
    assert all(gradient.dtype == torch.float32 for gradient in found[1:])
    near(case.name, found, wanted, 5e-2)


class Named(torch.Tensor):
    """A subclass that does nothing of its own, as those that carry a name or a unit."""


def test_a_subclass_of_tensor(case):
    given = [v.clone().as_subclass(Named).requires_grad_() for v in case.leaves]
    values = case.function(*given)
    same(values.detach().as_subclass(torch.Tensor), case.plain[0])
    values.backward(case.upstream[: len(values)])
    same([v.grad.to_dense().as_subclass(torch.Tensor) for v in given], list(case.plain[1:]))


def test_parameters_as_inputs(case):
    given = [torch.nn.Parameter(v.clone()) for v in case.leaves]
    values = case.function(*given)
    values.backward(case.upstream[: len(values)])
    same([values.detach(), *(v.grad.to_dense() for v in given)], list(case.plain))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_profiler_names_the_ops(name):
    case = case_of(name)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        same(case.run(), case.plain)
    names = {event.key.partition("hyperkernels::")[2] for event in found.key_averages()} - {""}
    own = {name for name in names if not name.endswith("_backward")}
    assert own <= {*OPERATIONS}
    assert any(f"{name}_backward" in names for name in own) or not any(f"{name}_backward" in OPERATIONS for name in own)
