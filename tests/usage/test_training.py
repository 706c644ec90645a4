"""A training loop around each module: optimisers in all their forms, scaler, schedules, closures."""

import copy
import math

import pytest
import torch

import hyperkernels as hk

from .cases import SIZE, N, same

STEPS = 3


def trained(net, make, update=None, schedule=None):
    """The parameters after a few steps of a copy of the net on batches that are always the same."""
    net = copy.deepcopy(net)
    dtype = next(net.parameters()).dtype
    optimizer = make(net.parameters())
    plan = schedule and schedule(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(N, SIZE, generator=generator, dtype=dtype)
        if update is None:
            optimizer.zero_grad()
            net(x).backward()
            optimizer.step()
        else:
            update(net, optimizer, x)
        if plan:
            plan.step()
    return {name: value.detach() for name, value in net.named_parameters()}


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options)


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, lr=0.01, **options)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_optimizers_in_all_their_forms(net, make):
    wanted = trained(net, lambda parameters: make(parameters, foreach=False))
    assert all(not torch.equal(value, wanted[name]) for name, value in net.named_parameters())
    for form in ({"foreach": True}, {"fused": True}):
        same(trained(net, lambda parameters, form=form: make(parameters, **form)), wanted, rtol=1e-4, atol=1e-6)


def test_grad_scaler(net):
    """By a power of two, so that nothing is rounded otherwise; a step with an infinity is left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    def update(net, optimizer, x):
        optimizer.zero_grad()
        scaler.scale(net(x)).backward()
        scaler.step(optimizer)
        scaler.update()

    same(trained(net, sgd, update), trained(net, sgd), rtol=1e-5, atol=1e-7)
    assert scaler.get_scale() == 2.0**11

    def overflow(net, optimizer, x):
        optimizer.zero_grad()
        scaler.scale(net(x) * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()

    same(trained(net, sgd, overflow), {name: value.detach() for name, value in net.named_parameters()})


def test_schedulers(net):
    def by_hand(optimizer):
        class Plan:
            steps = 0

            def step(self):
                self.steps += 1
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * (1 + math.cos(math.pi * self.steps / 4)) / 2

        return Plan()

    def scheduled(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)

    wanted = trained(net, sgd, schedule=by_hand)
    same(trained(net, sgd, schedule=scheduled), wanted, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, wanted[name]) for name, value in trained(net, sgd).items())


def closed(net, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = net(x)
        loss.backward()
        return loss

    optimizer.step(closure)


def test_closures(net):
    """An optimiser that calls one once, and one that calls it many times a step, which the reference follows."""
    same(trained(net, sgd, closed), trained(net, sgd))

    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.05, max_iter=4)

    found = trained(net, lbfgs, closed)
    with hk.backend("reference"):
        wanted = trained(net, lbfgs, closed)
    same(found, wanted, rtol=1e-6, atol=1e-7)
    assert all(not torch.equal(value, found[name]) for name, value in net.named_parameters())
