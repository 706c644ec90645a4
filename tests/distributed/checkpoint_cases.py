"""Runs that are saved and resumed, on as many ranks as there are, against a run that is not interrupted."""

import os
import signal
import time

import torch
import torch.distributed as dist

import hyperkernels as hk

from .partial_fc_cases import CLASSES, SIZE, M, close, mine, problem

BATCH = 12  # divides among 1 to 4 ranks


class PerRow(torch.optim.Optimizer):
    """Steps that shrink with the number of updates of each row, a state of one dimension."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                count = self.state[parameter].setdefault("step", torch.zeros(len(parameter), dtype=torch.int32))
                count += 1
                parameter -= 0.1 * parameter.grad / count.reshape(-1, *[1] * (parameter.dim() - 1))


class Two(list):
    """One optimiser for the backbone, one for the heads."""

    def __init__(self, model):
        heads = [*model.head.parameters(), *model.elastic.parameters()]
        super().__init__([OPTIMIZERS["SGD"](model.backbone.parameters()), OPTIMIZERS["AdamW"](heads)])

    def zero_grad(self):
        for optimizer in self:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self:
            optimizer.step()


OPTIMIZERS = {
    "PerRow": PerRow,
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01),
}


class Model(torch.nn.Module):
    def __init__(self, group=None, classes=CLASSES, seed=3):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = torch.nn.Linear(6, SIZE).double()
        margin = M.InterClassFilter(0.4, M.AdaFace(t_alpha=0.3))
        self.head = hk.nn.PartialFC(
            SIZE, classes, margin, 8.0, sub_centers=2, seed=seed, process_group=group, dtype=torch.float64
        )
        self.elastic = hk.nn.PartialFC(SIZE, classes, M.ElasticFace(), 8.0, process_group=group, dtype=torch.float64)

    def forward(self, inputs, target):
        x = self.backbone(inputs)
        return self.head(x, target) + self.elastic(x, target)


def made(name, group=None, classes=CLASSES, seed=3):
    model = Model(group, classes, seed)
    ranks = dist.is_initialized() and model.head.world_size > 1
    if ranks:
        model.backbone = torch.nn.parallel.DistributedDataParallel(model.backbone)
    if name == "two":
        return model, Two(model)
    return model, OPTIMIZERS[name](model.parameters())


def train(model, optimizer, steps, classes=CLASSES):
    """The losses of these steps of the run; the batch of a step depends on its number alone."""
    losses = []
    world = model.head.world_size
    part = mine([BATCH // world] * world) if world > 1 else slice(None)
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(BATCH, 6, dtype=torch.float64, generator=generator)
        target = torch.randint(classes, (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = model(inputs[part], target[part])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def check_save(name, classes, folder, alone):
    """Four steps, a checkpoint, and what the run goes on to lose."""
    model, optimizer = made(name, classes=classes)
    first = train(model, optimizer, range(4), classes)
    single, its_optimizer = made(name, alone, classes)
    close(first, train(single, its_optimizer, range(4), classes))
    path = f"{folder}/{name}-{classes}"
    hk.distributed.save(path, model, optimizer, extra={"step": 4, "note": ["a", torch.ones(2)]})
    losses = train(model, optimizer, range(4, 8), classes)
    if dist.get_rank() == 0:
        torch.save(losses, f"{path}.losses")


def check_resume(name, classes, folder, alone=None):
    """From other weights, the same next steps."""
    model, optimizer = made(name, classes=classes, seed=9)
    path = f"{folder}/{name}-{classes}"
    extra = hk.distributed.load(path, model, optimizer)
    assert extra["step"] == 4 and torch.equal(extra["note"][1], torch.ones(2))
    close(train(model, optimizer, range(4, 8), classes), torch.load(f"{path}.losses"))


def check_killed(folder, alone):
    """kill -9 of one rank in the middle of a run: the others say so, and do not wait for ever."""
    model, optimizer = made("SGD")
    train(model, optimizer, range(4))
    hk.distributed.save(f"{folder}/step-4", model, optimizer, extra={"step": 4})
    train(model, optimizer, range(4, 6))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    x = torch.zeros(2, SIZE, dtype=torch.float64, requires_grad=True)
    try:
        model.head(x, torch.zeros(2, dtype=torch.int64)).backward()
    except RuntimeError as error:
        assert "another rank has died" in str(error)
    else:
        raise AssertionError("no error")
    assert time.monotonic() - start < 60  # the timeout of the group


def check_state_dict(alone):
    """A DTensor of all rows; load_state_dict takes it, all rows, or this rank's."""
    from torch.distributed.tensor import DTensor

    _, weight, _ = problem(2)
    head = hk.nn.PartialFC(SIZE, CLASSES, dtype=torch.float64, seed=1)
    start = head.weight.detach().clone()
    state = head.state_dict()
    assert isinstance(state["weight"], DTensor) and state["weight"].shape == (CLASSES, SIZE)
    other = hk.nn.PartialFC(SIZE, CLASSES, dtype=torch.float64, seed=2)
    other.load_state_dict(state)
    assert torch.equal(other.weight, start)
    whole = hk.nn.PartialFC(SIZE, CLASSES, dtype=torch.float64, seed=1, process_group=alone)
    part = slice(head.class_start, head.class_start + head.num_local)
    assert torch.equal(whole.weight[part], start)  # the same draws on any number of ranks
    for value in (weight, weight[part]):
        other.load_state_dict({**state, "weight": value})
        assert torch.equal(other.weight, weight[part])
    assert torch.equal(head.weight, start)


def check_insightface(folder, alone):
    """Any number of files, on any number of ranks."""
    _, weight, _ = problem(2)
    for count in (1, 2, 3, 5):
        paths = []
        shards = hk.distributed.Shards(CLASSES, count)
        for rank in range(count):
            own = {"weight": weight[shards.start(rank) : shards.start(rank + 1)].float().clone()}
            paths.append(f"{folder}/{dist.get_rank()}-{count}-{rank}.pt")
            torch.save({"epoch": 3, "state_dict_softmax_fc": own} if count == 3 else own, paths[-1])
        head = hk.nn.PartialFC(SIZE, CLASSES)
        hk.distributed.load_insightface(head, paths)
        assert torch.equal(head.weight, weight[head.class_start : head.class_start + head.num_local].float())
    try:
        hk.distributed.load_insightface(head, paths[1:])
    except ValueError as error:
        assert f"{CLASSES} rows" in str(error)
    else:
        raise AssertionError("no error")
