"""The same bits on any number of threads, where there are more rows than PyTorch adds on one."""

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _order as order

N = 150_001


@pytest.fixture
def on_threads():
    before = torch.get_num_threads()

    def run(compute):
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(compute())
        return found

    yield run
    torch.set_num_threads(before)


def test_mean_loss_and_gradients_of_scale_and_bias(on_threads):
    x, weight, target = torch.randn(N, 4), torch.randn(5, 4), torch.randint(5, (N,))
    leaves = [torch.tensor(10.0), torch.rand(5) + 0.5, torch.randn(5), torch.full((5,), 0.3)]

    def compute():
        scale, class_scale, bias, margins = (leaf.clone().requires_grad_() for leaf in leaves)
        margin = hk.margins.ClassMargin(torch.nn.Parameter(margins), "arc")
        loss = hk.margin_softmax_loss(
            x, weight, target, margin=margin, scale=scale, class_scale=class_scale, bias=bias, label_smoothing=0.1
        )
        return loss.detach(), *torch.autograd.grad(loss, (scale, class_scale, bias, margin.margins))

    first, *others = on_threads(compute)
    assert all(value.isfinite().all() and value.any() for value in first)
    for other in others:
        for ours, right in zip(other, first, strict=True):
            assert torch.equal(ours, right)


def test_a_bias_shared_by_many_classes(on_threads):
    x, weight, target = torch.randn(3, 4), torch.randn(N, 4), torch.randint(N, (3,))

    def compute():
        bias = torch.tensor(-1.0, requires_grad=True)
        return torch.autograd.grad(hk.uniface_loss(x, weight, target, bias), bias)[0]

    assert len({gradient.item() for gradient in on_threads(compute)}) == 1


@pytest.mark.parametrize("size", [0, 1, 4096, 2**15 - 1, 2**15, 100_003])
def test_against_pytorch(size):
    values = torch.randn(size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(order.total(values), values.sum())
    scalar = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(size, dtype=torch.float64)
    made = order.spread(scalar, size)
    assert torch.equal(made, scalar.expand(size))
    torch.testing.assert_close(torch.autograd.grad(made, scalar, upstream)[0], upstream.sum()[None])
    if size:
        index = torch.randint(size, (1000,))
        assert torch.equal(order.pick(values, index), values[index])
