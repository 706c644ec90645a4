"""The C++ kernels of the bins and of the similarities of listed pairs, and their gradients, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import reference, selections
from hyperkernels.kernels.pair_mining.op import Tile
from tests.support import assert_passes_at, need_cpp_kernels
from tests.support.accuracy import assert_as_accurate
from tests.support.pair_selection_kernel_cases import (
    CASES,
    SEEDS,
    SIMILARITIES,
    TILES,
    assert_equal,
    check_rows_that_are_not_finite,
    everything,
    make,
    make_edges,
    to,
)

need_cpp_kernels()


@settings(max_examples=150, deadline=None)
@given(options=CASES, seed=SEEDS, tile=TILES)
def test_bins_and_their_gradient(options, seed, tile):
    torch.manual_seed(seed)
    problem = make(**options)
    edges = make_edges(problem, whole=options["whole"])
    leaves = [t.requires_grad_() for t in problem[:2] if t is not None]
    ours, truth = selections.binned(problem, *edges, tile), reference.binned(problem, *edges)
    assert_equal([t.detach() for t in ours], [t.detach() for t in truth], options)
    if ours[1].numel() > 0 and truth[1].requires_grad:
        weight = torch.randn_like(ours[1])
        assert_equal(
            torch.autograd.grad((ours[1] * weight).sum(), leaves),
            torch.autograd.grad((truth[1] * weight).sum(), leaves, materialize_grads=True),
            options,
        )


@settings(max_examples=100, deadline=None)
@given(
    n=st.sampled_from([1, 2, 40]), d=st.sampled_from([0, 1, 17, 1500]), similarity=st.sampled_from(SIMILARITIES),
    self_pairs=st.booleans(), count=st.sampled_from([0, 1, 300]), seed=SEEDS,
)  # fmt: skip
def test_values_and_their_gradient(n, d, similarity, self_pairs, count, seed):
    torch.manual_seed(seed)
    problem = make(n=n, m=9, d=d, self_pairs=self_pairs)
    leaves = [t.requires_grad_() for t in problem[:2] if t is not None]
    rows, columns = torch.randint(0, n, (count,)), torch.randint(0, n if self_pairs else 9, (count,))
    ours = selections.values(*problem[:2], rows, columns, similarity)
    truth = reference.listed_similarities(*problem[:2], rows, columns, similarity)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for mine, right in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((truth * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("self_pairs", [False, True])
def test_gradcheck(similarity, self_pairs):
    problem = make(n=5, m=4, d=3, similarity=similarity, self_pairs=self_pairs, ids=True)
    leaves = [t.requires_grad_() for t in problem[:2] if t is not None]
    edges = make_edges(problem)
    columns = torch.tensor([1, 0, 3, 2, 1])
    assert torch.autograd.gradcheck(lambda *_: selections.binned(problem, *edges, Tile(2, 3))[1], leaves)
    assert torch.autograd.gradcheck(
        lambda *_: selections.values(*problem[:2], torch.arange(5), columns, similarity), leaves
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_bits_for_any_threads(dtype, similarity):
    problem = make(70, 3000, 65, similarity=similarity, dtype=dtype, window=True)
    edges, threads, results = make_edges(problem), torch.get_num_threads(), []
    leaves = [t.requires_grad_() for t in problem[:2]]
    rows, columns = torch.randint(0, 70, (999,)), torch.randint(0, 3000, (999,))
    weight = torch.randn(len(edges[0]) + 70).to(edges[0].dtype)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            total = selections.binned(problem, *edges, Tile(32, 128))[1]
            values = selections.values(*problem[:2], rows, columns, similarity)
            results.append(
                [
                    *everything(problem, Tile(32, 128)), total.detach(), values.detach(),
                    *torch.autograd.grad((total * weight).sum(), leaves), *torch.autograd.grad(values.sum(), leaves),
                ]
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_equal([t.detach() for t in results[0]], [t.detach() for t in other])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("self_pairs", [False, True])
def test_accuracy(dtype, similarity, self_pairs):
    """Gradients of sums; where two passes of rounding could put a pair into another bin there are no edges."""
    problem = make(90, 200, 130, similarity=similarity, self_pairs=self_pairs, dtype=dtype, ids=self_pairs, classes=9)
    if self_pairs:
        problem = problem._replace(id=torch.arange(90, dtype=torch.int32), ref_id=torch.arange(90, dtype=torch.int32))
    edges = torch.empty(0, dtype=accumulate_dtype(dtype)), torch.zeros(91, dtype=torch.int64)
    rows, columns = torch.randint(0, 90, (999,)), torch.randint(0, 90, (999,))
    weights = torch.randn(90, dtype=torch.float64), torch.randn(999, dtype=torch.float64)

    def results(problem, binned, values):
        problem = problem._replace(x=problem.x.detach(), ref=None if problem.ref is None else problem.ref.detach())
        leaves = [t.requires_grad_() for t in problem[:2] if t is not None]
        number = accumulate_dtype(problem.x.dtype)
        total = binned(problem, edges[0].to(number), edges[1])[1]
        value = values(*problem[:2], rows, columns, similarity)
        first = torch.autograd.grad((total * weights[0].to(number)).sum(), leaves)
        return [total, value, *first, *torch.autograd.grad((value * weights[1].to(number)).sum(), leaves)]

    truth = results(to(problem, torch.float64), reference.binned, reference.listed_similarities)
    peer = results(problem, reference.binned, reference.listed_similarities)
    ours = results(problem, lambda *a: selections.binned(*a, Tile(32, 64)), selections.values)
    for mine, other, right in zip(ours, peer, truth, strict=True):
        assert_as_accurate(mine.detach(), other.detach(), right.detach())


def test_distances_of_nan():
    problem = make(20, 150, 4, similarity="squared_euclidean", whole=True)
    problem.x[3, 1], problem.ref[5, 0], problem.ref[77, 2] = torch.nan, torch.nan, torch.nan
    values, indices = selections.top_k(problem, 40)
    distances = selections.top_k(problem._replace(similarity="euclidean"), 40)
    assert values.isnan().any()
    torch.testing.assert_close(distances[0], -(-values).sqrt(), equal_nan=True)
    assert torch.equal(distances[1], indices)
    rows = torch.arange(20)
    assert selections.values(*problem[:2], rows, rows, "euclidean").isnan().nonzero().flatten().tolist() == [3, 5]


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets(capability):
    assert_passes_at(capability, __file__, "accuracy or equal_bits or nan")


@pytest.mark.parametrize("self_pairs", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_bin_gradients_of_rows_that_are_not_finite(poison, similarity, self_pairs):
    """A row that no pair counts with may hold anything; what is paired with it gets what the formula gives."""
    problem = make(n=20, m=30, select="negative", similarity=similarity, self_pairs=self_pairs)
    check_rows_that_are_not_finite(problem, make_edges(problem), poison, torch.ops.hyperkernels.pair_bins_backward)
