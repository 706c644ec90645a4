"""A sharded head among what trains it: wrapped backbones, clipping, loss scaling; and what a step sends around."""

import torch
import torch.distributed as dist

import hyperkernels as hk

from .partial_fc_cases import SIZE, M, close, mine, module, problem, same_everywhere, shard_of, step


def _backbone():
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, SIZE)).double()


def check_beside_ddp(alone):
    _check_backbone(alone, torch.nn.parallel.DistributedDataParallel)


def check_beside_fsdp2(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    _check_backbone(alone, lambda model: fully_shard(model, mesh=mesh))


def _check_backbone(alone, wrap):
    """Five steps of the backbone and the head, as in one process, with batches of different sizes."""
    rows = [4, 1, 3, 2][: dist.get_world_size()]
    _, weight, target = problem(sum(rows))
    inputs = torch.randn(sum(rows), 6, dtype=torch.float64)
    results = []
    sharded, single = module(weight, M.AdaFace(), scale=8.0), module(weight, M.AdaFace(), alone, scale=8.0)
    for head, part in ((sharded, mine(rows)), (single, slice(None))):
        backbone = _backbone() if head is single else wrap(_backbone())
        optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], 0.05, momentum=0.9)
        norms = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = head(backbone(inputs[part]), target[part])
            loss.backward()
            norms.append(hk.distributed.clip_grad_norm_(torch.nn.ModuleList([backbone, head]), 1.0))
            optimizer.step()
        assert max(norms) > 1
        whole = [getattr(p, "full_tensor", lambda p=p: p)() for p in backbone.parameters()]
        results.append((loss, head.weight, whole, torch.stack(norms)))
    found, wanted = results
    close(found[0], wanted[0])
    close(found[1], shard_of(sharded, wanted[1]))
    close(found[3], wanted[3])
    same_everywhere(found[3])
    for one, other in zip(found[2], wanted[2], strict=True):
        close(one, other)


def check_an_overflow(alone):
    """In the shard of one rank it stops the step of all."""
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    x, weight, target = problem(3)
    head = module(weight, M.ArcFace())
    optimizer, before = torch.optim.SGD(head.parameters(), 0.1), head.weight.detach().clone()
    scaler = ShardedGradScaler("cpu", init_scale=4.0, process_group=dist.group.WORLD)
    for overflow in (True, False):
        optimizer.zero_grad()
        scaler.scale(head(x.requires_grad_(), target)).backward()
        if overflow and dist.get_rank() == 1:
            head.weight.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(head.weight, before) == overflow and scaler.get_scale() == 2


def check_clipping_of_sampled(alone):
    rows = [2] * dist.get_world_size()
    x, weight, target = problem(sum(rows), 60)
    head = module(weight, M.ArcFace(), sample_rate=0.2)
    found = step(head, x, target, rows)[2]
    norm = hk.distributed.clip_grad_norm_(head, 0.5)
    squares = head.ranks.all_gather(found.to_dense().square().sum()[None])
    close(norm, squares.sum().sqrt())
    close(head.weight.grad.to_dense(), found.to_dense() * 0.5 / norm, 1e-6)


def bytes_moved(classes, margin, rows, **options):
    """Bytes that the collectives of one step leave on this rank, by kind, in their order."""
    moved, originals = {}, {}

    def counted(name):
        def call(output, *args, **kwargs):
            moved.setdefault(name, []).append(output.numel() * output.element_size())
            return originals[name](output, *args, **kwargs)

        return call

    x, weight, target = problem(sum(rows), classes)
    head = module(weight, margin, **options)
    x = x[mine(rows)].requires_grad_()
    names = [name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name)]
    for name in [names[0], "all_reduce", "all_to_all_single"]:
        originals[name] = getattr(dist, name)
        setattr(dist, name, counted(name))
    try:
        head(x, target[mine(rows)]).backward()
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)
    return {name.removesuffix("_single").removesuffix("_into_tensor"): sizes for name, sizes in moved.items()}


def check_communication(alone):
    """What travels is known, and does not depend on the number of classes."""
    world, n, number = dist.get_world_size(), 4, 8  # bytes of a float64
    rows = [n] * world
    batch, gathered = n * world, n * world * SIZE * number
    for classes in (world, 3000):
        found = bytes_moved(classes, M.ArcFace(0.5), rows)
        assert found == {
            "all_gather": [2 * world * 8, gathered, batch * 8, world * 3 * batch * number],
            "all_to_all": [gathered],
        }
        found = bytes_moved(classes, M.MVSoftmax(), rows, batch_size=n)
        assert found == {
            "all_gather": [gathered, batch * 8, world * 5 * batch * number],
            "all_reduce": [batch * number],
            "all_to_all": [gathered],
        }


def check_optimizers_of_rows(alone):
    """The update within the backward makes the steps of the update after it, sampled or not; not sampled, those of one
    process."""
    _, weight, _ = problem(2, 40)
    rows = {2: [5, 3], 3: [2, 5, 1], 4: [2, 3, 1, 2]}[dist.get_world_size()]

    def train(head, within, part):
        optimizer, gradients = hk.optim.AdamW(head.parameters(), 0.05), []
        if within:
            hk.optim.update_in_backward(head.weight, optimizer, chunk_classes=8)
        torch.manual_seed(3)
        for _ in range(4):
            x, _, target = problem(8, 40)
            x = x[part].clone().requires_grad_()
            optimizer.zero_grad()
            head(x, target[part]).backward()
            assert (head.weight.grad is None) == within
            optimizer.step()
            gradients.append(x.grad)
        return head.weight.detach(), torch.stack(gradients)

    for sample_rate in (1.0, 0.3):
        options = {"scale": 8.0, "sample_rate": sample_rate}
        after, within = (train(module(weight, M.CurricularFace(), **options), w, mine(rows)) for w in (False, True))
        close(within, after)
    head = module(weight, M.CurricularFace(), scale=8.0)
    after = train(head, False, mine(rows))
    wanted = train(module(weight, M.CurricularFace(), alone, scale=8.0), True, slice(None))
    close(after[0], shard_of(head, wanted[0]))
    close(after[1] / dist.get_world_size(), wanted[1][:, mine(rows)])
