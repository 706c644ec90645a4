"""What is asked of a head over several ranks: the numbers of one process. Every rank makes the whole problem."""

import copy

import torch
import torch.distributed as dist

import hyperkernels as hk

M = hk.margins
CLASSES, SIZE = 11, 5
MARGINS = {
    "NormFace": M.NormFace,
    "CosFace": M.CosFace,
    "ArcFace": M.ArcFace,
    "CombinedMargin": M.CombinedMargin,
    "SphereFace": M.SphereFace,
    "SphereFaceR1": M.SphereFaceR1,
    "SphereFaceR2": M.SphereFaceR2,
    "ASoftmax": M.ASoftmax,
    "ElasticFace": lambda: M.ElasticFace(plus="rank"),
    "AdaFace": M.AdaFace,
    "MagFace": lambda: M.MagFace(l_a=0.5, u_a=6.0),
    "ClassMargin": lambda: M.ClassMargin(torch.nn.Parameter(torch.linspace(-0.2, 1.2, CLASSES)), reward=3.0),
    "AdaCos": lambda: M.AdaCos(CLASSES),
    "CurricularFace": lambda: M.CurricularFace(momentum=0.3),
    "MVSoftmax": M.MVSoftmax,
    "NPCFace": M.NPCFace,
    "CircleMargin": M.CircleMargin,
    "ArcNegFace": M.ArcNegFace,
    "InterClassFilter": lambda: M.InterClassFilter(0.3, M.ElasticFace()),
    "a function": lambda: lambda cos, norm: cos - 0.1 * norm,
}


def problem(n, classes=CLASSES, sub_centers=1):
    weight = torch.randn(classes * sub_centers, SIZE, dtype=torch.float64)
    target = torch.randint(classes, (n,))
    x = torch.randn(n, SIZE, dtype=torch.float64) * 0.7 + weight[target * sub_centers] * torch.rand(n, 1).double()
    return x, weight, target


def module(weight, margin, group=None, **options):
    """A PartialFC over the group that holds its part of a global weight."""
    classes = len(weight) // options.get("sub_centers", 1)
    head = hk.nn.PartialFC(
        weight.shape[1], classes, copy.deepcopy(margin), process_group=group, dtype=weight.dtype, **options
    )
    with torch.no_grad():
        head.weight.copy_(shard_of(head, weight))
    return head


def shard_of(head, weight):
    first = head.class_start * head.sub_centers
    return weight[first : first + len(head.weight)]


def mine(rows):
    """This rank's part of the global batch, given the number of rows that each rank has."""
    first = sum(rows[: dist.get_rank()])
    return slice(first, first + rows[dist.get_rank()])


def close(found, wanted, tolerance=1e-10):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def same_everywhere(*tensors):
    """The same bits on all ranks."""
    for tensor in tensors:
        bits = tensor.detach().reshape(-1).contiguous()
        gathered = [torch.empty_like(bits) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, bits)
        assert all(torch.equal(other.nan_to_num(7), bits.nan_to_num(7)) for other in gathered)


def step(head, x, target, rows=None):
    """Loss, dx, dweight and the gradients of the margin's parameters; of this rank's rows where `rows` says which."""
    part = slice(None) if rows is None else mine(rows)
    x = x[part].detach().clone().requires_grad_()
    head.zero_grad()
    loss = head(x, target[part])
    loss.backward()
    others = [p.grad.clone() for name, p in head.named_parameters() if name != "weight"]
    return loss.detach(), x.grad, head.weight.grad.clone(), others


def assert_like_one_process(head, single, x, target, rows):
    """One step of both. The gradient of x is as many times larger as there are ranks to average over."""
    found, wanted = step(head, x, target, rows), step(single, x, target)
    close(found[0], wanted[0])
    same_everywhere(found[0], *found[3])
    close(found[1] / head.world_size, wanted[1][mine(rows)])
    close(found[2], shard_of(head, wanted[2]))
    for one, other in zip(found[3], wanted[3], strict=True):
        close(one, other)
    for name, value in head.state_dict().items():
        if name != "weight":
            close(value, single.state_dict()[name])
            same_everywhere(value)


def check_margin(name, alone):
    """Three steps, so that the state counts: ragged batches, one of them empty, and ignored rows."""
    margin = MARGINS[name]()
    options = {"normalize_x": False, "scale": 3.0} if name == "ASoftmax" else {"scale": 12.0}
    rows = [4, 0, 7, 3][: dist.get_world_size()]
    x, weight, target = problem(sum(rows))
    head, single = module(weight, margin, **options), module(weight, margin, alone, **options)
    for _ in range(3):
        x, _, target = problem(sum(rows))
        target[1] = -100
        assert_like_one_process(head, single, x, target, rows)
        rows = rows[::-1]


OPTIONS = {
    "label smoothing": {"label_smoothing": 0.2},
    "smoothing over the others": {"label_smoothing": 0.2, "smoothing_over": "others"},
    "ignore_index": {"ignore_index": 3},
    "as they are": {"margin": M.CosFace(0.1), "normalize_x": False, "normalize_weight": False, "scale": 1.0},
    "sub-centres": {"sub_centers": 3},
    "batch_size": {"batch_size": 14, "margin": M.CurricularFace()},
    "no workspace": {"workspace": 0},
    "eps": {"eps": 0.5},
}


def check_options(name, alone):
    options = {"margin": M.ArcFace(0.5), "scale": 12.0, **OPTIONS[name]}
    rows = [5, 2, 0, 4][: dist.get_world_size()]
    x, weight, target = problem(sum(rows), sub_centers=options.get("sub_centers", 1))
    head, single = module(weight, **options), module(weight, group=alone, **options)
    assert_like_one_process(head, single, x, target, rows)


def check_sums(name, gradient, alone):
    """The losses that sum over the classes, with a bias that all ranks hold."""
    from hyperkernels.heads import sums

    rows = [3, 4, 0, 2][: dist.get_world_size()]
    x, weight, target = problem(sum(rows), classes=dist.get_world_size() - 1)  # and a rank without classes
    results = []
    sharded, single = module(weight, M.NormFace(), scale=8.0), module(weight, M.NormFace(), alone, scale=8.0)
    for one, part in ((sharded, mine(rows)), (single, slice(None))):
        own, bias = x[part].clone().requires_grad_(), torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
        head, _ = one.head(own, target[part], one.draws)
        if name != "sface":
            head = head._replace(bias=bias.expand(head.classes()))
        loss = {
            "sface": lambda head: sums.sface(head, 20.0, 0.8, 1.2, "mean"),
            "sphereface2": lambda head: sums.sphereface2(head, 0.7, 0.4, 3, 5.0, gradient, "mean"),
            "uniface": lambda head: sums.uniface(head, 0.4, 1.5, "mean"),
        }[name](head)
        loss.backward()
        results.append((loss.detach(), own.grad / one.world_size, one.weight.grad, bias.grad))
    found, wanted = results
    close(found[0], wanted[0])
    same_everywhere(found[0])
    close(found[1], wanted[1][mine(rows)])
    close(found[2], shard_of(sharded, wanted[2]))
    if name != "sface":
        close(found[3], wanted[3])


def check_more_ranks_than_classes(alone):
    for classes in (1, 2, 3):
        for margin in (M.ArcFace(0.5), M.CurricularFace(), M.NPCFace(), M.MagFace(l_a=0.5)):
            rows = [2, 3, 1, 2][: dist.get_world_size()]
            x, weight, target = problem(sum(rows), classes)
            head, single = module(weight, margin, scale=9.0), module(weight, margin, alone, scale=9.0)
            assert_like_one_process(head, single, x, target, rows)


def check_a_shard_without_positives(alone):
    rows = [4] * dist.get_world_size()
    x, weight, target = problem(sum(rows))
    head, single = module(weight, M.ArcFace(0.5)), module(weight, M.ArcFace(0.5), alone)
    for only in (0, CLASSES - 1):
        assert_like_one_process(head, single, x, torch.full_like(target, only), rows)


def check_nothing_counts(alone):
    """All rows ignored, and no row at all, of any rank."""
    for margin in (M.ArcFace(0.5), M.AdaFace(), M.CurricularFace(), M.AdaCos(CLASSES)):
        for rows in ([2] * dist.get_world_size(), [0] * dist.get_world_size()):
            x, weight, target = problem(sum(rows))
            head, single = module(weight, margin), module(weight, margin, alone)
            assert_like_one_process(head, single, x, torch.full_like(target, -100), rows)


def check_statistics(alone):
    """Of this rank's rows over all classes: the hardest class is the lowest of equals, wherever it lives."""
    rows = [4, 5, 0, 3][: dist.get_world_size()]
    x, weight, target = problem(sum(rows), sub_centers=2)
    weight[-2:] = weight[2:4]  # the last class is the second again
    x[0] = weight[-1]
    target[:2] = torch.tensor([0, -100])
    options = {"scale": 12.0, "sub_centers": 2}
    for margin in (M.ArcFace(0.5), M.NPCFace()):
        head, single = module(weight, margin, **options), module(weight, margin, alone, **options)
        loss, found = head(x[mine(rows)], target[mine(rows)], return_statistics=True)
        same, wanted = single(x, target, return_statistics=True)
        close(loss, same)
        for one, other in zip(found, wanted, strict=True):
            close(one, other[mine(rows)])
        assert wanted.hardest_class[0] == 1


def check_a_nan_row(alone):
    x, weight, target = problem(2 * dist.get_world_size())
    x[1] = torch.nan
    loss = module(weight, M.ArcFace(0.5))(x[mine([2] * dist.get_world_size())], target[:2])
    assert loss.isnan()
    same_everywhere(loss)


def check_targets(alone):
    """Out of range on one rank: an error on all of them, and the group is still usable."""
    x, weight, target = problem(2)
    head = module(weight, M.ArcFace(0.5))
    for bad in (CLASSES, -1, 2**62, -(2**62)):
        target[0] = bad if dist.get_rank() == dist.get_world_size() - 1 else 0
        try:
            head(x, target)
        except IndexError as error:
            assert f"[0, {CLASSES})" in str(error)
        else:
            raise AssertionError("no IndexError")
    head(x, torch.zeros_like(target))


def check_frozen(alone):
    """No gradient for x anywhere; for x on one rank alone; and none at all."""
    rows = [3] * dist.get_world_size()
    x, weight, target = problem(sum(rows))
    head = module(weight, M.ArcFace(0.5))
    wanted = step(module(weight, M.ArcFace(0.5), alone), x, target)
    own = x[mine(rows)]
    head(own, target[mine(rows)]).backward()
    close(head.weight.grad, shard_of(head, wanted[2]))
    own = own.clone().requires_grad_(dist.get_rank() == 1)
    head(own, target[mine(rows)]).backward()
    assert (own.grad is None) == (dist.get_rank() != 1)
    if own.grad is not None:
        close(own.grad / dist.get_world_size(), wanted[1][mine(rows)])
    with torch.no_grad():
        close(head(own, target[mine(rows)]), wanted[0])


def check_learned_scale(alone):
    """A scale that all ranks hold gets one gradient, the same on all of them."""
    rows = [3] * dist.get_world_size()
    x, weight, target = problem(sum(rows))
    gradients = []
    for group, part in ((None, mine(rows)), (alone, slice(None))):
        scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
        head, _ = module(weight, M.ArcFace(0.5), group).head(x[part], target[part], torch.tensor(0))
        head = head._replace(scale=scale.expand(len(head.x)))
        loss, *_ = hk.heads.losses.margin_softmax(head, M.ArcFace(0.5), "mean", 0.1, "all")
        gradients.append(torch.autograd.grad(loss, scale)[0])
    close(*gradients)
    same_everywhere(gradients[0])


def check_gradient_reduction(alone):
    rows = [3] * dist.get_world_size()
    x, weight, target = problem(sum(rows))
    mean, total = (
        step(module(weight, M.ArcFace(), gradient_reduction=name), x, target, rows) for name in ("mean", "sum")
    )
    close(mean[1], total[1] * dist.get_world_size())
    close(mean[2], total[2])


def check_half_precision(alone):
    """bfloat16 and autocast: gathered as they are, summed over ranks in float32."""
    rows = [6] * dist.get_world_size()
    x, weight, target = problem(sum(rows))
    x, weight = x.bfloat16(), weight.bfloat16()
    found = step(module(weight, M.ArcFace()), x, target, rows)
    wanted = step(module(weight, M.ArcFace(), alone), x, target)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found[1].float() / dist.get_world_size(), wanted[1][mine(rows)].float(), rtol=0.05, atol=0.02
    )
    x, weight = x.float(), weight.float()
    with torch.autocast("cpu", torch.bfloat16):
        again = step(module(weight, M.ArcFace()), x, target, rows)
    assert torch.equal(again[0], found[0]) and again[1].dtype == torch.float32


def check_skip_budget(alone):
    rows = [6] * dist.get_world_size()
    x, weight, target = problem(sum(rows), classes=400)
    head = module(weight, M.ArcFace(), skip_budget=0.3, scale=30.0)
    found = step(head, x, target, rows)
    close(found[0], step(module(weight, M.ArcFace(), alone, scale=30.0), x, target)[0])
    assert 0 <= head.dropped_mass <= 0.3


def check_sampling(name, alone):
    """The numbers of one process that takes the classes that the ranks sampled; a new set at every step."""
    options = {"margin": M.ArcFace(0.5), "scale": 12.0, "sample_rate": 0.4, **SAMPLING[name]}
    k, margin, scale = options.get("sub_centers", 1), options["margin"], options["scale"]
    rows = [3, 2, 0, 1][: dist.get_world_size()]
    x, weight, target = problem(sum(rows), 40, k)
    target[0] = -100
    head = module(weight, **options)
    seen = []
    for _ in range(3):
        found = step(head, x, target, rows)
        taken = found[2].coalesce().indices()[0] // k + head.class_start
        assert found[2].shape == head.weight.shape and found[2].is_sparse
        classes = torch.zeros(40, dtype=torch.int64)
        classes[taken] = 1
        dist.all_reduce(classes)
        classes = classes.nonzero()[:, 0]
        seen.append(classes)
        own, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        smoothing = {key: value for key, value in options.items() if "smoothing" in key}
        loss = hk.margin_softmax_loss(
            own, w, target, margin=margin, scale=scale, sub_centers=k, classes=classes, **smoothing
        )
        loss.backward()
        close(found[0], loss.detach())
        same_everywhere(found[0])
        close(found[1] / dist.get_world_size(), own.grad[mine(rows)])
        close(found[2].to_dense(), shard_of(head, w.grad.to_dense()))
        share = max(round(options["sample_rate"] * head.num_local), min(head.num_local, sum(rows)))
        assert len(taken.unique()) == share
        assert set(target[1:].tolist()) <= set(classes.tolist())
    if any(len(classes) < 40 for classes in seen):
        assert not torch.equal(seen[0], seen[1])
    if not smoothing:  # in evaluation every class takes part
        single = module(weight, margin, alone, scale=scale, sub_centers=k)
        close(head.eval()(x[mine(rows)], target[mine(rows)]), single(x, target))


SAMPLING = {
    "sampled": {},
    "sampled, positives alone": {"sample_rate": 0.0},
    "sampled, a margin that looks ahead": {"margin": M.MVSoftmax()},
    "sampled, label smoothing": {"label_smoothing": 0.2},
    "sampled, smoothing over the others": {"label_smoothing": 0.2, "smoothing_over": "others"},
    "sampled, sub-centres": {"sub_centers": 2},
}


def check_sampling_goes_on(alone):
    """A head with the state of another samples what that one would have; one with another seed does not."""
    rows = [2] * dist.get_world_size()
    x, weight, target = problem(sum(rows), 60)
    options = {"margin": M.ElasticFace(), "sample_rate": 0.2}
    first, second, third = (module(weight, **options, seed=seed) for seed in (1, 1, 2))
    for _ in range(3):
        step(first, x, target, rows)
    second.load_state_dict(first.state_dict())
    assert second.draws == 3
    one, other = step(first, x, target, rows), step(second, x, target, rows)
    assert torch.equal(one[0], other[0]) and torch.equal(one[2].to_dense(), other[2].to_dense())
    third.load_state_dict(first.state_dict())
    assert not torch.equal(step(third, x, target, rows)[2].to_dense(), step(first, x, target, rows)[2].to_dense())
