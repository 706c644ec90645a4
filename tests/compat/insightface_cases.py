"""Training with hyperkernels.compat.insightface, and with the formulas, on the same data."""

import functools
import shutil
import tempfile

import torch
import torch.distributed as dist

import hyperkernels as hk
from hyperkernels.compat.insightface import ArcFace, CombinedMarginLoss, CosFace, PartialFC_V2

from . import insightface_formulas as formulas

CLASSES, SIZE, INPUTS, BATCH, STEPS = 37, 12, 20, 24, 50
MARGINS = {  # ours, the formula's scale and margin
    "ArcFace": (lambda: ArcFace(), 64.0, lambda cos, own: formulas.arcface(cos, own, 0.5)),
    "CosFace": (lambda: CosFace(), 64.0, lambda cos, own: formulas.cosface(cos, own, 0.4)),
    "combined, ArcFace": (
        lambda: CombinedMarginLoss(32, 1.0, 0.3, 0.0),
        32.0,
        lambda cos, own: formulas.combined(cos, own, 1.0, 0.3, 0.0),
    ),
    "combined, CosFace": (
        lambda: CombinedMarginLoss(64, 1.0, 0.0, 0.4),
        64.0,
        lambda cos, own: formulas.combined(cos, own, 1.0, 0.0, 0.4),
    ),
    "filtered ArcFace": (
        lambda: CombinedMarginLoss(64, 1.0, 0.5, 0.0, 0.4),
        64.0,
        lambda cos, own: formulas.combined(cos, own, 1.0, 0.5, 0.0, 0.4),
    ),
    "filtered CosFace": (
        lambda: CombinedMarginLoss(64, 1.0, 0.0, 0.4, 0.2),
        64.0,
        lambda cos, own: formulas.combined(cos, own, 1.0, 0.0, 0.4, 0.2),
    ),
}


def batches(dtype, ranks=1):
    """Noisy samples of every class around a direction of its own, for all ranks."""
    centers = torch.randn(CLASSES, INPUTS, dtype=torch.float64)
    for _ in range(STEPS):
        labels = torch.randint(CLASSES, (ranks * BATCH,))
        yield (centers[labels] + 0.5 * torch.randn(len(labels), INPUTS).double()).to(dtype), labels


def backbone(dtype):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(INPUTS, 16), torch.nn.PReLU(), torch.nn.Linear(16, SIZE)).to(dtype)


def optimizer_of(model, head):
    """As train_v2.py makes it."""
    groups = [{"params": model.parameters()}, {"params": head.parameters()}]
    return torch.optim.SGD(params=groups, lr=0.02, momentum=0.9, weight_decay=5e-4)


def train(model, head, data):
    """The loop of train_v2.py. Returns the losses."""
    optimizer, losses = optimizer_of(model, head), []
    for images, labels in data:
        loss = head(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def heads(name, dtype, sample_rate):
    """Ours, and the formula with the centres of all ranks."""
    ours, scale, margin = MARGINS[name]
    torch.manual_seed(11)
    head = PartialFC_V2(ours(), SIZE, CLASSES, sample_rate).to(dtype)
    shards = [head.weight.detach()]
    if head.world_size > 1:
        shards = [None] * head.world_size
        dist.all_gather_object(shards, head.weight.detach())
    formula = formulas.Head(torch.cat(shards), scale, margin, sample_rate, [len(part) for part in shards], seed=5)
    torch.manual_seed(5)  # what ours samples from
    return head, formula


def check_training(name, dtype, sample_rate, alone=None):
    """Ours, every rank with its own part of the batch, and the formula with the whole of it."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    data = list(batches(dtype, ranks))
    model, reference = backbone(dtype), backbone(dtype)
    head, formula = heads(name, dtype, sample_rate)
    own, wrapped = slice(head.rank * BATCH, (head.rank + 1) * BATCH), model
    if ranks > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    found = train(wrapped, head, [(images[own], labels[own]) for images, labels in data])
    wanted = train(reference, formula, data)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}[dtype]
    same = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    same(found, wanted)
    same(head.weight, formula.weight[head.class_start : head.class_start + head.num_local])
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        same(one, other)
    assert wanted[-10:].mean() < 0.7 * wanted[:10].mean()  # something is learned


def check_steps(name, sample_rate):
    """Every step of a float32 training from the same weights: a filter turns the rounding of one step into another
    course of the next ones."""
    data, model = list(batches(torch.float32)), backbone(torch.float32)
    head, formula = heads(name, torch.float32, sample_rate)
    optimizer = optimizer_of(model, formula)
    for images, labels in data:
        x = model(images)
        head.load_state_dict(formula.state_dict())
        head.zero_grad()
        optimizer.zero_grad()
        found, wanted = head(x, labels), formula(x, labels)
        dx = torch.autograd.grad(found, x, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        x.retain_grad()
        found.backward(inputs=[head.weight])
        wanted.backward()
        torch.testing.assert_close(dx, x.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(head.weight.grad, formula.weight.grad, rtol=1e-3, atol=1e-4)
        optimizer.step()


def check_ragged(alone):
    """A last batch of another size on every rank, and none on one."""
    rows = [3, 1, 0][-dist.get_world_size() :]
    first = sum(rows[: dist.get_rank()])
    own = slice(first, first + rows[dist.get_rank()])
    head, formula = heads("ArcFace", torch.float64, 1.0)
    x, labels = torch.randn(sum(rows), SIZE, dtype=torch.float64, requires_grad=True), torch.arange(sum(rows)) * 7
    wanted = formula(x, labels)
    wanted.backward()
    mine = x[own].detach().requires_grad_()
    found = head(mine, labels[own])
    found.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mine.grad, x.grad[own] * dist.get_world_size())
    shard = slice(head.class_start, head.class_start + head.num_local)
    torch.testing.assert_close(head.weight.grad, formula.weight.grad[shard])


def check_few_classes(alone):
    """Ranks without classes; and a sample that would be empty on all ranks but one takes one class."""
    x, labels = torch.randn(4, SIZE, dtype=torch.float64, requires_grad=True), torch.zeros(4, dtype=torch.int64)
    ranks = dist.get_world_size()
    for classes, rate in ((1, 1.0), (1, 0.5), (ranks, 0.0), (8 * ranks, 0.0)):
        head = PartialFC_V2(ArcFace(), SIZE, classes, rate).double()
        loss = head(x, labels)
        loss.backward()
        assert loss.isfinite() and head.weight.grad.isfinite().all()
        if rate < 1 and head.num_local:
            assert head.weight_index.tolist() == [0] if dist.get_rank() == 0 else len(head.weight_index) == 1


def check_state_dict(alone):
    """The rows of this rank, as a plain tensor, there and back; all rows in a checkpoint of all ranks."""
    head, _ = heads("ArcFace", torch.float64, 1.0)
    with torch.no_grad():
        head.weight.add_(head.rank)
    state = head.state_dict()
    assert list(state) == ["weight"] and type(state["weight"]) is torch.Tensor
    assert state["weight"].shape == (head.num_local, SIZE)
    other = PartialFC_V2(ArcFace(), SIZE, CLASSES).double()
    other.load_state_dict({"weight": state["weight"] + 1})
    torch.testing.assert_close(other.weight, head.weight + 1)
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    hk.distributed.save(folder[0], head)
    hk.distributed.load(folder[0], other)
    assert torch.equal(other.weight, head.weight)
    dist.barrier()
    shutil.rmtree(folder[0], ignore_errors=True)
