"""The C++ kernels of the ops that return pairs, against the reference in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import reference, selections
from hyperkernels.kernels.pair_mining.op import Tile
from tests.support import REFUSED, assert_passes_at, need_cpp_kernels
from tests.support.pair_selection_kernel_cases import (
    CASES,
    SEEDS,
    SIMILARITIES,
    TILES,
    assert_equal,
    everything,
    make,
    make_edges,
    to,
)

need_cpp_kernels()

OPS = torch.ops.hyperkernels


@settings(max_examples=150, deadline=None)
@given(options=CASES, seed=SEEDS, tile=TILES, k=st.sampled_from([0, 1, 2, 10, 65, 1000]))
def test_top_k(options, seed, tile, k):
    torch.manual_seed(seed)
    problem = make(**options)
    assert_equal(selections.top_k(problem, k, tile), reference.top_k(problem, k), options)


@settings(max_examples=150, deadline=None)
@given(options=CASES, seed=SEEDS, tile=TILES)
def test_count_and_list(options, seed, tile):
    torch.manual_seed(seed)
    problem = make(**options)
    count = reference.count(problem)
    offsets, *pairs = selections.listed(problem, tile)
    assert torch.equal(OPS.pair_count(*problem, *tile), count)
    assert torch.equal(offsets.diff(), count)
    assert_equal(pairs, reference.listed(problem, offsets), options)


@settings(max_examples=100, deadline=None)
@given(
    options=CASES, seed=SEEDS, tile=TILES, draws=st.sampled_from([0, 1, 4, 9]), weigh=st.booleans(),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)  # fmt: skip
def test_sample(options, seed, tile, draws, weigh, temperature):
    torch.manual_seed(seed)
    problem = make(**options)
    weights = ("distance", float(options["d"]), 0.5) if weigh else ("exponential", 2.0 * (seed % 3), 0.0)
    weights += (temperature,)
    key = (seed - 2**30) * 2**32 + 5
    found = selections.sample(problem, draws, key, *weights, tile)
    assert torch.equal(found, reference.sample(problem, draws, key, *weights))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("self_pairs", [False, True])
@pytest.mark.parametrize("sizes", [(70, 300), (3, 5000)])  # one lane, many lanes
def test_whole_numbers_are_exact_for_any_tile_and_threads(similarity, self_pairs, sizes):
    n, m = sizes if not self_pairs else (max(sizes) // 10, 0)
    problem = make(n, m, 7, similarity=similarity, self_pairs=self_pairs, ids=True, window=True, whole=True)
    truth, threads = None, torch.get_num_threads()
    try:
        for count, tile in itertools.product((1, 2, 3), (Tile(1, 37), Tile(2, 64), Tile(256, 512))):
            torch.set_num_threads(count)
            found = everything(to(problem, torch.float32), tile)
            if truth is None:
                truth = found
                assert_equal(
                    found[:2], [t.to(f.dtype) for t, f in zip(reference.top_k(problem, 3), found, strict=False)]
                )
            assert_equal(found, truth)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("similarity", ["dot", "squared_euclidean"])
def test_nan_is_the_largest_and_not_dropped(dtype, similarity):
    problem = make(20, 150, 4, similarity=similarity, dtype=dtype, window=True, whole=True)
    problem.x[3, 1], problem.ref[5, 0], problem.ref[77, 2] = torch.nan, torch.nan, torch.nan
    edges = make_edges(problem, whole=True)
    for tile, k in itertools.product((Tile(7, 64), Tile(256, 512)), (1, 2, 40, 200)):
        assert_equal(selections.top_k(problem, k, tile), reference.top_k(problem, k))
        offsets, *pairs = selections.listed(problem, tile)
        assert_equal(pairs, reference.listed(problem, offsets))
        weights = ("exponential", 1.0, 0.0, 1.0)
        assert torch.equal(selections.sample(problem, 6, 3, *weights, tile), reference.sample(problem, 6, 3, *weights))
        ours, truth = selections.binned(problem, *edges, tile), reference.binned(problem, *edges)
        for mine, right in zip(ours, truth, strict=True):
            torch.testing.assert_close(mine, right, equal_nan=True)


def test_many_ties_and_infinite_similarities():
    x, ref = torch.ones(3, 1), torch.ones(1000, 1)
    none = torch.empty(0, dtype=torch.int32)
    problem = reference.PairProblem(x, ref, none, none, none, none, None, None, "all", "dot")
    for k in (1, 7, 100, 999):
        assert torch.equal(selections.top_k(problem, k, Tile(2, 33))[1], torch.arange(k).expand(3, k))
    for infinite in (torch.inf, -torch.inf, torch.nan):
        problem = problem._replace(ref=torch.full((1000, 1), infinite))
        values, indices = selections.top_k(problem, 40, Tile(2, 33))
        assert torch.equal(indices, torch.arange(40).expand(3, 40))
        torch.testing.assert_close(values, torch.full((3, 40), infinite), equal_nan=True)
        weights = ("exponential", 1.0, 0.0, 1.0)
        assert torch.equal(selections.sample(problem, 3, 0, *weights), reference.sample(problem, 3, 0, *weights))


def test_large_k_of_many_columns():
    problem = make(3, 30000, 8, labels="none", dtype=torch.float32)
    values, indices = selections.top_k(problem, 20000, Tile(2, 512))
    u = reference.similarities(problem.x, problem.ref, "dot")
    assert torch.equal(indices.sort(1).values.unique_consecutive(dim=1), indices.sort(1).values)
    torch.testing.assert_close(values, u.topk(20000).values)
    torch.testing.assert_close(u.gather(1, indices), values)


@pytest.mark.parametrize(
    "weights", [("exponential", 3.0, 0.0, 1.0), ("distance", 64.0, 0.5, 1.0), ("distance", 64.0, 0.0, 2.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_in_lower_precision_differ_by_rounding_only(dtype, weights):
    similarity = "dot" if weights[0] == "exponential" else "euclidean"
    problem = make(60, 700, 64, similarity=similarity, ids=True)
    for side in problem[:2]:
        side /= side.norm(dim=1, keepdim=True)
    problem = to(problem, dtype)
    found, truth = selections.sample(problem, 50, 11, *weights), reference.sample(problem, 50, 11, *weights)
    assert (found != truth).float().mean() < 0.002
    exact = to(problem, torch.float64)
    log_weight = reference.log_weights(reference.of_problem(exact)[0], *weights)
    for row, draw in (found != truth).nonzero().tolist():
        columns = torch.stack([found[row, draw], truth[row, draw]])
        number = reference.philox(
            [columns, torch.full((2,), row), torch.full((2,), draw // 4), torch.zeros(2, dtype=torch.int64)], 11
        )[draw % 4]
        key = log_weight[row, columns] - (-torch.log1p(-(number.double() + 0.5) * 2.0**-32)).log()
        assert key.diff().abs() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("d", [64, 512])
def test_samples_have_the_exact_distribution(d, dtype):
    draws = 40000
    problem = make(3, 50, d, labels="none", similarity="euclidean", dtype=dtype)
    for side in problem[:2]:
        side /= side.norm(dim=1, keepdim=True)
    found = selections.sample(problem, draws, 5, "distance", float(d), 0.5, 1.0)
    exact = to(problem, torch.float64)
    share = reference.log_weights(reference.of_problem(exact)[0], "distance", float(d), 0.5, 1.0).softmax(1)
    for row in range(3):
        seen, expected = found[row].bincount(minlength=50).double(), draws * share[row]
        common = expected >= 5
        seen = torch.cat([seen[common], seen[~common].sum()[None]])
        expected = torch.cat([expected[common], expected[~common].sum()[None]])
        chi_square, freedom = ((seen - expected).square() / expected.clamp_min(1)).sum(), common.sum()
        assert chi_square < freedom + 5 * (2 * freedom).sqrt()


def test_draws_of_small_exponentials_are_fine_grained():
    """All pairs alike in a long row: the smallest of many exponentials must not be cut off at the spacing of floats."""
    problem = make(2, 200_000, 0, labels="none", dtype=torch.float32)
    found = selections.sample(problem, 64, 3, "exponential", 0.0, 0.0, 1.0)
    assert torch.equal(found, selections.sample(to(problem, torch.float64), 64, 3, "exponential", 0.0, 0.0, 1.0))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_is_written(dtype):
    for n, m, self_pairs in ((9, 11, False), (9, 0, True), (0, 4, False), (4, 0, False)):
        problem = make(n, m, 7, self_pairs=self_pairs, dtype=dtype)
        found, number = everything(problem, Tile(4, 3)), accumulate_dtype(dtype)
        assert not any(t.is_floating_point() and t.isnan().any() for t in found)
        columns = len(problem.x) if self_pairs else m
        assert all(t.numel() == 0 or t.max() < columns for t in (found[1], found[3], found[5], found[9]))
        rows = torch.zeros(3 if n and columns else 0, dtype=torch.int64)
        for similarity in SIMILARITIES:
            edges = make_edges(problem)
            d_sum = torch.ones(len(edges[0]) + n, dtype=number)
            changed = problem._replace(similarity=similarity)
            for gradient in (
                *OPS.pair_bins_backward(*changed, *edges, d_sum, 4, 3, True, True),
                *OPS.pair_values_backward(rows.to(number), *problem[:2], rows, rows, similarity, True, True),
            ):
                assert gradient.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets(capability):
    assert_passes_at(capability, __file__, "any_tile or lower_precision or nan or ties")


def test_not_contiguous():
    problem = make(9, 11, 4, ids=True, window=True)
    apart = problem._replace(
        **{
            name: torch.stack([value, value], -1)[..., 0]
            for name, value in problem._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )
    assert_equal(everything(apart, Tile(4, 5)), everything(problem, Tile(4, 5)))


def test_errors():
    problem = make(4, 6)
    edges, offsets = make_edges(problem)
    counted = torch.nn.functional.pad(OPS.pair_count(*problem, 4, 4).cumsum(0), (1, 0))
    total = int(counted[-1])
    none, index = torch.empty(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    d_sum, d = torch.ones(len(edges) + 4).double(), torch.ones(2).double()
    calls = [
        (REFUSED, "k must", lambda: OPS.pair_top_k(*problem, -1, 4, 4)),
        (REFUSED, "tile", lambda: OPS.pair_top_k(*problem, 1, 0, 4)),
        (REFUSED, "lower", lambda: OPS.pair_count(*problem._replace(lower=torch.ones(4)), 4, 4)),
        (REFUSED, "label", lambda: OPS.pair_count(*problem._replace(label=problem.label[:3]), 4, 4)),
        (REFUSED, "ref must", lambda: OPS.pair_count(*problem._replace(ref=problem.ref[:, :2]), 4, 4)),
        (REFUSED, "select", lambda: OPS.pair_count(*problem._replace(select="some"), 4, 4)),
        (REFUSED, "pair_count", lambda: OPS.pair_list(*problem, torch.zeros_like(counted), 0, 4, 4)),
        (REFUSED, "rise", lambda: OPS.pair_list(*problem, counted, total + 1, 4, 4)),
        (REFUSED, "rise", lambda: OPS.pair_list(*problem, counted.flip(0), total, 4, 4)),
        (REFUSED, "offsets", lambda: OPS.pair_list(*problem, counted[1:], total, 4, 4)),
        (REFUSED, "offsets", lambda: OPS.pair_list(*problem, counted.int(), total, 4, 4)),
        (REFUSED, "draws", lambda: OPS.pair_sample(*problem, -1, 0, "distance", 3.0, 0.5, 1.0, 4, 4)),
        (REFUSED, "weights", lambda: OPS.pair_sample(*problem, 1, 0, "other", 3.0, 0.5, 1.0, 4, 4)),
        (REFUSED, "temperature", lambda: OPS.pair_sample(*problem, 1, 0, "distance", 3.0, 0.5, 0.0, 4, 4)),
        (REFUSED, "edges", lambda: OPS.pair_bins(*problem, edges.float(), offsets, 4, 4)),
        (REFUSED, "rise", lambda: OPS.pair_bins(*problem, edges, offsets + 1, 4, 4)),
        (
            REFUSED, "edges must rise",
            lambda: OPS.pair_bins(*problem, -d.cumsum(0), torch.tensor([0, 2, 2, 2, 2]), 4, 4),
        ),
        (REFUSED, "d_sum", lambda: OPS.pair_bins_backward(*problem, edges, offsets, d_sum[1:], 4, 4, True, True)),
        (IndexError, "rows", lambda: OPS.pair_values(*problem[:2], index + 4, index, "dot")),
        (IndexError, "columns", lambda: OPS.pair_values(*problem[:2], index, index - 1, "dot")),
        (REFUSED, "long", lambda: OPS.pair_values(*problem[:2], index, none, "dot")),
        (REFUSED, "rows", lambda: OPS.pair_values(*problem[:2], index.int(), index, "dot")),
        (REFUSED, "similarity", lambda: OPS.pair_values(*problem[:2], index, index, "cosine")),
        (REFUSED, "d must", lambda: OPS.pair_values_backward(d[1:], *problem[:2], index, index, "dot", True, True)),
        (IndexError, "rows", lambda: OPS.pair_values_backward(d, *problem[:2], index + 4, index, "dot", True, True)),
    ]  # fmt: skip
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("self_pairs", [False, True])
def test_opcheck(self_pairs):
    problem = make(5, 6, 3, self_pairs=self_pairs, window=True)
    leaves = [t.requires_grad_() if t is not None else None for t in problem[:2]]
    constant = problem._replace(x=leaves[0].detach(), ref=None if self_pairs else leaves[1].detach())
    edges, offsets = make_edges(problem)
    listed_at = selections.listed(constant)[0]
    index = torch.tensor([0, 3, 3])
    for name, arguments in {
        "pair_top_k": (*constant, 2, 4, 4),
        "pair_count": (*constant, 4, 4),
        "pair_list": (*constant, listed_at, int(listed_at[-1]), 256, 512),
        "pair_sample": (*constant, 3, 1, "exponential", 1.0, 0.0, 1.0, 4, 4),
        "pair_bins": (*problem, edges, offsets, 4, 4),
        "pair_bins_backward": (*constant, edges, offsets, torch.ones(len(edges) + 5).double(), 4, 4, True, True),
        "pair_values": (*leaves, index, index, "euclidean"),
        "pair_values_backward": (torch.ones(3).double(), *constant[:2], index, index, "dot", True, True),
    }.items():
        # opcheck's comparison of gradients adds up all outputs, in the dtype of the first, which is a count here.
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if name != "pair_bins":
            checks.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=checks)


def test_compiles():
    problem = make(9, 11, 4, ids=True)
    edges, offsets = make_edges(problem)
    rows, columns = torch.tensor([0, 3, 3]), torch.tensor([5, 1, 1])

    def function(x, ref):
        changed = problem._replace(x=x, ref=ref)
        values, indices = selections.top_k(changed, 3)
        drawn = selections.sample(changed, 2, 5, "exponential", 1.0, 0.0, 1.0)
        total = selections.binned(changed, edges, offsets)[1]
        return (
            total.square().sum() + selections.values(x, ref, rows, columns, "euclidean").sum(),
            values,
            indices,
            drawn,
        )

    results = []
    for run in (function, torch.compile(function, fullgraph=True)):
        x, ref = (t.detach().clone().requires_grad_() for t in problem[:2])
        loss, *rest = run(x, ref)
        results.append([loss.detach(), *rest, *torch.autograd.grad(loss, (x, ref))])
    assert_equal(*results)
