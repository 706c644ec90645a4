"""The update within the backward: the same steps as after it, without the gradient of the weight."""

import copy

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.margin_softmax import op
from tests.support import report
from tests.support.accuracy import assert_as_accurate

BOTH = [
    pytest.param(lambda p: hk.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2), id="sgd"),
    pytest.param(lambda p: hk.optim.AdamW(p, lr=1e-2), id="adamw"),
]
M = hk.margins
MarginSoftmax = hk.nn.MarginSoftmax
# Heads over 700 classes: tiles of 128 classes, or of 64 with 2 centres and so on.
HEADS = {
    "arcface": lambda **kw: MarginSoftmax(8, 700, **kw),
    "sub-centres": lambda **kw: MarginSoftmax(8, 700, sub_centers=3, margin=M.CosFace(0.3), scale=12.0, **kw),
    "curricularface": lambda **kw: MarginSoftmax(8, 700, margin=M.CurricularFace(), **kw),
    "adacos": lambda **kw: MarginSoftmax(8, 700, margin=M.AdaCos(700), **kw),
    "magface": lambda **kw: MarginSoftmax(8, 700, margin=M.MagFace(l_a=1.0, u_a=6.0), **kw),
    "learned": lambda **kw: MarginSoftmax(
        8, 700, margin=M.NormFace(), scale=5.0, learn_scale=True, class_scale=True, bias=True, **kw
    ),
    "products": lambda **kw: MarginSoftmax(
        8, 700, margin=M.NormFace(), scale=1.0, normalize_x=False, normalize_weight=False, bias=True, **kw
    ),
    "smoothing": lambda **kw: MarginSoftmax(8, 700, label_smoothing=0.1, **kw),
    "skipping": lambda **kw: MarginSoftmax(8, 700, skip_budget=0.3, **kw),
    "sface": lambda **kw: hk.nn.SFace(8, 700, **kw),
    "sphereface2": lambda **kw: hk.nn.SphereFace2(8, 700, sub_centers=2, **kw),
    "uniface": lambda **kw: hk.nn.UniFace(8, 700, **kw),
}


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    with hk.backend(request.param):
        yield request.param


def batch(n=40, classes=700, dtype=torch.float64, ignored=True):
    target = torch.randint(0, classes, (n,))
    if ignored:
        target[::7] = -100
    target[1], target[2] = 0, classes - 1
    return torch.randn(n, 8, dtype=torch.float64).to(dtype), target


def pair(make_head, make_optimizer, dtype=torch.float64, **options):
    """A head and its optimiser, twice; the second one updates its weight in the backward."""
    head = make_head(dtype=dtype)
    heads = head, copy.deepcopy(head)
    optimizers = [make_optimizer(h.parameters()) for h in heads]
    handle = hk.optim.update_in_backward(heads[1].weight, optimizers[1], **options)
    return heads, optimizers, handle


def step(head, optimizer, x, target, scale=1.0):
    """The loss and the gradient of x."""
    x = x.clone().requires_grad_()
    loss = head(x, target) * scale
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach(), x.grad


@pytest.mark.parametrize("make_optimizer", BOTH)
@pytest.mark.parametrize("chunk", [1, 300, None])
@pytest.mark.parametrize("make_head", HEADS.values(), ids=HEADS)
def test_the_same_training(make_head, chunk, make_optimizer, backend):
    heads, optimizers, _ = pair(make_head, make_optimizer, chunk_classes=chunk)
    for _ in range(4):
        x, target = batch()
        ordinary, ours = (step(h, o, x, target) for h, o in zip(heads, optimizers, strict=True))
        torch.testing.assert_close(ours, ordinary, rtol=1e-12, atol=1e-12)
        assert heads[1].weight.grad is None
    for mine, theirs in zip(heads[1].parameters(), heads[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    states = [o.state[h.weight] for h, o in zip(heads, optimizers, strict=True)]
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12)


def test_what_is_skipped_is_skipped_in_chunks_too():
    """Learned rows: most tiles go, and the report is that of the ordinary backward."""
    heads, optimizers, _ = pair(HEADS["skipping"], BOTH[0].values[0], chunk_classes=256)
    target = torch.arange(40) * 3
    x = heads[0].weight.detach()[target] + 0.05 * torch.randn(40, 8).double()
    for head, optimizer in zip(heads, optimizers, strict=True):
        step(head, optimizer, x, target)
    assert heads[1].skipped_tiles == heads[0].skipped_tiles > 0.1
    assert heads[1].dropped_mass == heads[0].dropped_mass > 0
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", ["none", "all ignored", "one class"])
def test_edges(rows, backend):
    classes = 1 if rows == "one class" else 300
    heads, optimizers, _ = pair(lambda **kw: MarginSoftmax(8, classes, **kw), BOTH[1].values[0], chunk_classes=128)
    for _ in range(2):
        x, target = torch.randn(0 if rows == "none" else 5, 8, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        if rows != "none":
            target = torch.full((5,), -100 if rows == "all ignored" else 0)
        ordinary, ours = (step(h, o, x, target) for h, o in zip(heads, optimizers, strict=True))
        torch.testing.assert_close(ours, ordinary, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=1e-12, atol=1e-12)


def test_a_class_index_that_is_ignored_and_absent_classes():
    """ignore_index may be a class, and rows may have their class in another shard."""
    weight = torch.nn.Parameter(torch.randn(500, 8, dtype=torch.float64))
    weights = weight, copy.deepcopy(weight)
    optimizers = [hk.optim.SGD([w], lr=0.1) for w in weights]
    hk.optim.update_in_backward(weights[1], optimizers[1], chunk_classes=128)
    x, target = batch(30, 500, ignored=False)
    target[::4], target[1::5] = -7, 3
    for w, optimizer in zip(weights, optimizers, strict=True):
        found = hk.class_statistics(x, w, target, scale=9.0, ignore_index=3, absent_index=-7)
        (found.neg_lse[target != 3] - 4 * found.target_cos[target != 3]).sum().backward()
        optimizer.step()
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make_optimizer", BOTH)
def test_sampled_classes(make_optimizer, autocast, backend):
    """The rows of the classes that take part, in chunks; the others keep their bits and their steps."""
    dtype = torch.float32 if autocast else torch.float64
    weight = torch.nn.Parameter(torch.randn(1000 * 2, 8, dtype=dtype))
    weights = weight, copy.deepcopy(weight)
    optimizers = [make_optimizer([w]) for w in weights]
    hk.optim.update_in_backward(weights[1], optimizers[1], chunk_classes=128)
    for _ in range(3):
        classes = torch.randperm(1000)[:450].sort().values
        x, target = torch.randn(30, 8, dtype=dtype), classes[torch.randint(0, 450, (30,))]
        target[::7] = -100
        found = []
        for w, optimizer in zip(weights, optimizers, strict=True):
            v = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                hk.margin_softmax_loss(v, w, target, classes=classes, sub_centers=2, scale=10.0).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append((v.grad, w.detach(), optimizer.state[w]["step"]))
        assert weights[1].grad is None
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(found[1], found[0], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accuracy_of_other_dtypes(dtype):
    """Gradient of x and weight, many chunks against float64: as accurate as the formula in the same dtype."""
    head = MarginSoftmax(8, 2000, dtype=dtype)
    truth = copy.deepcopy(head).double()
    peer = copy.deepcopy(head)
    x, target = batch(64, 2000, dtype)
    optimizer = hk.optim.SGD(head.parameters(), lr=0.5)
    hk.optim.update_in_backward(head.weight, optimizer, chunk_classes=1)
    mine = step(head, optimizer, x, target)[1]
    with hk.backend("reference"):
        theirs = step(peer, hk.optim.SGD(peer.parameters(), lr=0.5), x, target)[1]
        right = step(truth, hk.optim.SGD(truth.parameters(), lr=0.5), x.double(), target)[1]
    assert_as_accurate(mine, theirs, right, what="dx")
    assert_as_accurate(head.weight.detach(), peer.weight.detach(), truth.weight.detach(), what="weight")


def test_autocast_updates_the_weight_itself():
    heads, optimizers, _ = pair(HEADS["arcface"], BOTH[0].values[0], torch.float32, chunk_classes=200)
    x, target = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [step(h, o, x, target) for h, o in zip(heads, optimizers, strict=True)]
    assert heads[1].weight.dtype == torch.float32 and heads[1].weight.grad is None
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=0, atol=1e-6)


def test_schedulers_checkpoints_and_the_end():
    """Rates of the scheduler count, also after a checkpoint was loaded; a removed handle leaves an ordinary head."""
    heads, optimizers, handle = pair(HEADS["arcface"], BOTH[0].values[0])
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in optimizers]
    for i in range(4):
        x, target = batch()
        for head, optimizer, scheduler in zip(heads, optimizers, schedulers, strict=True):
            step(head, optimizer, x, target)
            scheduler.step()
        if i == 1:
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=1e-12, atol=1e-12)
    assert not hasattr(copy.deepcopy(heads[1]).weight, "_gradient_receiver")
    handle.remove()
    handle.remove()
    x, target = batch()
    heads[1](x, target).backward()
    assert heads[1].weight.grad is not None
    hk.optim.update_in_backward(heads[1].weight, optimizers[1])


@pytest.mark.parametrize("where", ["nowhere", "incoming", "chunk"])
def test_gradient_scaler(where, monkeypatch):
    """Scaled steps are the plain ones. An infinity leaves the weight alone, and reaches the scaler through x."""
    heads, optimizers, handle = pair(HEADS["arcface"], BOTH[1].values[0], torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    handle.remove()
    hk.optim.update_in_backward(heads[1].weight, optimizers[1], chunk_classes=256, scaler=scaler)
    backbone = torch.nn.Linear(8, 8)
    sgd = torch.optim.SGD(backbone.parameters(), lr=0.1)
    x, target = batch(dtype=torch.float32)
    step(heads[0], optimizers[0], backbone(x).detach(), target)
    before = heads[1].weight.detach().clone()
    if where == "chunk":  # the second one's gradient overflows, as one of float16 may
        kernel = optimizers[1]._update

        def overflowing(weight, group, gradient, rows, scaling):
            kernel(weight, group, gradient, rows, scaling)
            received.append(scaling)

        received = []
        monkeypatch.setattr(optimizers[1], "_update", overflowing)
        backward = op.BACKWARD
        calls = []

        def once(call, backend):
            calls.append(0)
            found = backward(call, backend)
            return found._replace(dweight=found.dweight * torch.inf) if len(calls) == 2 else found

        monkeypatch.setattr(op, "BACKWARD", once)
    loss = scaler.scale(heads[1](backbone(x), target))
    if where == "incoming":
        loss = loss * torch.inf
    loss.backward()
    scaler.step(sgd)
    scaler.update()
    assert scaler.get_scale() == 2.0**16 if where == "nowhere" else 2.0**15
    if where == "nowhere":
        torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=1e-5, atol=1e-6)
    elif where == "incoming":
        assert torch.equal(heads[1].weight, before)
    else:
        assert [bool(s.found_inf) for s in received] == [False, True, True]
        assert torch.equal(heads[1].weight[256:], before[256:])
        torch.testing.assert_close(heads[1].weight[:256], heads[0].weight[:256], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_one_forward_a_backward(backend):
    (_, head), _, _ = pair(HEADS["arcface"], BOTH[0].values[0])
    x, target = batch()
    loss = head(x, target)
    loss.backward(retain_graph=True)
    after = head.weight.detach().clone()
    with pytest.raises(RuntimeError, match="each backward needs a forward of its own"):
        loss.backward()
    first, second = head(x, target), head(x, target)
    with pytest.raises(RuntimeError, match="each backward needs a forward of its own"):
        (first + second).backward()
    assert not torch.equal(head.weight, after)  # the first of the two came through
    after = head.weight.detach().clone()
    with pytest.raises(RuntimeError, match="no create_graph"):
        head(x, target).backward(create_graph=True)
    with torch.no_grad():
        head(x, target)
    assert torch.equal(head.weight, after)


def test_gradients_of_other_tensors_update_nothing(backend):
    (ordinary, head), _, _ = pair(HEADS["learned"], BOTH[0].values[0])
    before = head.weight.detach().clone()
    x, target = batch()
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(ordinary(x, target), x)
    torch.testing.assert_close(torch.autograd.grad(head(x, target), x)[0], wanted, rtol=1e-12, atol=1e-12)
    head(x, target).backward(inputs=[head.bias])
    assert head.bias.grad is not None and torch.equal(head.weight, before)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(head(x, target), head.weight)


def test_a_gradient_from_elsewhere_is_left_to_the_step():
    heads, optimizers, _ = pair(HEADS["arcface"], lambda p: hk.optim.SGD(p, lr=0.1))
    x, target = batch()
    for head, optimizer in zip(heads, optimizers, strict=True):
        (head(x, target) + head.weight.sum()).backward()
        assert (head.weight.grad == 1).all() == (head is heads[1])
        optimizer.step()
    torch.testing.assert_close(heads[1].weight, heads[0].weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"optimizer": torch.optim.SGD([torch.zeros(1)])}, TypeError, "optimizer must be one of hyperkernels.optim"),
        ({"optimizer": hk.optim.SGD([torch.nn.Parameter(torch.zeros(1))])}, ValueError, "among the optimizer's"),
        ({"weight": torch.zeros(4, 3)}, ValueError, "weight must be a contiguous leaf"),
        ({"weight": torch.nn.Parameter(torch.zeros(4))}, ValueError, "weight must have 2 dimension"),
        ({"chunk_classes": 0}, ValueError, "chunk_classes must be at least 1"),
        ({"chunk_classes": 2.5}, TypeError, "chunk_classes must be an int"),
        ({"scaler": 1024.0}, TypeError, "scaler must be a torch.amp.GradScaler"),
    ],
)
def test_what_is_refused(change, error, said):
    weight = torch.nn.Parameter(torch.zeros(4, 3))
    arguments = {"weight": weight, "optimizer": hk.optim.SGD([weight])} | change
    with pytest.raises(error, match=said):
        hk.optim.update_in_backward(**arguments)


def test_twice_and_float16_are_refused():
    weight = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float16))
    optimizer = hk.optim.SGD([weight])
    with pytest.raises(ValueError, match="unscales no float16"):
        hk.optim.update_in_backward(weight, optimizer, scaler=torch.amp.GradScaler("cpu"))
    hk.optim.update_in_backward(weight, optimizer)
    with pytest.raises(ValueError, match="already"):
        hk.optim.update_in_backward(weight, optimizer)


@pytest.mark.slow
def test_memory_holds_no_gradient_of_the_weight():
    """A chunk and the rows' own buffers, where the ordinary way makes the whole."""
    from bench.memory import peak_bytes

    classes, d = 200_000, 256  # far above what malloc itself holds back
    heads, optimizers, handle = pair(lambda **kw: MarginSoftmax(d, classes, **kw), BOTH[0].values[0], torch.float32)
    handle.remove()
    # 40 MiB of gradient: malloc maps what is above 32 MiB; the holes of less do not take an aligned request again.
    hk.optim.update_in_backward(heads[1].weight, optimizers[1], chunk_classes=40_960)
    whole = heads[1].weight.nbytes
    x, target = torch.randn(32, d), torch.randint(0, classes, (32,))
    peaks = []
    for head, optimizer in zip(heads, optimizers, strict=True):

        def one(head=head, optimizer=optimizer):
            head(x, target).backward()
            optimizer.step()
            optimizer.zero_grad()

        one()
        peaks.append(min(peak_bytes(one) for _ in range(2)))
    sizes = "a step takes {:.0f} MiB beside a weight of {:.0f}, {:.0f} with the update in the backward"
    report(sizes.format(*(size / 2**20 for size in (peaks[0], whole, peaks[1]))))
    assert peaks[0] > whole
    assert peaks[1] < 0.5 * whole
