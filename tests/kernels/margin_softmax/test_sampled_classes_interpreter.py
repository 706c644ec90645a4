"""The Triton kernels that read the sampled classes by index: as the kernels on the gathered rows, and as the reference.

Rows of the weight that are not sampled hold NaN: nothing may read them.
"""

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.margin_softmax.problem import plan_triton
from hyperkernels.kernels.margin_softmax.rows import rows_of_classes
from hyperkernels.kernels.margin_softmax.triton import kernels as triton_kernels
from hyperkernels.kernels.margin_softmax.triton import plans as triton_plans
from tests.support import combinations

from .test_interpreter import KINDS, TOLERANCE, Problem, checked, pytestmark

pytestmark = [pytest.mark.interpreter, *pytestmark]


def sample(problem, more=37):
    """The problem with the rows of its weight spread over a larger one, and those rows."""
    count = len(problem.weight) // problem.options.sub_centers
    problem.classes = torch.randperm(count + more)[:count].sort().values
    rows = rows_of_classes(problem.classes, problem.options.sub_centers)
    weight = torch.full((len(rows) + more * problem.options.sub_centers, problem.weight.shape[1]), torch.nan)
    weight = weight.to(problem.weight.dtype)
    weight[rows] = problem.weight.detach()
    problem.weight = weight.requires_grad_()
    return problem, rows


def check_sampled(problem, block=32):
    """The bits of the kernels on the gathered rows, and both as close to the reference as they must be."""
    right, gradients = checked(problem, block)
    sampled, rows = sample(problem)
    ours, found = checked(sampled, block)
    for mine, other in zip(ours[:12], right[:12], strict=True):
        assert torch.equal(mine.detach(), other.detach())
    others = found[1][~torch.isin(torch.arange(len(found[1])), rows)]
    assert not others.any()
    found[1] = found[1][rows]
    assert all(torch.equal(mine, other) for mine, other in zip(found, gradients, strict=True))


@pytest.mark.parametrize("kind", combinations(KINDS, everyday=lambda kind: kind == "quadratic"))
def test_kinds(kind):
    check_sampled(Problem(9, 50, 20, torch.float32, kind, per_class=True))


@pytest.mark.parametrize("sub_centers", combinations([1, 3], everyday=lambda k: k == 1))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes_and_sub_centers(dtype, sub_centers):
    check_sampled(Problem(9, 41, 24, dtype, sub_centers=sub_centers), 16)


@pytest.mark.parametrize("normalize_weight", [False, True])
def test_flags(normalize_weight):
    check_sampled(Problem(7, 40, 24, normalize_weight=normalize_weight))


SHAPES = [(1, 1, 1), (3, 1, 5), (33, 65, 3)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.slow) for shape in ((130, 20, 8), (9, 70, 300))]


@pytest.mark.parametrize(("n", "c", "d"), SHAPES)
def test_ragged(n, c, d):
    check_sampled(Problem(n, c, d))


@pytest.mark.parametrize("sub_centers", combinations([1, 2], everyday=lambda k: k == 2))
def test_chunks_of_classes(sub_centers, monkeypatch):
    monkeypatch.setattr(triton_kernels, "WORKSPACE", 9 * 16 * 16 * 4 * sub_centers)
    check_sampled(Problem(9, 90, 20, per_class=True, sub_centers=sub_centers), 16)


@pytest.mark.parametrize(("n", "sub_centers"), [(9, 2), pytest.param(130, 1, marks=pytest.mark.slow)])
def test_skipped_tiles(n, sub_centers):
    problem = Problem(n, 90, 16, sub_centers=sub_centers)
    problem.target[problem.target >= 64] -= 64  # the last tiles hold no target

    def gradients():
        report = torch.full((2,), torch.nan, dtype=torch.float64)
        ours = problem.kernels(16, 0.4, report)
        finite = [torch.where(v.isfinite(), v, 0) for v in ours[:3]]
        found = torch.autograd.grad(finite, problem.leaves()[:2], problem.incoming[:3])
        return report, found[0], found[1].to_dense()

    report, dx, dweight = gradients()
    assert 0 < report[0] <= 0.4 and 0 < report[1] < 1
    _, rows = sample(problem)
    same, dx_sampled, dweight_sampled = gradients()
    assert torch.equal(same, report) and torch.equal(dx_sampled, dx) and torch.equal(dweight_sampled[rows], dweight)


def test_offsets_of_far_classes_do_not_wrap():
    """Rows beyond 2^31 elements of a weight of which no other page is touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    n, c, d, count = 5, 40, 1024, 2**21 + 100
    near = Problem(n, c, d, torch.float16, special=False)
    right = near.kernels()
    truth = near.gradients(right, [near.x, near.weight])
    far = Problem(n, c, d, torch.float16, special=False)
    far.x, far.scale, far.incoming, far.target = near.x, near.scale, near.incoming, near.target
    far.classes = torch.cat([torch.arange(20), count - 40 + 2 * torch.arange(20)])
    far.weight = torch.empty(count, d, dtype=torch.float16)
    far.weight[far.classes] = near.weight.detach()
    far.weight.requires_grad_()
    ours = far.kernels()
    for mine, other in zip(ours[:12], right[:12], strict=True):
        assert torch.equal(mine.detach(), other.detach())
    loss = sum((ours[i] * d).sum() for i, d in zip((0, 1, 2, 5), far.incoming, strict=True))
    dx, dweight = torch.autograd.grad(loss, (far.x, far.weight))
    assert torch.equal(dx, truth[0])
    assert torch.equal(dweight.indices()[0], far.classes) and torch.equal(dweight.values(), truth[1])


def test_classes_out_of_range_read_nothing_outside():
    problem = Problem(6, 20, 16, special=False)
    problem.classes = torch.arange(20)
    problem.classes[0], problem.classes[-2:] = -(10**12), 10**12
    clamped = problem.kernels()
    problem.classes = problem.classes.clamp(0, 19)
    for mine, right in zip(clamped[:12], problem.kernels()[:12], strict=True):
        assert torch.equal(mine.detach(), right.detach())


@pytest.mark.parametrize("classes", [torch.arange(0), torch.arange(4, dtype=torch.int32), torch.zeros(2, 2).long()])
def test_errors(classes):
    problem = Problem(6, 20, 16)
    problem.classes = classes
    with pytest.raises(ValueError, match="classes"):
        problem.kernels()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_through_the_public_function(dtype, monkeypatch):
    monkeypatch.setattr(triton_plans, "tile_classes", lambda *_: 16)
    sampled, rows = sample(Problem(6, 50, 24, dtype, special=False))
    target = sampled.classes[sampled.target]
    results = {}
    for name in ("triton", "reference"):
        with hk.backend(name):
            loss, statistics = hk.margin_softmax_loss(
                sampled.x, sampled.weight, target, classes=sampled.classes, return_statistics=True
            )
            dx, dweight = torch.autograd.grad(loss, (sampled.x, sampled.weight))
        assert dweight.is_sparse and dweight.is_coalesced() and torch.equal(dweight.indices()[0], rows)
        assert torch.isin(statistics.hardest_class, sampled.classes).all()
        results[name] = (loss.detach(), dx, dweight.values())
    for mine, right in zip(*results.values(), strict=True):
        assert mine.dtype == right.dtype
        assert (mine - right).double().norm() <= TOLERANCE[dtype] * right.double().norm()


def test_gradients_have_the_shape_that_is_promised():
    problem, rows = sample(Problem(5, 40, 16))
    arguments = problem.arguments()
    block, kept = plan_triton(5, 40, 1, 16, torch.float32, None)
    on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    fake = torch.ops.hyperkernels.class_statistics_triton(*on_meta, block, kept, 0.0, None)
    for mine, right in zip(problem.kernels(block), fake, strict=True):
        assert mine.shape == right.shape and mine.dtype == right.dtype
    assert len(rows) == 40
