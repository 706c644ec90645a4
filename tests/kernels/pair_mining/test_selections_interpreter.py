"""The Triton kernels of the ops that return pairs in Triton's interpreter, whose bfloat16 is garbage.

Tiles are far smaller than on a GPU, so that small problems have many of them, whole and cut short.
"""

import pytest
import torch
import triton
import triton.language as tl

import hyperkernels as hk
from hyperkernels.kernels.pair_mining import reference, selections
from hyperkernels.kernels.pair_mining.triton import kernels as triton_kernels
from hyperkernels.kernels.pair_mining.triton import product as triton_product
from hyperkernels.kernels.pair_mining.triton import samples as triton_samples
from hyperkernels.kernels.pair_mining.triton import top_k as triton_top_k
from tests.support import combinations, tiled_ops
from tests.support import pair_selection_cases as cases
from tests.support.pair_selection_kernel_cases import check_rows_that_are_not_finite, make, make_edges

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("poisoned_memory", "tiles"),
    # numpy reports what the kernels let happen on purpose: NaN, and infinite numbers that do not count.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]
DTYPES = (torch.float32, torch.float64, torch.float16)
EMPTY = [(0, 5, 3), (4, 0, 3), (0, 0, 0), (3, 4, 0), (1, 1, 1)]


@pytest.fixture
def tiles(monkeypatch):
    monkeypatch.setattr(
        triton_kernels, "configuration", lambda *_: triton_kernels.PairConfiguration(16, 16, 16, 4, 1, 1)
    )


@pytest.fixture
def split(monkeypatch):
    """Splits of the columns: one, some with several tiles each, one for each tile."""

    def into(splits):
        monkeypatch.setattr(triton_kernels.Tiles, "splits", lambda t: max(1, min(splits, t.column_tiles)))

    return into


def kinds():
    """Every selection with every similarity, labels and the rest taking turns."""
    for s, select in enumerate(cases.SELECTS):
        for k, similarity in enumerate(cases.SIMILARITIES):
            for labels in ("codes", "sorted", "bits", "none"):
                if labels != "none" or select == "all":
                    turn = s + k + len(labels)
                    yield {"select": select, "similarity": similarity, "labels": labels, "ids": turn % 2 == 0,
                           "window": turn % 3 != 0, "own": turn % 4 == 1}  # fmt: skip


KINDS = list(kinds())


# Every other one has each selection, similarity, kind of labels and dtype in it, with ids and bounds and without.
TURNS = combinations(range(len(KINDS)), everyday=lambda turn: turn % 2 == 1)


@pytest.mark.parametrize("turn", TURNS, ids=lambda i: "-".join(map(str, KINDS[i].values())))
def test_exact(turn):
    """On small numbers of halves all of it equals the reference bit by bit, ties and bounds included."""
    problem = cases.make(18, 35, 4, DTYPES[turn % 3], exact=True, **KINDS[turn])
    cases.check_top_k(problem, 5, True)
    cases.check_lists(problem, True)
    cases.check_bins(problem, 3, True, gradients=False)


@pytest.mark.parametrize(
    ("turn", "splits"), [(0, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1), (2, 100)))]
)
def test_random(turn, splits, split):
    split(splits)
    similarity, dtype = cases.SIMILARITIES[turn], DTYPES[(turn + splits) % 3]
    for select, labels, own in (("negative", "codes", False), ("positive", "bits", True), ("all", "none", False)):
        # Where a row meets itself its distance is a rounding error: ids keep those pairs out.
        problem = cases.make(21, 57, 18, dtype, select, similarity, labels, window=True, own=own)
        if own:
            ids = torch.arange(21, dtype=torch.int32)
            problem = problem._replace(id=ids, ref_id=ids)
        cases.check_top_k(problem, 7, False)
        cases.check_lists(problem, False)
        cases.check_bins(problem, 4, False)
        cases.check_sample(problem, 5, 12345, "exponential", 3.0, 0.0)


@pytest.mark.parametrize("shape", EMPTY)
def test_empty_and_tiny(shape):
    for kind in KINDS[::7]:
        problem = cases.make(*shape, exact=True, **kind)
        for k in (0, 1, 3):
            cases.check_top_k(problem, k, True)
        cases.check_lists(problem, True)
        cases.check_bins(problem, 2, True)
        cases.check_sample(problem, 2, 5, "exponential", 1.0, 0.0)


@pytest.mark.parametrize(
    ("k", "splits", "dtype"),
    [
        (1, 1, 0),
        (3, 100, 1),
        pytest.param(32, 2, 1, marks=pytest.mark.slow),
        (64, 100, 2),
        pytest.param(65, 1, 1, marks=pytest.mark.slow),
        (130, 2, 0),
    ],
)
def test_every_k(k, splits, dtype, split, monkeypatch):
    """Lists in registers, and past them chunks of columns; far more ties than places."""
    split(splits)
    monkeypatch.setattr(triton_top_k, "WORKSPACE", 16 * 64 * 8)
    monkeypatch.setattr(triton_top_k, "_LARGEST_CHUNK", 32)
    cases.check_top_k(cases.make(17, 80, 3, DTYPES[dtype], "negative", labels="sorted", exact=True), k, True)


@pytest.mark.parametrize("splits", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_nan_and_infinity(splits, split):
    """NaN is larger than all and counts; it fills lists from the lowest column on."""
    split(splits)
    for dtype in (torch.float32, torch.float64):
        problem = cases.make(20, 70, 4, dtype, exact=True, labels="none", ids=False)
        problem.x[3], problem.x[5, 0] = torch.nan, -torch.nan
        problem.ref[[2, 33, 34, 69]] = torch.nan
        problem.ref[40], problem.x[:, 1] = torch.tensor([0.0, torch.inf, 0, 0]), 1.0
        for k in (3, 10):
            cases.check_top_k(problem, k, True)
        cases.check_lists(problem, True)
        bounds = torch.full((20,), -1.0, dtype=dtype), torch.full((20,), 1.0, dtype=dtype)
        cases.check_lists(problem._replace(lower=bounds[0], upper=bounds[1]), True)
        edges, offsets = torch.tensor([-1.0, 0.5] * 20, dtype=dtype), torch.arange(0, 41, 2)
        ours = cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE)
        for mine, right in zip(ours, reference.binned(problem, edges, offsets), strict=True):
            torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("most", "splits"), [(0, 1), (5, 100), pytest.param(20, 2, marks=pytest.mark.slow)])
def test_ragged_bins(most, splits, split):
    """More bins than one group holds, rows without an edge, edges that are equal."""
    split(splits)
    cases.check_bins(cases.make(18, 35, 6, exact=True), most, True)
    cases.check_bins(cases.make(18, 35, 6, torch.float64, similarity="euclidean"), most, False)


CHUNKS = combinations(
    cases.SIMILARITIES, [False, True], everyday=lambda similarity, own: own == (similarity == "euclidean")
)


@pytest.mark.parametrize(("similarity", "own"), CHUNKS)
def test_bin_gradients_in_chunks(similarity, own, monkeypatch):
    monkeypatch.setattr(triton_product, "WORKSPACE", 2 * 16 * 16 * 4)
    monkeypatch.setattr(triton_product, "BLOCK", 16)
    problem = cases.make(20, 35, 7, torch.float32, "negative", similarity, own=own)
    ids = torch.arange(35, dtype=torch.int32)
    cases.check_bins(problem._replace(id=ids[:20], ref_id=ids[:20] if own else ids), 3, False)


@pytest.mark.parametrize("own", combinations([False, True], everyday=lambda own: not own))
@pytest.mark.parametrize("similarity", cases.SIMILARITIES)
def test_bin_gradients_of_rows_that_are_not_finite(similarity, own):
    problem = make(n=20, m=30, select="negative", similarity=similarity, self_pairs=own)
    backward = cases.op("pair_bins_backward")
    check_rows_that_are_not_finite(problem, make_edges(problem), torch.inf if own else torch.nan, backward)


def test_offsets_that_lie_write_nowhere_else():
    problem = cases.make(20, 40, 4, labels="none", ids=False)
    for offsets in (
        torch.arange(21) * 3,
        torch.full((21,), -(2**40)),
        torch.full((21,), 2**40),
        torch.arange(20, -1, -1),
    ):
        columns, values = cases.op("pair_list")(*problem, offsets, 60, *cases.TILE)
        assert ((columns >= -1) & (columns < 40)).all()
        assert torch.equal(values.isnan(), columns < 0)
    columns, _ = cases.op("pair_list")(*problem, torch.arange(21) * 3, 60, *cases.TILE)
    assert torch.equal(columns.view(20, 3), torch.arange(3).expand(20, 3))
    edges = torch.zeros(7)
    for offsets in (torch.full((21,), -(2**40)), torch.full((21,), 2**40), torch.arange(20, -1, -1)):
        cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE)
        cases.op("pair_bins_backward")(*problem, edges, offsets, torch.zeros(27), *cases.TILE, True, True)


@triton.jit
def random_kernel(i_ptr, j_ptr, bits_ptr, log_ptr, double_ptr, seed, N: tl.constexpr):
    at = tl.arange(0, N)
    c0, c1 = tl.load(j_ptr + at).to(tl.uint32), tl.load(i_ptr + at).to(tl.uint32)
    zero = tl.zeros([N], tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, c0, c1, zero + 3, zero)
    for i in tl.static_range(4):
        bits = r0 if i == 0 else r1 if i == 1 else r2 if i == 2 else r3
        tl.store(bits_ptr + i * N + at, bits.to(tl.int64))
    tl.store(log_ptr + at, triton_samples._log_exponential(c0, tl.float32))
    tl.store(double_ptr + at, triton_samples._log_exponential(c0, tl.float64))


@pytest.mark.parametrize("seed", [0, 12345, 2**31, 2**33 + 7, 2**63 - 1, -1, -(2**63)])
def test_random_numbers(seed):
    """Philox bit by bit, and the logarithm of the exponential at both ends and between."""
    n = 2048
    i, j = torch.randint(0, 2**32, (n,)), torch.randint(0, 2**32, (n,))
    j[:8] = torch.tensor([0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1])
    j[8:512] >>= torch.arange(504) % 32
    bits = torch.empty(4, n, dtype=torch.int64)
    single, double = torch.empty(n), torch.empty(n, dtype=torch.float64)
    random_kernel[(1,)](i, j, bits, single, double, seed, N=n)
    assert torch.equal(bits, torch.stack(reference.philox([j, i, torch.full_like(j, 3), torch.zeros_like(j)], seed)))
    truth = (-torch.log1p(-((j.double() + 0.5) * 2.0**-32))).log()
    assert (double - truth).abs().max() < 1e-14
    assert (single - truth).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("draws", "temperature", "dtype"),
    [
        (1, 1.0, torch.float64),
        (6, 0.5, torch.float32),
        pytest.param(37, 2.0, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_draws(draws, temperature, dtype):
    cases.check_sample(cases.make(19, 40, 8, dtype, "negative"), draws, -3, "exponential", 5.0, 0.0, temperature)
    # Distances of unit vectors, as the weight is meant for; one row meets itself.
    problem = cases.make(19, 40, 8, dtype, "all", "euclidean", labels="none", ids=False)
    x, ref = (torch.nn.functional.normalize(t) for t in (problem.x, problem.ref))
    ref[7] = x[3]
    cases.check_sample(problem._replace(x=x, ref=ref), draws, 2**40 + 1, "distance", 8.0, 0.5, temperature)


@pytest.mark.slow
def test_draws_do_not_depend_on_the_tiles(monkeypatch):
    problem = cases.make(30, 70, 8, torch.float32, "negative", exact=True)
    drawn = []
    for rows, columns in ((16, 16), (32, 64), (16, 128)):
        config = triton_kernels.PairConfiguration(rows, columns, 16, 4, 1, 2)
        monkeypatch.setattr(triton_kernels, "configuration", lambda *_, config=config: config)
        drawn.append(cases.op("pair_sample")(*problem, 9, 77, "exponential", 2.0, 0.0, 1.0, *cases.TILE))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_draws_follow_the_weights():
    """A chi-square test with seven degrees of freedom: beyond 29.9 lies one in ten thousand."""
    x = torch.ones(64, 1)
    ref = torch.linspace(-0.7, 0.7, 8)[:, None]
    none = torch.empty(0, dtype=torch.int32)
    problem = reference.PairProblem(x, ref, none, none, none, none, None, None, "all", "dot")
    drawn = cases.op("pair_sample")(*problem, 64, 2024, "exponential", 3.0, 0.0, 2.0, *cases.TILE)
    expected = (1.5 * ref[:, 0]).softmax(0) * drawn.numel()
    observed = drawn.flatten().bincount(minlength=8)
    assert ((observed - expected) ** 2 / expected).sum() < 29.9


def value_is_of_every_day(similarity, dtype):
    return dtype == torch.float32 or cases.SIMILARITIES.index(similarity) == DTYPES.index(dtype)


@pytest.mark.parametrize(
    ("similarity", "dtype"), combinations(cases.SIMILARITIES, DTYPES, everyday=value_is_of_every_day)
)
def test_values(similarity, dtype):
    for n, m, d, pairs in ((20, 30, 70, 111), (1, 1, 1, 3), (3, 4, 600, 10), (6, 5, 8, 0)):
        for own in (False, True):
            cases.check_values(n, m, d, pairs, dtype, similarity, own)
    values = cases.op("pair_values")(torch.ones(2, 0), None, *torch.zeros(2, 3, dtype=torch.int64), similarity)
    assert torch.equal(values, torch.zeros(3))


def test_values_out_of_range_are_nan():
    """Nothing is read there; the gradients of the other ends are NaN, those of other rows are not."""
    x, ref = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    rows = torch.tensor([0, 4, -1, 1, 2, 2**62, 3])
    columns = torch.tensor([0, 1, 2, 5, -(2**62), 3, 4])
    values = cases.op("pair_values")(x, ref, rows, columns, "euclidean")
    good = torch.tensor([True, False, False, False, False, False, True])
    right = reference.listed_similarities(x, ref, rows[good], columns[good], "euclidean")
    torch.testing.assert_close(values[good], right)
    assert values[~good].isnan().all()
    dx, dref = torch.autograd.grad(values, (x, ref), torch.ones(7))
    assert torch.equal(dx.isnan().any(1), torch.tensor([False, True, True, False]))
    assert torch.equal(dref.isnan().any(1), torch.tensor([False, True, True, True, False]))
    for a, b in zip((dx, dref), torch.autograd.grad(right.sum(), (x, ref)), strict=True):
        torch.testing.assert_close(a[~a.isnan()], b[~a.isnan()])


def test_distance_zero_has_gradient_zero():
    x = torch.randn(3, 8, requires_grad=True)
    at = torch.arange(3)
    for similarity in ("euclidean", "squared_euclidean"):
        values = cases.op("pair_values")(x, None, at, at, similarity)
        assert torch.equal(values, torch.zeros(3))
        assert torch.equal(torch.autograd.grad(values.sum(), x)[0], torch.zeros(3, 8))


def test_only_what_is_needed():
    x, ref = torch.randn(4, 3), torch.randn(5, 3)
    rows, columns, d = torch.tensor([0, 3]), torch.tensor([4, 2]), torch.ones(2)
    for need_x in (False, True):
        for need_ref in (False, True):
            dx, dref = cases.op("pair_values_backward")(d, x, ref, rows, columns, "dot", need_x, need_ref)
            assert dx.numel() == 12 * need_x and dref.numel() == 15 * need_ref
            problem = cases.make(4, 5, 3)
            edges, offsets = torch.zeros(4), torch.arange(5)
            dx, dref = cases.op("pair_bins_backward")(
                *problem, edges, offsets, torch.ones(8), *cases.TILE, need_x, need_ref
            )
            assert dx.numel() == 12 * need_x and dref.numel() == 15 * need_ref


def test_strided_inputs():
    problem = cases.make(18, 40, 12, exact=True, window=True)
    spread = [
        v.repeat_interleave(2, 0)[::2] if isinstance(v, torch.Tensor) and v.numel() else v for v in problem
    ]  # fmt: skip
    spread[0], spread[1] = spread[0].t().contiguous().t(), spread[1].repeat(1, 2)[:, :12]
    strided = reference.PairProblem(*spread)
    cases.check_top_k(strided, 4, True)
    cases.check_lists(strided, True)
    cases.check_bins(strided, 3, True)
    rows, columns = torch.randint(0, 18, (20,))[::2], torch.randint(0, 40, (20,))[::2]
    torch.testing.assert_close(
        cases.op("pair_values")(strided.x, strided.ref, rows, columns, "dot"),
        reference.listed_similarities(strided.x, strided.ref, rows, columns, "dot"),
    )


def test_determinism():
    problem = cases.make(20, 60, 9)
    rows, columns = torch.randint(0, 20, (200,)), torch.randint(0, 60, (200,))
    edges, offsets = cases.edges_of(problem, 4)
    d_sum = torch.randn(len(edges) + 20)

    def all_of_it():
        yield from cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE)
        yield from cases.op("pair_bins_backward")(*problem, edges, offsets, d_sum, *cases.TILE, True, True)
        d = torch.linspace(0, 1, 200)
        yield from cases.op("pair_values_backward")(d, *problem[:2], rows, columns, "dot", True, True)

    assert all(torch.equal(a, b) for a, b in zip(all_of_it(), all_of_it(), strict=True))


def test_wrong_arguments_raise():
    problem = cases.make(4, 5, 3)
    with pytest.raises(ValueError, match="k must"):
        cases.op("pair_top_k")(*problem, -1, *cases.TILE)
    with pytest.raises(ValueError, match="offsets must"):
        cases.op("pair_list")(*problem, torch.zeros(4, dtype=torch.int64), 0, *cases.TILE)
    with pytest.raises(ValueError, match="weights must"):
        cases.op("pair_sample")(*problem, 1, 0, "other", 0.0, 0.0, 1.0, *cases.TILE)
    with pytest.raises(ValueError, match="temperature must"):
        cases.op("pair_sample")(*problem, 1, 0, "distance", 3.0, 0.5, 0.0, *cases.TILE)
    with pytest.raises(ValueError, match="edges must"):
        cases.op("pair_bins")(*problem, torch.zeros(3, dtype=torch.float64), torch.arange(5), *cases.TILE)
    with pytest.raises(TypeError, match="int64"):
        at = torch.zeros(2, dtype=torch.int32)
        cases.op("pair_values")(*problem[:2], at, at, "dot")


@pytest.mark.parametrize("name", tiled_ops.NAMES)
def test_wrong_tiles_raise(name):
    tiled_ops.check_refused(name, "_triton")


def test_through_the_public_functions():
    problem = cases.make(12, 30, 6, exact=True, select="negative")
    edges, offsets = cases.edges_of(problem, 3)
    rows, columns = torch.randint(0, 12, (9,)), torch.randint(0, 30, (9,))
    results = {}
    for name in ("triton", "reference"):
        with hk.backend(name):
            results[name] = [
                *selections.top_k(problem, 4),
                *selections.listed(problem),
                selections.sample(problem, 3, 9, "exponential", 1.0, 0.0, 0.5),
                *selections.binned(problem, edges, offsets),
                selections.values(*problem[:2], rows, columns, "squared_euclidean"),
            ]
    for mine, right in zip(*results.values(), strict=True):
        torch.testing.assert_close(mine, right)
