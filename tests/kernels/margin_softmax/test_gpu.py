"""The class softmax on a GPU: its Triton kernels, in every dtype, at the sizes that they are for."""

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.margin_softmax import reference
from tests.support import margin_softmax_cases as cases
from tests.support.accuracy import assert_as_accurate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ARCFACE = hk.margins.ArcFace(0.5)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def triton_backend():
    with hk.backend("triton"):
        yield


def problem(n, c, d, dtype, **options):
    x, weight, target = cases.problem(n, c, d, dtype, **options)
    return x.detach().cuda().requires_grad_(), weight.detach().cuda().requires_grad_(), target.cuda()


def step(x, weight, target, **options):
    loss = hk.margin_softmax_loss(x, weight, target, **options)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


def textbook(x, weight, target):
    """As `cases.textbook_head`, reduced to the mean in the accumulator's dtype."""
    leaves = [v.detach().requires_grad_() for v in (x, weight)]
    loss = cases.textbook_head(*leaves, target, ARCFACE, 64.0)
    loss = (loss if loss.dtype == torch.float64 else loss.float()).mean()
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def check_accuracy(n, c, d, dtype, **options):
    x, weight, target = problem(n, c, d, dtype, **options)
    truth = textbook(x.double(), weight.double(), target)
    peers = textbook(x, weight, target)
    names = ("loss", "dx", "dweight")
    for name, ours, peer, right in zip(names, step(x, weight, target, margin=ARCFACE), peers, truth, strict=True):
        if dtype == torch.float64:  # the textbook in float64 is no truth for itself
            assert (ours - right).norm() <= 1e-12 * right.norm(), name
        else:
            assert_as_accurate(ours, peer.to(ours.dtype), right, what=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "c", "d"),
    [(1, 1000, 64), (7, 300, 3), (33, 1000, 128), (64, 5000, 512), (130, 3001, 500), (1024, 20000, 512)],
)
def test_accuracy(n, c, d, dtype, poisoned_memory):
    check_accuracy(n, c, d, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_of_learned_samples(dtype):
    check_accuracy(256, 10000, 512, dtype, near=20.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize(
    "margin", [lambda: hk.margins.CurricularFace(0.5).cuda(), lambda: ARCFACE], ids=["curricular", "arcface"]
)
def test_heads_against_the_reference(margin, sub_centers, dtype):
    x, weight, target = problem(70, 900, 96, dtype, ignored=2)
    options = {"sub_centers": sub_centers, "class_scale": torch.rand(900 // sub_centers).cuda() + 0.5}
    options["bias"] = torch.randn(900 // sub_centers).cuda()
    target = torch.where(target < 0, target, target % (900 // sub_centers))
    # CurricularFace moves its average at every call: each gets its own.
    ours = step(x, weight, target, margin=margin(), **options)
    options["margin"] = margin()
    with hk.backend("reference"):
        theirs = step(
            x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), target, **options
        )
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine.double() - right.double()).norm() <= tolerance * right.double().norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cosine", "quadratic", "gaussian", "angle", "sface", "sphereface2", "uniface"])
def test_kinds_against_the_reference(kind, dtype):
    from hyperkernels.kernels.margin_softmax.negatives import negatives

    x, weight, target = problem(40, 700, 64, dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    like = torch.empty(40, dtype=accumulator, device="cuda")
    numbers = {
        "quadratic": {"threshold": 0.05, "q2": 1.0, "q1": 0.3, "q0": 0.1, "d1": 2.0, "d0": 0.3, "easy": 0.9},
        "gaussian": {"center": 0.3, "alpha": 1.2, "sigma": 2.0},
        "angle": {"divisor": 1.5, "straight": 0.0},
        "sface": {"steepness": 20.0, "angle": 1.5},
        "sphereface2": {"margin": 0.3, "power": 3.0, "straight": 0.0},
    }
    transform = negatives(kind, like, **numbers.get(kind, {})).parameters
    problem_of = (
        target,
        torch.full_like(like, 16.0),
        None,
        None,
        transform,
        None,
        kind,
        1,
        True,
        True,
        1e-12,
        -100,
        -100,
    )
    ours = torch.ops.hyperkernels.class_statistics_triton(x, weight, *problem_of, 128, 0, 0.0, None)
    wide = [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in problem_of]
    leaves = [v.detach().double().requires_grad_() for v in (x, weight)]
    truth = reference.class_statistics(*leaves, *wide)
    incoming = [torch.randn(40, dtype=torch.float64, device="cuda") for _ in range(4)]
    results = []
    for statistics, of in ((ours, (x, weight)), (truth, leaves)):
        loss = sum((statistics[i].double() * d).sum() for i, d in zip((0, 1, 2, 5), incoming, strict=True))
        results.append((*statistics[:4], statistics[5], *torch.autograd.grad(loss, of)))
    for i, (mine, right) in enumerate(zip(*results, strict=True)):
        gradient = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
        tolerance = gradient if i >= 5 or dtype == torch.float64 else 1e-4
        assert (mine.double() - right).norm() <= tolerance * right.norm() + 1e-6, (kind, i)


def test_more_than_2_to_the_31_entries():
    """N * C and, with it, every row's distance from the first in the class dimension."""
    n, c, d = 2304, 10**6, 64
    assert n * c > 2**31
    x, weight, target = (torch.randn(n, d, device="cuda"), torch.randn(c, d, device="cuda"), None)
    x, weight = x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    target = torch.randint(c, (n,), device="cuda")
    loss, dx, dweight = step(x, weight, target, margin=hk.margins.CosFace(0.2), reduction="sum")
    rows = torch.tensor([0, 1, n - 1], device="cuda")
    few = x.detach()[rows].double().requires_grad_()
    with hk.backend("reference"):
        right = hk.margin_softmax_loss(
            few, weight.detach().double(), target[rows], margin=hk.margins.CosFace(0.2), reduction="sum"
        )
        (truth,) = torch.autograd.grad(right, few)
    assert (dx[rows].double() - truth).norm() < 0.02 * truth.norm()
    assert loss.isfinite() and dweight.isfinite().all()


def test_ten_million_classes():
    c, d, n = 10**7, 512, 64
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GB of GPU memory")
    weight = torch.empty(c, d, dtype=torch.bfloat16, device="cuda").normal_().requires_grad_()
    target = torch.randint(c - 1000, c, (n,), device="cuda")
    x = (weight.detach()[target].float() + torch.randn(n, d, device="cuda")).bfloat16().requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss, dx, dweight = step(x, weight, target, margin=ARCFACE)
    extra = torch.cuda.max_memory_allocated() - before - dweight.numel() * 2
    assert extra < 600 * 2**20
    assert loss.isfinite() and dx.isfinite().all()
    touched = dweight[target].float().norm(dim=1)
    assert (touched > 0).all() and touched.isfinite().all()
    statistics = hk.class_statistics(x.detach(), weight.detach(), target)
    cos = torch.nn.functional.cosine_similarity(x.detach().float(), weight.detach()[target].float())
    torch.testing.assert_close(statistics.target_cos, cos, rtol=1e-4, atol=1e-5)


def test_memory_at_a_million_classes():
    n, c, d = 1024, 10**6, 512
    x = torch.randn(n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(c, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(c, (n,), device="cuda")
    step(x, weight, target)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = step(x, weight, target)[1:]
    extra = torch.cuda.max_memory_allocated() - before - sum(g.numel() * 2 for g in gradients)
    assert extra < 300 * 2**20


def test_graph_capture():
    x, weight, target = problem(100, 3000, 128, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(x, weight, target)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, weight, target)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for mine, eager in zip(captured, step(x, weight, target), strict=True):
        assert torch.equal(mine, eager)


def test_graph_capture_of_a_backward_that_skips():
    x, weight, target = problem(200, 30000, 64, torch.float16, near=20.0)
    options = {"skip_budget": 0.05, "skip_report": torch.zeros(2, dtype=torch.float64, device="cuda")}
    eager = step(x, weight, target, **options)
    report = options["skip_report"].clone()
    assert 0 < report[1] < 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, weight, target, **options)
    graph.replay()
    assert torch.equal(options["skip_report"], report)
    assert all(torch.equal(mine, right) for mine, right in zip(captured, eager, strict=True))


def test_skipping_stays_within_its_budget():
    """With all cosines' gradients of norm at most one centre, what is dropped bounds the error of dx."""
    x, weight, target = problem(300, 40000, 128, torch.float32)
    seen = torch.zeros(2, dtype=torch.float64, device="cuda")
    full = step(x, weight, target)[1]
    part = step(x, weight, target, skip_budget=0.1, skip_report=seen)[1]
    assert 0 < seen[0] <= 0.1 and seen[1] > 0
    size = 64.0 / 300 / x.detach().norm(dim=1).min()  # of the gradient of one logit of the mean loss, at most
    assert (part - full).norm(dim=1).sum() <= (seen[0].item() + 1e-3) * 300 * size


def test_compiles_in_one_graph():
    x, weight, target = problem(33, 700, 64, torch.float32)
    f = lambda v, w: hk.margin_softmax_loss(v * 2, w, target, margin=ARCFACE) * 3  # noqa: E731
    compiled, eager = torch.compile(f, fullgraph=True)(x, weight), f(x, weight)
    torch.testing.assert_close(compiled, eager)
    gradients = (torch.autograd.grad(loss, (x, weight)) for loss in (compiled, eager))
    for mine, right in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_every_time(dtype):
    x, weight, target = problem(300, 20000, 256, dtype)
    first = step(x, weight, target)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, step(x, weight, target), strict=True))


def test_runs_on_the_current_stream():
    x, weight, target = problem(512, 5000, 128, torch.bfloat16)
    expected = step(x, weight, target)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    late = torch.zeros_like(x)
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        late.copy_(x.detach())
        got = step(late.requires_grad_(), weight, target)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_target_out_of_range_is_nan_for_its_row():
    x, weight, target = problem(20, 500, 64, torch.float32)
    right = hk.margin_softmax_loss(x, weight, target, reduction="none")
    target[3], target[11] = 500, -5
    loss = hk.margin_softmax_loss(x, weight, target, reduction="none")
    wrong = torch.tensor([3, 11], device="cuda")
    assert loss[wrong].isnan().all()
    keep = torch.ones(20, dtype=torch.bool, device="cuda").index_fill_(0, wrong, False)
    assert torch.equal(loss[keep], right[keep])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_edges(dtype):
    """A row of zeros, a sample on its centre, one class, every row ignored: finite losses and gradients."""
    x, weight, target = problem(6, 300, 64, dtype)
    with torch.no_grad():
        x[0] = 0
        weight[target[1]] = x[1]
        weight[7] = 0
    for labels, centres in (
        (target, weight),
        (target * 0, weight.detach()[:1].requires_grad_()),
        (target * 0 - 100, weight),
    ):
        assert all(v.isfinite().all() for v in step(x, centres, labels))


def test_as_float32_products_are_taken():
    """tf32 is used where PyTorch is told to use it, and nowhere else."""
    x, weight, target = problem(64, 2000, 512, torch.float32)
    truth = textbook(x.double(), weight.double(), target)[0]
    before = torch.get_float32_matmul_precision()
    errors = {}
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            errors[precision] = (step(x, weight, target)[0].double() - truth).abs() / truth
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 1e-6
    assert errors["high"] < 1e-2
