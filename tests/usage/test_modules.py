"""What a module is for PyTorch: copied, stored, converted, taken apart, made without memory, reparametrised."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hyperkernels as hk

from .cases import HALF, LISTED, SIZE, N, Net, missing, near, same


def batch(dtype=torch.float64):
    return torch.randn(N, SIZE, dtype=torch.float64).to(dtype)


def step(net, x):
    """The loss, and the gradient of every parameter by name."""
    named = dict(net.named_parameters())
    loss = net(x)
    return loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def moved(net):
    """That net with other numbers."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5).add_(0.1)
    return net


@pytest.mark.parametrize("name", hk.nn.__all__)
def test_every_module_has_an_entry(name):
    assert not missing(name), f"tests/usage/cases.py has no ARGUMENTS or INPUTS for {missing(name)} of hk.nn.{name}"


def test_the_module_against_the_reference(net):
    x = batch()
    wanted = step(net, x)
    with hk.backend("reference"):
        same(wanted, step(net, x), rtol=1e-9, atol=1e-10)


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_a_file])
def test_a_copy_is_alike_and_apart(net, copied):
    x = batch()
    wanted, other = step(net, x), copied(net)
    same(step(other, x), wanted)
    moved(other)
    same(step(net, x), wanted)
    assert step(other, x)[0] != wanted[0]


def test_state_dict(net, request):
    """Of safe types, and whole: a net with other numbers becomes the same."""
    name = request.node.callspec.params["net"]
    x, other, file = batch(), moved(Net(name)), io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    assert step(other, x)[0] != step(net, x)[0]
    found = other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert not found.missing_keys and not found.unexpected_keys
    same(step(other, x), step(net, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_converted(net, dtype, request):
    """By half(), bfloat16() and float(): close to the net in double precision with the rounded numbers."""
    convert = {torch.float16: net.half, torch.bfloat16: net.bfloat16, torch.float32: net.float}[dtype]
    convert()
    x = batch(dtype)
    found, wanted = step(net, x), step(copy.deepcopy(net).double(), x.double())
    assert all(gradient.dtype == dtype for gradient in found[1].values())
    name, tolerance = request.node.callspec.params["net"], HALF.get(dtype, 1e-4)
    near(name, (found[0], *found[1].values()), (wanted[0], *wanted[1].values()), tolerance)


def test_functional_call(net):
    """With parameters from elsewhere, and torch.func's gradient of them."""
    x, other = batch(), moved(copy.deepcopy(net))
    named = {name: parameter.detach() for name, parameter in other.named_parameters()}
    wanted, before = step(other, x), step(net, x)
    same(functional_call(net, named, (x,)), wanted[0])
    same(step(net, x), before)
    net.eval()  # torch.func forbids a state that moves
    found = torch.func.grad(lambda named: functional_call(net, named, (x,)))(named)
    same(found, wanted[1], rtol=1e-11, atol=1e-13)


def test_made_without_memory(net, request):
    """On the device meta, then given memory and the numbers of another."""
    name = request.node.callspec.params["net"]
    with torch.device("meta"):
        other = Net(name)
        with pytest.raises(NotImplementedError) if name in LISTED else contextlib.nullcontext():
            assert other(torch.empty(N, SIZE, dtype=torch.float64)).is_meta
    assert all(value.is_meta for value in other.state_dict().values())
    other.to_empty(device="cpu").load_state_dict(net.state_dict())
    x = batch()
    same(step(other, x), step(net, x))
    with torch.device("meta"):
        assigned = Net(name)
    assigned.load_state_dict(net.state_dict(), assign=True)
    same(step(assigned, x), step(net, x))


class Doubled(torch.nn.Module):
    def forward(self, value):
        return 2 * value


def owners(net):
    """The modules of the net that have parameters, each with their names."""
    return [(module, [name for name, _ in module.named_parameters(recurse=False)]) for module in net.modules()]


def test_parametrisation(net):
    """The numbers of a net with the parametrised values, and gradients of what is behind them."""
    x, other = batch(), copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    for module, names in owners(net):
        for name in names:
            parametrize.register_parametrization(module, name, Doubled())
    loss, found = step(net, x)
    wanted, right = step(other, x)
    same(loss, wanted)
    for name, value in right.items():
        before, _, last = name.rpartition(".")
        same(found[f"{before}.parametrizations.{last}.original"], 2 * value)


def test_weight_norm(net):
    x = batch()
    wanted = step(net, x)
    for module, names in owners(net):
        if "weight" in names:
            parametrizations.weight_norm(module)
    found = step(net, x)
    same(found[0], wanted[0], rtol=1e-12, atol=1e-12)
    for module in [*net.modules()]:
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    again = step(net, x)
    same(again[0], wanted[0], rtol=1e-12, atol=1e-12)
    for name, gradient in wanted[1].items():
        same(again[1][name], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", [None, 0.75])
def test_averaged_model(net, decay):
    x = batch()
    averaged = AveragedModel(net, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay))
    wanted = None
    for seen in range(1, 4):
        moved(net)
        averaged.update_parameters(net)
        now = {name: value.detach().clone() for name, value in net.named_parameters()}
        share = 1 / seen if decay is None else 1 - decay
        wanted = now if wanted is None else {n: v + share * (now[n] - v) for n, v in wanted.items()}
    same(averaged(x), functional_call(net, wanted, (x,)), rtol=1e-12, atol=1e-12)
