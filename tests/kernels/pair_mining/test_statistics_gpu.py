"""The pair statistics on a GPU: their Triton kernels, in every dtype, at the sizes that they are for."""

import itertools

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.pair_mining import op
from hyperkernels.kernels.pair_mining.reference import PairProblem, Transform
from tests.support.accuracy import assert_as_accurate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TRANSFORMS = (Transform(), Transform("linear"), Transform("circle", 0.3, -0.2), Transform("softplus"))
NAMES = ("sum", "sum_squares", "min", "max", "lse", "d_scale", "d_offset")

pytestmark = pytest.mark.gpu


def case(n, m, d, dtype, select="negative", similarity="dot", transform=TRANSFORMS[1], classes=50, ids=False):
    """(problem, scale) on the GPU; m None: against itself."""
    unit = torch.nn.functional.normalize
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    x, ref = (unit(torch.randn(k, d, device="cuda"), dim=1).to(dtype) for k in (n, m or n))
    label, ref_label = (torch.randint(-1, classes, (k,), dtype=torch.int32, device="cuda") for k in (n, m or n))
    id, ref_id = (torch.arange(k if ids or m is None else 0, dtype=torch.int32, device="cuda") for k in (n, m or n))
    if m is None:
        ref, ref_label, ref_id = None, label, id
    leaves = [None if v is None else v.requires_grad_() for v in (x, ref)]
    scale = None if transform.name == "none" else torch.rand(n, dtype=accumulator, device="cuda") * 20 + 5
    return PairProblem(*leaves, label, ref_label, id, ref_id, None, None, select, similarity), scale


def step(problem, scale, transform, backend="triton"):
    """The statistics and the gradients of a sum of them."""
    with hk.backend(backend):
        rows, _ = op.pair_statistics(problem, scale, None, True, True, transform)
        weight = torch.linspace(-1, 1, len(problem.x), device="cuda", dtype=rows.sum.dtype)
        loss = rows.sum @ weight + rows.sum_squares @ weight
        if transform.name != "none":
            loss = loss + torch.where(rows.count > 0, rows.lse, 0) @ weight
        return rows, torch.autograd.grad(loss, [v for v in problem[:2] if v is not None])


def in_float64(problem, scale):
    wide = [None if v is None else v.detach().double().requires_grad_() for v in problem[:2]]
    return PairProblem(*wide, *problem[2:]), None if scale is None else scale.double()


# Every case compiles kernels of its own: bfloat16 has all of them, the other dtypes and ref as x itself take turns.
KINDS = list(itertools.product(["dot", "euclidean", "squared_euclidean"], TRANSFORMS))


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("turn", range(len(KINDS)), ids=lambda i: f"{KINDS[i][0]}-{KINDS[i][1].name}")
def test_accuracy(turn, others, poisoned_memory):
    similarity, transform = KINDS[turn]
    dtype = (torch.float32, torch.float64, torch.float16)[(turn + turn // 4) % 3] if others else torch.bfloat16
    m = None if (turn + others) % 3 == 1 else 700
    problem, scale = case(300, m, 96, dtype, "negative", similarity, transform, ids=m is None)
    ours, gradients = step(problem, scale, transform)
    peer, peer_gradients = step(problem, scale, transform, "reference")
    right, truth = step(*in_float64(problem, scale), transform, "reference")
    assert torch.equal(ours.count, right.count)
    for name in NAMES:
        mine, theirs, exact = (getattr(r, name).detach() for r in (ours, peer, right))
        if dtype == torch.float64:
            torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)
        else:
            assert_as_accurate(mine, theirs, exact, what=name)
    for mine, theirs, exact in zip(gradients, peer_gradients, truth, strict=True):
        if dtype == torch.float64:
            assert (mine - exact).norm() <= 1e-10 * exact.norm()
        else:
            assert_as_accurate(mine, theirs, exact, factor=2.5, what="gradient")


@pytest.mark.parametrize(
    ("shape", "select"),
    [((1, 5000, 64), "negative"), ((70, 1, 3), "all"), ((130, 3001, 500), "positive"), ((130, 3001, 500), "all"),
     ((1024, 20000, 2048), "positive"), ((1024, 20000, 2048), "negative")],
)  # fmt: skip
def test_sizes(shape, select):
    problem, scale = case(*shape, torch.bfloat16, select)
    problem = problem._replace(label=problem.label.sort().values, ref_label=problem.ref_label.sort().values)
    ours, gradients = step(problem, scale, TRANSFORMS[1])
    right, truth = step(*in_float64(problem, scale), TRANSFORMS[1], "reference")
    assert torch.equal(ours.count, right.count)
    torch.testing.assert_close(ours.lse.double(), right.lse, rtol=1e-4, atol=1e-4)
    for mine, exact in zip(gradients, truth, strict=True):
        assert (mine.double() - exact).norm() <= 0.02 * exact.norm() + 1e-6


def test_more_than_2_to_the_31_pairs():
    problem, scale = case(50_000, 50_001, 64, torch.bfloat16, classes=1000)
    rows, (dx, dref) = step(problem, scale, TRANSFORMS[1])
    few = torch.tensor([0, 1, 25_000, 49_999], device="cuda")
    part, part_scale = in_float64(
        problem._replace(x=problem.x[few], label=problem.label[few]), scale[few]
    )  # fmt: skip
    with hk.backend("reference"):
        right, _ = op.pair_statistics(part, part_scale, None, True, True, TRANSFORMS[1])
        weight = torch.linspace(-1, 1, 50_000, device="cuda")[few].double()
        loss = (right.sum + right.sum_squares + torch.where(right.count > 0, right.lse, 0)) @ weight
        (truth,) = torch.autograd.grad(loss, part.x)
    assert torch.equal(rows.count[few], right.count)
    torch.testing.assert_close(rows.lse[few].double(), right.lse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows.max[few].double(), right.max, rtol=1e-5, atol=1e-5)
    assert (dx[few].double() - truth).norm() <= 0.02 * truth.norm()
    assert dref.isfinite().all()


def test_memory_stays_small():
    problem, scale = case(20_000, 20_000, 128, torch.bfloat16)
    step(problem, scale, TRANSFORMS[1])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(problem, scale, TRANSFORMS[1])
    assert torch.cuda.max_memory_allocated() - before < 250 * 2**20


def test_graph_capture():
    problem, scale = case(300, None, 128, torch.bfloat16, similarity="euclidean")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(problem, scale, TRANSFORMS[1])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, gradients = step(problem, scale, TRANSFORMS[1])
    with torch.no_grad():
        problem.x.copy_(torch.randn_like(problem.x))
    graph.replay()
    eager, expected = step(problem, scale, TRANSFORMS[1])
    assert torch.equal(rows.lse, eager.lse) and torch.equal(rows.argmax, eager.argmax)
    assert torch.equal(gradients[0], expected[0])


def test_compiles_in_one_graph():
    problem, scale = case(65, 300, 64, torch.float32)

    def loss(x, ref):
        with_x = problem._replace(x=x * 2, ref=ref)
        rows, _ = op.pair_statistics(with_x, scale, None, True, False, TRANSFORMS[1])
        return torch.where(rows.count > 0, rows.lse, 0).sum() + rows.sum.sum()

    leaves = problem[:2]
    compiled, eager = torch.compile(loss, fullgraph=True)(*leaves), loss(*leaves)
    torch.testing.assert_close(compiled, eager)
    for mine, right in zip(torch.autograd.grad(compiled, leaves), torch.autograd.grad(eager, leaves), strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_every_time(dtype):
    problem, scale = case(300, 5000, 128, dtype)
    first, gradients = step(problem, scale, TRANSFORMS[1])
    for _ in range(5):
        again, others = step(problem, scale, TRANSFORMS[1])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
