"""Optimisers on the sphere, against geoopt's and against loops by hand."""

import copy

import pytest
import torch

import hyperkernels as hk
from tests.support import sphere_optim_cases as cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BOTH = pytest.mark.parametrize("make", [hk.optim.SphereSGD, hk.optim.SphereAdam])

SGD = {
    "plain": {"lr": 0.3},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampening": {"lr": 0.2, "momentum": 0.8, "dampening": 0.4, "weight_decay": 0.1},
    "nesterov": {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "far": {"lr": 100.0, "momentum": 0.5},
}
ADAM = {
    "default": {},
    "options": {"lr": 0.05, "betas": (0.7, 0.95), "eps": 1e-4, "weight_decay": 0.3},
    "no memory": {"lr": 0.1, "betas": (0.0, 0.0)},
    "amsgrad": {"lr": 0.05, "amsgrad": True},
    "far": {"lr": 100.0},
}
OPTIMIZERS = [
    *(pytest.param(hk.optim.SphereSGD, options, id=f"sgd {name}") for name, options in SGD.items()),
    *(pytest.param(hk.optim.SphereAdam, options, id=f"adam {name}") for name, options in ADAM.items()),
]


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    with hk.backend(request.param):
        yield request.param


def points(*shape, dtype=torch.float64, dim=-1):
    return torch.nn.Parameter(hk.unit_norm(torch.randn(shape, dtype=torch.float64), dim=dim).to(dtype))


def options_of(make):
    return {"lr": 0.1, "momentum": 0.9} if make is hk.optim.SphereSGD else {"lr": 0.1}


def train(optimizer, gradients):
    """A step for each list of gradients, one for each parameter of the first group."""
    for given in gradients:
        for p, gradient in zip(optimizer.param_groups[0]["params"], given, strict=True):
            p.grad = None if gradient is None else gradient.clone()
        optimizer.step()


def random_gradients(parameters, steps):
    return [[torch.randn_like(p) for p in parameters] for _ in range(steps)]


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_a_hundred_steps_are_those_of_geoopt(backend, make, options):
    geoopt = pytest.importorskip("geoopt")
    peer = geoopt.optim.RiemannianSGD if make is hk.optim.SphereSGD else geoopt.optim.RiemannianAdam
    mine = [points(7, 5), points(3), points(2, 4, 6)]
    theirs = [geoopt.ManifoldParameter(p.detach().clone(), manifold=geoopt.Sphere()) for p in mine]
    optimizers = make(mine, **options), peer(theirs, **{"lr": 1e-3} | options)
    for gradients in random_gradients(mine, 100):
        for optimizer in optimizers:
            train(optimizer, [gradients])
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach().as_subclass(torch.Tensor), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_a_hundred_steps_are_those_by_hand(backend, make, options):
    mine = points(4, 5)
    optimizer = make([mine], **options)
    options = {"lr": 1e-3} | options
    kind = "sgd" if make is hk.optim.SphereSGD else "adam"
    if kind == "sgd":
        by_hand = {name: options.get(name, 0.0) for name in ("momentum", "dampening")}
        by_hand |= {"nesterov": options.get("nesterov", False), "maximize": False}
        state = ([torch.zeros(4, 5).double()] if by_hand["momentum"] else [],)
    else:
        beta1, beta2 = options.get("betas", (0.9, 0.999))
        by_hand = {"beta1": beta1, "beta2": beta2, "eps": options.get("eps", 1e-8), "maximize": False}
        numbers = [torch.zeros(4).double()]
        state = ([torch.zeros(4, 5).double()], numbers, copy.deepcopy(numbers) if "amsgrad" in options else [])
    p = cases.Problem([mine.detach().clone()], state, [torch.zeros(4, dtype=torch.int32)], [])
    for gradients in random_gradients([mine], 100):
        train(optimizer, [gradients])
        p = cases.by_hand(kind, p._replace(gradients=gradients), by_hand, options["lr"])
    torch.testing.assert_close(mine.detach(), p.points[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@BOTH
def test_a_thousand_steps_stay_on_the_sphere(make, dtype):
    weight = points(20, 48, dtype=dtype)
    optimizer = make([weight], **options_of(make))
    train(optimizer, random_gradients([weight], 1000))
    norms = weight.detach().double().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=max(1e-6, torch.finfo(dtype).eps / 2))
    momentum = optimizer.state[weight]["momentum_buffer" if make is hk.optim.SphereSGD else "exp_avg"].double()
    if dtype == torch.float32:
        radial = (hk.unit_norm(weight.detach().double()) * momentum).sum(1)
        assert (radial.abs() / momentum.norm(dim=1)).max() < 1e-6


@BOTH
def test_it_finds_the_mean_direction(backend, make):
    """The largest x . mean over the sphere is at the mean's direction."""
    weight, mean = points(6, 8), torch.randn(6, 8, dtype=torch.float64)
    optimizer = make([weight], lr=0.1, maximize=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)

    def closure():
        optimizer.zero_grad()
        value = (weight * mean).sum()
        value.backward()
        return value

    for _ in range(600):
        found = optimizer.step(closure)
        scheduler.step()
    torch.testing.assert_close(found.detach(), mean.norm(dim=1).sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dim", [0, 1, 2, -3])
@BOTH
def test_vectors_along_any_dimension(backend, make, dim):
    """As with the vectors moved last, whatever the strides of parameter and gradient."""
    first = points(4, 5, 6, dim=dim)
    second = torch.nn.Parameter(first.detach().movedim(dim, -1).clone())
    third = torch.nn.Parameter(first.detach().clone().permute(2, 0, 1).contiguous().permute(1, 2, 0))
    assert not third.is_contiguous()
    optimizers = (
        make([first], dim=dim, **options_of(make)),
        make([second], **options_of(make)),
        make([{"params": [third], "dim": dim}], **options_of(make)),
    )
    for (gradient,) in random_gradients([first], 4):
        for optimizer, given in zip(optimizers, (gradient, gradient.movedim(dim, -1), gradient), strict=True):
            train(optimizer, [[given]])
    for p in (first, third):
        assert torch.equal(p.movedim(dim, -1), second)
    state = optimizers[0].state[first]
    assert state["step"].shape == (120 // first.shape[dim],) and state["step"].dtype == torch.int32
    for name, value in state.items():
        assert value.shape == (first.shape if name in ("momentum_buffer", "exp_avg") else state["step"].shape)


@BOTH
def test_many_parameters_are_as_one_at_a_time(backend, make):
    """Of several dtypes and groups, one without a gradient, which stays."""
    mine = [points(4, 5), points(300, 64, dtype=torch.float32), points(3, 2), points(5, dtype=torch.bfloat16)]
    alone = copy.deepcopy(mine)
    together = make([{"params": mine[:3], "lr": 0.3}, {"params": mine[3:]}], **options_of(make))
    each = [make([p], **options_of(make) | ({"lr": 0.3} if i < 3 else {})) for i, p in enumerate(alone)]
    for gradients in random_gradients(mine, 3):
        gradients[2] = None
        for p, q, optimizer, gradient in zip(mine, alone, each, gradients, strict=True):
            p.grad = gradient
            train(optimizer, [[gradient]])
            assert q.grad is None or q.grad is not p.grad
        together.step()
    for p, q in zip(mine, alone, strict=True):
        assert torch.equal(p, q)
    assert mine[2] not in together.state
