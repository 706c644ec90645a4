"""What a training loop does with the optimisers on the sphere, and with any other that it renormalises after."""

import copy

import pytest
import torch

import hyperkernels as hk

from .test_sphere import BOTH, options_of, points, random_gradients, train


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("amsgrad", [False, True])
@BOTH
def test_a_checkpoint_continues_the_run(make, amsgrad, dtype):
    """The same bits with and without the interruption; the state of half-precision points keeps its float32."""
    options = options_of(make) | ({"amsgrad": True} if amsgrad and make is hk.optim.SphereAdam else {})
    weight = points(6, 4, dtype=dtype, dim=0)
    optimizer = make([weight], dim=0, **options)
    gradients = random_gradients([weight], 8)
    train(optimizer, gradients[:4])
    resumed = torch.nn.Parameter(weight.detach().clone())
    other = make([resumed], lr=7.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, value in optimizer.state[weight].items():
        assert other.state[resumed][name].dtype == value.dtype
        assert torch.equal(other.state[resumed][name], value)
    train(optimizer, gradients[4:])
    train(other, gradients[4:])
    assert torch.equal(weight, resumed)


def test_a_checkpoint_of_another_optimiser_is_refused():
    weight = points(4, 3)
    old = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    train(old, random_gradients([weight], 1))
    with pytest.raises(ValueError, match="that of SphereSGD; it has no dim"):
        hk.optim.SphereSGD([weight], lr=0.1).load_state_dict(old.state_dict())
    old = hk.optim.SphereAdam([weight])
    train(old, random_gradients([weight], 1))
    with pytest.raises(ValueError, match="a step for each of the 5 rows; got 4"):
        hk.optim.SphereAdam([points(5, 3)]).load_state_dict(old.state_dict())


@pytest.mark.parametrize("unscale", [False, True])
@BOTH
def test_gradient_scaler(make, unscale):
    """Scaled steps are the plain ones; a step with an infinity changes nothing and lowers the scale."""
    weight = points(5, 3, dtype=torch.float32)
    plain = copy.deepcopy(weight)
    optimizer, other = make([weight], **options_of(make)), make([plain], **options_of(make))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i, (gradient,) in enumerate(random_gradients([weight], 4)):
        weight.grad = gradient * scaler.scale(torch.ones(()))
        if i == 2:
            weight.grad[0, 1] = torch.inf
            before = weight.detach().clone()
        else:
            train(other, [[gradient]])
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if i == 2:
            assert torch.equal(weight, before) and (optimizer.state[weight]["step"] == 2).all()
        torch.testing.assert_close(weight, plain, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == 512.0


@BOTH
def test_new_memory_is_never_read(make, poisoned_memory):
    weight = points(5, 3, dtype=torch.float32)
    for dim in (0, 1):
        optimizer = make([weight], dim=dim, **options_of(make))
        train(optimizer, random_gradients([weight], 3))
        assert weight.isfinite().all()


@BOTH
def test_the_learning_rate_may_be_a_tensor(make):
    first, second = points(4, 3), points(4, 3)
    second.data.copy_(first)
    rate = torch.tensor(0.2, dtype=torch.float64)
    optimizers = make([first], lr=rate), make([second], lr=0.2)
    for gradients in random_gradients([first], 3):
        for optimizer in optimizers:
            train(optimizer, [gradients])
        rate *= 0.5
        optimizers[1].param_groups[0]["lr"] *= 0.5
    assert torch.equal(first, second)


@BOTH
def test_a_compiled_step(make):
    torch._dynamo.reset()
    mine, theirs = points(6, 4), points(3, 4)
    copies = copy.deepcopy([mine, theirs])
    optimizers = make([mine, theirs], **options_of(make)), make(copies, **options_of(make))
    compiled = torch.compile(optimizers[0].step, backend="aot_eager", fullgraph=True)
    for gradients in random_gradients(copies, 3):
        for p, q, gradient in zip((mine, theirs), copies, gradients, strict=True):
            p.grad, q.grad = gradient.clone(), gradient.clone()
        compiled()
        optimizers[1].step()
    torch.testing.assert_close([mine, theirs], copies, rtol=0, atol=1e-12)


@BOTH
def test_the_update_within_the_backward(make):
    """Chunk by chunk of a head's classes, as after the backward."""
    head = hk.nn.MarginSoftmax(8, 300, dtype=torch.float64)
    hk.unit_norm_(head.weight)
    heads = head, copy.deepcopy(head)
    optimizers = [make(h.parameters(), **options_of(make)) for h in heads]
    hk.optim.update_in_backward(heads[1].weight, optimizers[1], chunk_classes=150)
    for _ in range(3):
        x, target = torch.randn(20, 8, dtype=torch.float64), torch.randint(0, 300, (20,))
        for h, optimizer in zip(heads, optimizers, strict=True):
            h(x, target).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert heads[1].weight.grad is None
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=0, atol=1e-12)
    handle = hk.optim.update_in_backward(heads[0].weight, make([{"params": [heads[0].weight], "dim": 0}], lr=0.1))
    with pytest.raises(ValueError, match="dim must be -1 for a weight that is updated in its backward"):
        heads[0](x, target).backward()
    handle.remove()


def test_autograd_sees_that_the_points_changed():
    weight = points(3, 2)
    loss = weight.square().sum()
    weight.grad = torch.ones_like(weight)
    hk.optim.SphereSGD([weight], 0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@BOTH
def test_gradients_that_are_refused(make):
    weight = points(4, 3)
    optimizer = make([weight], lr=0.1)
    weight.grad = torch.ones(4, 3, dtype=torch.float64).to_sparse(1)
    with pytest.raises(ValueError, match=rf"a gradient must be dense for {make.__name__}; got torch.sparse_coo"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "options", "error", "said"),
    [
        (hk.optim.SphereSGD, {"lr": -1.0}, ValueError, "lr must be at least 0"),
        (hk.optim.SphereSGD, {"lr": torch.ones(2)}, ValueError, "lr must be a number or a tensor of one element"),
        (hk.optim.SphereSGD, {"momentum": -0.1}, ValueError, "momentum must be at least 0"),
        (hk.optim.SphereSGD, {"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0"),
        (hk.optim.SphereSGD, {"nesterov": True}, ValueError, "nesterov needs a momentum"),
        (hk.optim.SphereSGD, {"dim": 0.5}, TypeError, "dim must be an int"),
        (hk.optim.SphereSGD, {"dim": 2}, ValueError, r"dim must be a dimension of every parameter; got 2 .*\(2, 2\)"),
        (hk.optim.SphereAdam, {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be below 1"),
        (hk.optim.SphereAdam, {"betas": 0.9}, ValueError, "betas must be two numbers"),
        (hk.optim.SphereAdam, {"eps": -1e-8}, ValueError, "eps must be at least 0"),
        (hk.optim.SphereAdam, {"amsgrad": 1}, TypeError, "amsgrad must be True or False"),
        (hk.optim.SphereAdam, {"dim": -3}, ValueError, "dim must be a dimension of every parameter"),
    ],
)
def test_options_that_are_refused(make, options, error, said):
    options = {"lr": 0.1} | options
    with pytest.raises(error, match=said):
        make([points(2, 2)], **options)
    with pytest.raises(error, match=said):
        make([{"params": [points(2, 2)], **options}], lr=0.1)


def test_parameters_that_are_refused():
    with pytest.raises(TypeError, match="params must have dtype"):
        hk.optim.SphereAdam([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="dim must be a dimension of every parameter"):
        hk.optim.SphereAdam([torch.nn.Parameter(torch.zeros(()))])


# Any optimiser, then back to the sphere.


def lengths(p, dim=-1):
    return p.detach().norm(dim=dim)


@pytest.mark.parametrize("make", [torch.optim.AdamW, hk.optim.SGD])
def test_renormalised_after_every_step(make):
    """Matrices along their own dimensions, those without a gradient too; the rest is left alone."""
    matrices = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    bias = torch.nn.Parameter(torch.randn(4))
    optimizer = make([*matrices, bias], lr=0.1)
    before = bias.detach().clone()
    handle = hk.optim.renormalize(optimizer, [(matrices[0], 0), matrices[1], (matrices[2], -1)])
    for i in range(4):
        for p, dim in zip(matrices, (0, -1, -1), strict=True):
            torch.testing.assert_close(lengths(p, dim), torch.ones_like(lengths(p, dim)), rtol=0, atol=1e-6)
        assert torch.equal(bias, before) == (i == 0)
        for p in (*matrices[:2], bias):
            p.grad = torch.randn_like(p)
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert (lengths(matrices[1]) - 1).abs().max() > 1e-4


def test_renormalised_by_default():
    """All of the optimizer that have two dimensions or more, also those of groups that come later."""
    first, bias, late = (torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4,), (3, 2, 5)))
    optimizer = torch.optim.SGD([first, bias], lr=0.1)
    before = bias.detach().clone()
    hk.optim.renormalize(optimizer, dim=0)
    optimizer.add_param_group({"params": [late]})
    for p in (first, late):
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p in (first, late):
        torch.testing.assert_close(lengths(p, 0), torch.ones_like(lengths(p, 0)), rtol=0, atol=1e-6)
    assert torch.equal(bias, before)


def test_renormalised_steps_are_those_of_ngpt():
    """AdamW, then the projection."""
    mine = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    theirs = copy.deepcopy(mine)
    optimizers = [torch.optim.AdamW([p], lr=0.1, weight_decay=0) for p in (mine, theirs)]
    hk.optim.renormalize(optimizers[0])
    theirs.data.div_(theirs.data.norm(dim=1, keepdim=True))
    for _ in range(5):
        mine.grad = torch.randn_like(mine)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        theirs.data.div_(theirs.data.norm(dim=1, keepdim=True))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_renormalisation_refuses():
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for given, error, said in (
        ((weight,), TypeError, "optimizer must be a torch.optim.Optimizer; got Parameter"),
        ((optimizer, weight), TypeError, "params must be parameters, or pairs"),
        ((optimizer, [3]), TypeError, "params must be a torch.Tensor"),
        ((optimizer, [(weight, 2)]), ValueError, r"dim must be a dimension of its parameter; got 2 for shape \(3, 2\)"),
        ((optimizer, [(weight, 0.5)]), TypeError, "dim must be an int"),
    ):
        with pytest.raises(error, match=said):
            hk.optim.renormalize(*given)
    with pytest.raises(TypeError, match="dim must be an int"):
        hk.optim.renormalize(optimizer, dim="rows")
