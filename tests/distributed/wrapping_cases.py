"""A sharded head inside DistributedDataParallel or FSDP, which would make its shards alike: refused, or left out."""

import contextlib
import warnings

import torch
import torch.distributed as dist

from hyperkernels.compat.insightface import ArcFace, PartialFC_V2

from .partial_fc_cases import SIZE, M, close, mine, module, problem, same_everywhere, shard_of

DDP = torch.nn.parallel.DistributedDataParallel


class Model(torch.nn.Module):
    """A backbone and a head, of as many classes on every rank, so that no wrapper notices that they differ."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = torch.nn.Linear(6, SIZE).double()
        self.head = head

    def forward(self, inputs, target):
        return self.head(self.backbone(inputs), target)


def _problem():
    rows = [3] * dist.get_world_size()
    _, weight, target = problem(sum(rows), 2 * len(rows))
    return rows, torch.randn(sum(rows), 6, dtype=torch.float64), weight, target


@contextlib.contextmanager
def _refused(wrapper):
    try:
        yield
    except RuntimeError as error:
        assert f"weight must be out of {wrapper}" in str(error), error
    else:
        raise AssertionError(f"{wrapper} around the head is accepted")


def check_inside_ddp(alone):
    """The head itself or a model that holds it, with what DDP does not broadcast, in a call around DDP and compiled."""
    rows, inputs, weight, target = _problem()
    x = torch.randn(3, SIZE, dtype=torch.float64)
    for head in (module(weight, M.ArcFace()), PartialFC_V2(ArcFace(), SIZE, len(weight), dtype=torch.float64)):
        with _refused("DistributedDataParallel"):
            DDP(head)(x, target[mine(rows)])
    for options in ({}, {"broadcast_buffers": False}, {"init_sync": False}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the names of options
            wrapped = DDP(Model(module(weight, M.ArcFace())), **options)
        with _refused("DistributedDataParallel"):
            wrapped(inputs[mine(rows)], target[mine(rows)])
        with _refused("DistributedDataParallel"):
            wrapped.module.head(x, target[mine(rows)])
    head = module(weight, M.ArcFace())
    head(x, target[mine(rows)])
    with _refused("DistributedDataParallel"):  # also when it has already been used
        DDP(head)(x, target[mine(rows)])
    with _refused("DistributedDataParallel"):
        torch.compile(DDP(module(weight, M.ArcFace())), backend="eager")(x, target[mine(rows)])


def check_inside_fsdp(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    rows, inputs, weight, target = _problem()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    on_mesh = {"device_mesh": mesh, "device_id": torch.device("cpu")}
    batch = inputs[mine(rows)], target[mine(rows)]
    wraps = {
        "fully_shard": [{"mesh": mesh}],
        "FullyShardedDataParallel": [
            {"device_mesh": mesh, "device_id": torch.device("cpu"), "use_orig_params": own} for own in (False, True)
        ],
    }
    for name, several in wraps.items():
        wrap = {"fully_shard": fully_shard, "FullyShardedDataParallel": FullyShardedDataParallel}[name]
        for options in several:
            with _refused(name):
                wrap(Model(module(weight, M.ArcFace())), **options)(*batch)
            with _refused(name):
                wrap(module(weight, M.ArcFace()), **options)(inputs[mine(rows), :SIZE], batch[1])
    for wrap, options in (
        (fully_shard, lambda head: {"mesh": mesh, "ignored_params": set(head.parameters())}),
        (
            FullyShardedDataParallel,
            lambda head: {**on_mesh, "ignored_modules": [head]},
        ),
    ):
        _check_left_out(alone, lambda model, wrap=wrap, options=options: wrap(model, **options(model.head)))


def check_left_out_of_ddp(alone):
    """By the name of its weight alone: everything else of a head is the same on all ranks."""

    def wrap(model):
        model._ddp_params_and_buffers_to_ignore = ["head.weight"]
        return DDP(model)

    _check_left_out(alone, wrap)


def check_copies_in_ddp(alone):
    """Ranks that hold the same classes, each for itself, are what DDP is for."""
    rows, inputs, weight, target = _problem()
    wrapped = DDP(Model(module(weight, M.ArcFace(), alone)))
    wrapped(inputs[mine(rows)], target[mine(rows)]).backward()
    same_everywhere(wrapped.module.head.weight.grad)


def _check_left_out(alone, wrap):
    """A model that is wrapped whole but for its head trains as in one process."""
    rows, inputs, weight, target = _problem()
    margin = M.ClassMargin(torch.nn.Parameter(torch.linspace(-0.2, 1.2, len(weight), dtype=torch.float64)), reward=3.0)
    sharded, single = (Model(module(weight, margin, group, scale=8.0)) for group in (None, alone))
    wrapped = wrap(sharded)
    losses = []
    for call, part in ((wrapped, mine(rows)), (single, slice(None))):
        optimizer = torch.optim.SGD(call.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = call(inputs[part], target[part])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    close(losses[:3], losses[3:])
    close(sharded.head.weight, shard_of(sharded.head, single.head.weight))
    close(sharded.head.margin.margins, single.head.margin.margins)
