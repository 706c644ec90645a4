"""What a training loop does with an optimiser: groups, schedulers, checkpoints, loss scaling, clipping."""

import copy

import pytest
import torch

import hyperkernels as hk

from .test_rows import parameter, sparse

BOTH = pytest.mark.parametrize(
    ("ours", "peer"), [(hk.optim.SGD, torch.optim.SGD), (hk.optim.AdamW, torch.optim.AdamW)], ids=["sgd", "adamw"]
)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def options_of(make):
    return {"lr": 0.1, "momentum": 0.9} if "SGD" in make.__name__ else {"lr": 0.1}


def random_gradients(parameters):
    for p in parameters:
        p.grad = torch.randn_like(p)


@BOTH
def test_groups_and_schedulers(ours, peer):
    first = [parameter(4, 3), parameter(3)]
    second = copy.deepcopy(first)
    optimizers = [
        make([{"params": p[:1], "lr": 0.3}, {"params": p[1:], "weight_decay": 0.4}], **options_of(make))
        for make, p in ((ours, first), (peer, second))
    ]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5) for optimizer in optimizers]
    for i in range(5):
        random_gradients(first)
        for p, q in zip(first, second, strict=True):
            q.grad = p.grad.clone()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        if i == 1:
            for parameters, optimizer in zip((first, second), optimizers, strict=True):
                torch.manual_seed(5)
                parameters.append(parameter(2, 2))
                optimizer.add_param_group({"params": parameters[-1:], "lr": 0.01})
                schedulers[optimizers.index(optimizer)] = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    torch.testing.assert_close(first, second, **EXACT)


@BOTH
def test_closure_and_hooks(ours, peer):
    called = []
    weight = parameter(3, 2)
    optimizer = ours([("weight", weight)], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == sorted(losses, reverse=True) and called == ["after"] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@BOTH
def test_a_checkpoint_continues_the_run(ours, peer, dtype):
    """The same bits with and without the interruption; the state of a half-precision weight keeps its float32."""
    weight = parameter(6, 4, dtype=dtype)
    optimizer = ours([weight], **options_of(ours))
    gradients = [sparse(torch.randperm(6)[:3], torch.randn(3, 4).to(dtype), 6) for _ in range(8)]
    for gradient in gradients[:4]:
        weight.grad = gradient
        optimizer.step()
    resumed = torch.nn.Parameter(weight.detach().clone())
    other = ours([resumed], lr=7.0)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    for name, value in optimizer.state[weight].items():
        assert other.state[resumed][name].dtype == value.dtype
        assert torch.equal(other.state[resumed][name], value)
    for gradient in gradients[4:]:
        weight.grad = resumed.grad = gradient
        optimizer.step()
        other.step()
    assert torch.equal(weight, resumed)


@pytest.mark.parametrize(
    ("make", "old", "said"),
    [
        (hk.optim.AdamW, lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad must be False"),
        (hk.optim.SGD, torch.optim.AdamW, "that of SGD; it has no dampening, momentum, nesterov"),
        (hk.optim.AdamW, hk.optim.SGD, "that of AdamW; it has no amsgrad, betas, eps"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(make, old, said):
    """Nothing of it is loaded."""
    weight = parameter(4, 3)
    before = old([weight])
    random_gradients([weight])
    before.step()
    optimizer = make([weight])
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(before.state_dict())
    assert not optimizer.state and optimizer.param_groups == make([weight]).param_groups


def test_a_checkpoint_of_other_rows_is_refused():
    weight = parameter(4, 3)
    optimizer = hk.optim.SGD([weight])
    random_gradients([weight])
    optimizer.step()
    with pytest.raises(ValueError, match="a step for each of the 5 rows; got 4"):
        hk.optim.SGD([parameter(5, 3)]).load_state_dict(optimizer.state_dict())


def test_hooks_may_change_what_is_loaded():
    weight = parameter(4, 3, dtype=torch.bfloat16)
    optimizer = hk.optim.SGD([weight], momentum=0.9)
    random_gradients([weight])
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    wanted = saved["state"][0]["momentum_buffer"] * 3
    other = hk.optim.SGD([weight], momentum=0.9)

    def thrice(_, state):
        state = copy.deepcopy(state)
        state["state"][0]["momentum_buffer"] *= 3
        return state

    other.register_load_state_dict_pre_hook(thrice)
    other.register_load_state_dict_post_hook(lambda found: found.state[weight]["momentum_buffer"].neg_())
    other.load_state_dict(saved)
    assert torch.equal(other.state[weight]["momentum_buffer"], -wanted) and wanted.dtype == torch.float32
    other.load_state_dict(saved)  # nothing of ours stays behind
    assert torch.equal(other.state[weight]["momentum_buffer"], -wanted)


@BOTH
def test_a_checkpoint_of_torch_is_taken(ours, peer):
    mine = [parameter(4, 3), parameter(), parameter(2)]
    theirs = copy.deepcopy(mine)
    old = peer(theirs, **options_of(peer))
    for _ in range(3):
        random_gradients(theirs[:2])
        old.step()
    for p, q in zip(mine, theirs, strict=True):
        p.data.copy_(q)
    new = ours(mine, **options_of(ours))
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    for _ in range(3):
        random_gradients(theirs)
        for p, q in zip(mine, theirs, strict=True):
            p.grad = q.grad.clone()
        old.step()
        new.step()
    torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("unscale", [False, True])
@BOTH
def test_gradient_scaler(ours, peer, form, unscale):
    """Scaled steps are the plain ones; a step with an infinity changes nothing and lowers the scale."""
    weight = parameter(5, 3, dtype=torch.float32)
    plain = copy.deepcopy(weight)
    optimizer, other = ours([weight], **options_of(ours)), ours([plain], **options_of(ours))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i in range(4):
        gradient = torch.randn(5, 3)
        plain.grad = gradient if form == "dense" else sparse([0, 2, 2], gradient[:3], 5)
        weight.grad = plain.grad.clone() * scaler.scale(torch.ones(()))
        if i == 2:
            (weight.grad if form == "dense" else weight.grad._values())[0, 1] = torch.inf
            before, step = weight.detach().clone(), optimizer.state[weight]["step"].clone()
        else:
            other.step()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if i == 2:
            assert torch.equal(weight, before) and torch.equal(step, optimizer.state[weight]["step"])
            assert scaler.get_scale() == 512.0
        torch.testing.assert_close(weight, plain, rtol=1e-6, atol=1e-7)
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_clipping_takes_sparse_gradients(norm_type, max_norm):
    mine = [parameter(5, 3), parameter(4), parameter(2)]
    theirs = copy.deepcopy(mine)
    values = torch.randn(3, 3, dtype=torch.float64)
    mine[0].grad, mine[1].grad = sparse([1, 4, 1], values, 5), torch.randn(4, dtype=torch.float64)
    theirs[0].grad, theirs[1].grad = mine[0].grad.to_dense(), mine[1].grad.clone()
    found = hk.optim.clip_grad_norm_(mine, max_norm, norm_type)
    torch.testing.assert_close(found, torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type), **EXACT)
    torch.testing.assert_close(mine[0].grad.to_dense(), theirs[0].grad, **EXACT)
    torch.testing.assert_close(mine[1].grad, theirs[1].grad, **EXACT)
    assert hk.optim.clip_grad_norm_(mine[2], 1.0) == 0


def test_clipping_can_refuse_what_is_not_finite():
    weight = parameter(5, 3)
    weight.grad = sparse([1], torch.full((1, 3), torch.nan, dtype=torch.float64), 5)
    assert hk.optim.clip_grad_norm_(iter([weight]), 1.0).isnan()
    with pytest.raises(RuntimeError, match="non-finite"):
        hk.optim.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize(
    ("make", "options", "error", "said"),
    [
        (hk.optim.SGD, {"lr": -1.0}, ValueError, "lr must be at least 0"),
        (hk.optim.SGD, {"lr": torch.ones(2)}, ValueError, "lr must be a number or a tensor of one element"),
        (hk.optim.SGD, {"lr": torch.tensor(-1.0)}, ValueError, "lr must be at least 0"),
        (hk.optim.SGD, {"momentum": -0.1}, ValueError, "momentum must be at least 0"),
        (hk.optim.SGD, {"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0"),
        (hk.optim.SGD, {"nesterov": True}, ValueError, "nesterov needs a momentum"),
        (hk.optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov needs"),
        (hk.optim.AdamW, {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be below 1"),
        (hk.optim.AdamW, {"betas": 0.9}, ValueError, "betas must be two numbers"),
        (hk.optim.AdamW, {"eps": -1e-8}, ValueError, "eps must be at least 0"),
        (hk.optim.AdamW, {"amsgrad": True}, ValueError, "amsgrad must be False"),
        (hk.optim.AdamW, {"lr": "fast"}, TypeError, "lr must be a number"),
    ],
)
def test_options_that_are_refused(make, options, error, said):
    with pytest.raises(error, match=said):
        make([parameter(2, 2)], **options)
    with pytest.raises(error, match=said):
        make([{"params": [parameter(2, 2)], **options}])


def test_dtypes_that_are_refused():
    with pytest.raises(TypeError, match="params must have dtype"):
        hk.optim.SGD([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
