"""What PyTorch's autograd offers its users does what it says around our ops."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hyperkernels as hk
from hyperkernels._ops import OPERATIONS, Operation

from .cases import FUNCTIONS, SIZE, case_of, function_of, same


def graph(case):
    """Leaves of the case and its values on them."""
    leaves = [v.clone().requires_grad_() for v in case.leaves]
    return leaves, case.function(*leaves)


def gradients(case, leaves, values):
    found = torch.autograd.grad(values, leaves, case.upstream[: len(values)])
    return tuple(gradient.to_dense() for gradient in found)


def test_every_op_with_a_gradient_is_called(monkeypatch):
    called, call = set(), Operation.__call__
    monkeypatch.setattr(Operation, "__call__", lambda self, *given: called.add(self.name) or call(self, *given))
    for name in FUNCTIONS:
        case_of(name)
    assert {name for name, operation in OPERATIONS.items() if operation.gradient is not None} <= called


def test_the_kernels_agree_with_the_reference(case):
    """What the others are compared with is right."""
    with hk.backend("reference"):
        same(case.plain, case.run(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(case, reentrant):
    """Of the batch, as a layer is called; parameters are found by the function itself."""
    x, *parameters = leaves = [v.clone().requires_grad_() for v in case.leaves]
    values = checkpoint(lambda x: case.function(x, *parameters), x, use_reentrant=reentrant)
    values.backward(case.upstream[: len(values)])  # the reentrant kind has no torch.autograd.grad
    same((values.detach(), *(v.grad.to_dense() for v in leaves)), case.plain)


def test_a_retained_graph_runs_again(case):
    leaves, values = graph(case)
    for times in (1, 2, 3):
        values.backward(case.upstream[: len(values)], retain_graph=True)
        for leaf, wanted in zip(leaves, case.plain[1:], strict=True):
            same(leaf.grad.to_dense(), wanted if times == 1 else times * wanted, rtol=1e-12, atol=1e-12)


def test_a_freed_graph_is_refused(case):
    leaves, values = graph(case)
    same(gradients(case, leaves, values), case.plain[1:])
    with pytest.raises(RuntimeError, match="second time"):
        gradients(case, leaves, values)


def test_saved_tensor_hooks(case):
    """What is saved passes through them, and the backward computes with what they give back."""
    hooks = torch.autograd.graph.saved_tensors_hooks
    kept = []

    def pack(tensor):
        kept.append(tensor.clone())
        return len(kept) - 1

    with hooks(pack, kept.__getitem__):
        leaves, values = graph(case)
    same(gradients(case, leaves, values), case.plain[1:])
    assert kept
    leaves = [v.clone().requires_grad_() for v in case.leaves]
    batch = leaves[0].data_ptr()
    if case.name in (
        "NBCSoftmaxLoss",
        "segment_mean",
    ):  # which copies the rows by class; whose gradient is without them
        return
    with hooks(lambda v: (v, v.data_ptr() == batch), lambda kept: kept[0] + 1 if kept[1] else kept[0]):
        values = case.function(*leaves)
    others = zip(gradients(case, leaves, values), case.plain[1:], strict=True)
    assert any(not torch.equal(found, plain) for found, plain in others)


def test_save_on_cpu(case):
    with torch.autograd.graph.save_on_cpu():
        leaves, values = graph(case)
    same(gradients(case, leaves, values), case.plain[1:])


def test_a_changed_input_is_refused(case):
    """Or it is one that the backward does not need; never is the gradient a wrong one."""
    for i in range(len(case.leaves)):
        leaves = [v.clone().requires_grad_() for v in case.leaves]
        given = [v * 1 for v in leaves]
        values = case.function(*given)
        with torch.no_grad():
            given[i].add_(1)
        try:
            found = gradients(case, leaves, values)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            assert i > 0 or case.name == "NBCSoftmaxLoss"  # which copies the rows by class
            same(found, case.plain[1:])


def test_a_gradient_of_one_input_alone(case):
    for i, wanted in enumerate(case.plain[1:]):
        leaves = [v.clone().requires_grad_(i == j) for j, v in enumerate(case.leaves)]
        values = case.function(*leaves)
        same(values.detach(), case.plain[0])
        same(gradients(case, leaves[i : i + 1], values)[0], wanted)


def test_without_a_gradient(case):
    for block in (torch.no_grad(), torch.inference_mode()):
        with block:
            values = case.function(*case.leaves)
        assert not values.requires_grad
        same(values, case.plain[0])
    with torch.inference_mode():
        born_inside = case.leaves[0].clone()
    with torch.no_grad():
        same(case.function(born_inside, *case.leaves[1:]), case.plain[0])


def test_anomaly_mode(case):
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        same(case.run(), case.plain)


def test_threads(case):
    """Each with a batch of its own, at the same time."""
    batches = [[v * (1 + 0.1 * i) for v in case.leaves] for i in range(4)]
    wanted = [case.run(leaves=batch) for batch in batches]
    # functional_call puts the parameters into the module, so that each thread needs its own.
    functions = [function_of(copy.deepcopy(case.module)) if case.module else case.function for _ in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, right in zip(pool.map(case.run, functions, batches), wanted, strict=True):
                same(found, right)


@pytest.mark.parametrize("used", [True, False])
def test_nothing_is_kept(case, used):
    """A graph is freed with the last name for it, by the count of references alone."""
    gc.disable()
    try:
        leaves, values = graph(case)
        if used:
            same(gradients(case, leaves, values), case.plain[1:])
        held = weakref.ref(leaves[0])
        del leaves, values
        assert held() is None
    finally:
        gc.enable()


def test_a_batch_of_gradients(case):
    """is_grads_batched: one backward of many upstreams. PyTorch makes no batch of sparse gradients."""
    leaves, values = graph(case)
    for leaf, gradient in zip(leaves, torch.autograd.grad(values.sum(), leaves), strict=True):
        leaf.requires_grad_(not gradient.is_sparse)
    values, leaves = case.function(*leaves), [leaf for leaf in leaves if leaf.requires_grad]
    every = torch.eye(len(values), dtype=values.dtype)
    found = torch.autograd.grad(values, leaves, every, is_grads_batched=True, retain_graph=True)
    for k, upstream in enumerate(every):
        right = torch.autograd.grad(values, leaves, upstream, retain_graph=True)
        same([gradient[k] for gradient in found], list(right), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_number(case, given):
    wanted = case.run(leaves=case.cast(given))
    torch.set_default_dtype(torch.float64)
    try:
        same(case.run(leaves=case.cast(given)), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_deterministic_algorithms(case):
    try:
        torch.use_deterministic_algorithms(True)
        same(case.run(), case.plain)
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_empty_batch(case):
    """Nothing, or for a mean what the reference says; the gradients are of the right shapes."""
    leaves = [case.leaves[0][:0], *case.leaves[1:]]
    found = case.run(leaves=leaves)
    with hk.backend("reference"):
        wanted = case.run(leaves=leaves)
    same(found, wanted)
    assert found[1].shape == (0, SIZE) and all(value.isfinite().all() for value in found)
