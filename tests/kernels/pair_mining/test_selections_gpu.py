"""The ops that return pairs on a GPU: the Triton kernels in their real configurations, bfloat16 included."""

import pytest
import torch

from hyperkernels.kernels.pair_mining import reference
from tests.support import pair_selection_cases as cases

pytestmark = pytest.mark.gpu
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def make(*args, **options):
    return cases.make(*args, device="cuda", **options)


@pytest.fixture(autouse=True)
def _exact_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


# Every case compiles kernels of its own: what it is made of takes turns, bfloat16 being every other.
KINDS = [(select, similarity) for select in cases.SELECTS for similarity in cases.SIMILARITIES]
LABELS = ("codes", "sorted", "bits")


def dtype_of(turn):
    return torch.bfloat16 if turn % 2 == 0 else DTYPES[1 + turn // 2 % 3]


@pytest.mark.parametrize("turn", range(len(KINDS)), ids=lambda i: "-".join(KINDS[i]))
def test_exact(turn):
    """On small numbers of halves all of it equals the reference bit by bit, ties and bounds included."""
    select, similarity = KINDS[turn]
    labels, dtype = "none" if turn == 8 else LABELS[(turn // 3 + turn) % 3], dtype_of(turn)
    problem = make(
        150, 1000, 24, dtype, select, similarity, labels, turn % 4 < 2, turn % 3 > 0, exact=True, own=turn == 5,
        classes=12,
    )  # fmt: skip
    cases.check_top_k(problem, (10, 64, 1, 100)[turn % 4], True)
    cases.check_lists(problem, True)
    cases.check_bins(make(40, 600, 24, dtype, select, similarity, labels, exact=True), 12, True, gradients=False)


@pytest.mark.parametrize("k", [1, 10, 64, 100])
def test_every_k(k):
    cases.check_top_k(make(150, 1000, 24, torch.bfloat16, "negative", exact=True, classes=12), k, True)


@pytest.mark.parametrize(
    ("turn", "shape"),
    enumerate([(300, 2000, 512), (33, 129, 100), (1, 1, 1), (300, 2000, 512), (9, 0, 5), (33, 129, 100), (3, 5, 0),
               (0, 9, 5)]),
)  # fmt: skip
def test_random(turn, shape):
    problem = make(*shape, dtype_of(turn), "negative", cases.SIMILARITIES[turn % 3], window=True)
    cases.check_top_k(problem, 10, False)
    cases.check_lists(problem, False)
    cases.check_sample(problem, 5, 2**40 + 3, "exponential", 3.0, 0.0)
    few = problem._replace(x=problem.x[:30], label=problem.label[:30], id=problem.id[:30], lower=None, upper=None)
    cases.check_bins(few, 10, False)


@pytest.mark.parametrize("turn", range(6))
def test_values(turn):
    for n, m, d, pairs in ((5, 9, 3, 40), (200, 300, 512, 5000), (3, 4, 2000, 50), (6, 5, 8, 0)):
        for own in (False, True):
            cases.check_values(n, m, d, pairs, dtype_of(turn), cases.SIMILARITIES[turn % 3], own, "cuda")


def test_values_out_of_range_are_nan():
    x = torch.randn(4, 64, device="cuda", requires_grad=True)
    rows = torch.tensor([0, 4, -1, 2**62, 3], device="cuda")
    columns = torch.tensor([0, 1, 2, 3, -(2**62)], device="cuda")
    values = cases.op("pair_values")(x, None, rows, columns, "dot")
    assert values.isnan().tolist() == [False, True, True, True, True]
    (dx,) = torch.autograd.grad(values, x, torch.ones_like(values))
    assert dx.isnan().any(1).tolist() == [False, True, True, True]


def test_nan_is_the_largest():
    problem = make(200, 3000, 64, torch.bfloat16, labels="none", ids=False, exact=True)
    problem.x[3] = torch.nan
    problem.ref[[2, 1033, 2999]] = torch.nan
    for k in (2, 10, 100):
        cases.check_top_k(problem, k, True)
    cases.check_lists(problem, True)


def test_draws_follow_the_weights():
    """A chi-square test with seven degrees of freedom: beyond 29.9 lies one in ten thousand."""
    x = torch.ones(512, 16, device="cuda") / 16
    ref = torch.linspace(-0.7, 0.7, 8, device="cuda")[:, None].expand(8, 16).contiguous()
    none = torch.empty(0, dtype=torch.int32, device="cuda")
    problem = reference.PairProblem(x, ref, none, none, none, none, None, None, "all", "dot")
    drawn = cases.op("pair_sample")(*problem, 64, 2024, "exponential", 3.0, 0.0, 2.0, *cases.TILE)
    expected = (1.5 * ref[:, 0]).softmax(0) * drawn.numel()
    observed = drawn.flatten().bincount(minlength=8)
    assert ((observed - expected) ** 2 / expected).sum() < 29.9


def test_determinism():
    problem = make(700, 5000, 128, torch.bfloat16)
    rows, columns = (torch.randint(0, size, (20000,), device="cuda") for size in (700, 5000))
    edges = torch.linspace(-0.2, 0.2, 10, device="cuda").repeat(700)
    offsets = torch.arange(701, device="cuda") * 10
    d_sum = torch.randn(7700, device="cuda")

    def all_of_it():
        yield from cases.op("pair_top_k")(*problem, 10, *cases.TILE)
        yield cases.op("pair_sample")(*problem, 3, 5, "exponential", 1.0, 0.0, 1.0, *cases.TILE)
        yield from cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE)
        yield from cases.op("pair_bins_backward")(*problem, edges, offsets, d_sum, *cases.TILE, True, True)
        d = torch.linspace(0, 1, 20000, device="cuda")
        yield from cases.op("pair_values_backward")(d, *problem[:2], rows, columns, "dot", True, True)

    first = list(all_of_it())
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, all_of_it(), strict=True))


def test_nothing_waits_for_the_device():
    problem = make(500, 4000, 64, torch.bfloat16)
    offsets = torch.arange(501, device="cuda") * 3
    edges = torch.zeros(1500, device="cuda")
    d_sum = torch.ones(2000, device="cuda")
    rows = torch.randint(0, 500, (1000,), device="cuda")

    def run():
        cases.op("pair_top_k")(*problem, 10, *cases.TILE)
        cases.op("pair_top_k")(*problem, 100, *cases.TILE)
        cases.op("pair_count")(*problem, *cases.TILE)
        cases.op("pair_list")(*problem, offsets, 1500, *cases.TILE)
        cases.op("pair_sample")(*problem, 3, 5, "exponential", 1.0, 0.0, 1.0, *cases.TILE)
        cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE)
        cases.op("pair_bins_backward")(*problem, edges, offsets, d_sum, *cases.TILE, True, True)
        values = cases.op("pair_values")(*problem[:2], rows, rows, "euclidean")
        cases.op("pair_values_backward")(values, *problem[:2], rows, rows, "euclidean", True, True)

    run()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_memory_stays_bounded():
    """No matrix of N x M: 40,000 by 40,000 similarities of float32 would be 6.4 GB."""
    n = 40_000
    problem = make(n, n, 32, torch.bfloat16, "negative", classes=1000)
    torch.cuda.synchronize()
    edges, offsets = torch.zeros(n, device="cuda"), torch.arange(n + 1, device="cuda")
    d_sum = torch.ones(2 * n, device="cuda")
    for call in (
        lambda: cases.op("pair_top_k")(*problem, 10, *cases.TILE),
        lambda: cases.op("pair_top_k")(*problem, 100, *cases.TILE),
        lambda: cases.op("pair_sample")(*problem, 2, 5, "exponential", 1.0, 0.0, 1.0, *cases.TILE),
        lambda: cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE),
        lambda: cases.op("pair_bins_backward")(*problem, edges, offsets, d_sum, *cases.TILE, True, True),
    ):
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        assert torch.cuda.max_memory_allocated() - held < 800 * 2**20


def test_more_than_two_to_the_31_pairs():
    """Row 60,000 of 60,000 by 60,000: its own numbers must be those of a problem of that row alone."""
    problem = make(60_000, 60_000, 16, torch.bfloat16, labels="none", ids=False, exact=True)
    last = problem._replace(x=problem.x[-1:])
    for mine, right in zip(cases.op("pair_top_k")(*problem, 10, *cases.TILE), reference.top_k(last, 10), strict=True):
        assert torch.equal(mine[-1:], right)
    drawn = cases.op("pair_top_k")(*problem, 70, *cases.TILE)
    assert torch.equal(drawn[1][-1:], reference.top_k(last, 70)[1])
