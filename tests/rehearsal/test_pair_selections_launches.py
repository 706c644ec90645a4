"""Every launch of the ops that return pairs."""

import pytest
import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining.problem import PairProblem
from tests.support import pair_selection_cases as cases
from tests.support.launchers import launchers

from . import pretend_driver

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1, 1), (33, 129, 100), (3, 5, 0), (0, 3, 2), (3, 0, 2)]

pytestmark = pytest.mark.rehearsal


def top_k(problem):
    for k in (0, 1, 100):
        cases.op("pair_top_k")(*problem, k, *cases.TILE)


def lists(problem):
    cases.op("pair_count")(*problem, *cases.TILE)
    for total in (0, 1, 7):
        cases.op("pair_list")(*problem, torch.arange(len(problem.x) + 1).clamp_max(total), total, *cases.TILE)


def draws(problem):
    for count, seed, weights in ((0, 0, "distance"), (1, 1, "exponential"), (5, 2**63 - 1, "distance")):
        cases.op("pair_sample")(*problem, count, seed, weights, 3.0, 0.5, 1.0, *cases.TILE)


def bins(problem):
    rows, dtype = len(problem.x), accumulate_dtype(problem.x.dtype)
    for each in (0, 1):
        edges, offsets = torch.zeros(rows * each, dtype=dtype), torch.arange(rows + 1) * each
        sums = torch.ones(rows * (each + 1), dtype=dtype)
        cases.op("pair_bins")(*problem, edges, offsets, *cases.TILE)
        cases.op("pair_bins_backward")(*problem, edges, offsets, sums, *cases.TILE, True, True)


def values(problem):
    rows, columns = torch.zeros(2, 1 if len(problem.x) else 0, dtype=torch.int64)
    given = (problem.x, problem.ref, rows, columns, problem.similarity)
    cases.op("pair_values")(*given)
    cases.op("pair_values_backward")(torch.ones(len(rows), dtype=accumulate_dtype(problem.x.dtype)), *given, True, True)


@pytest.mark.parametrize("run", [top_k, lists, draws, bins, values])
@pytest.mark.parametrize("turn", range(len(DTYPES)), ids=lambda turn: str(DTYPES[turn]))
def test_every_op(run, turn):
    """Options take turns with the dtypes."""
    similarity, own = ("euclidean", "dot", "squared_euclidean", "dot")[turn], turn == 1
    labels, select = ("codes", "bits", "sorted", "none")[turn], ("negative", "positive", "negative", "all")[turn]
    for n, m, d in SHAPES:
        if own or (run is not values) or m:
            run(cases.make(n, m, d, DTYPES[turn], select, similarity, labels, turn % 2 == 0, m > 5, own=own))


def test_more_than_2_to_the_31_pairs():
    """By the launchers themselves: on tensors without memory the ops would launch nothing."""
    x = torch.ones(100_000, 64, dtype=torch.bfloat16, device="meta")
    label, none = (
        torch.zeros(len(x), dtype=torch.int32, device="meta"),
        torch.zeros(0, dtype=torch.int32, device="meta"),
    )
    problem = PairProblem(x, None, label, label, none, none, None, None, "negative", "dot")
    before = pretend_driver.stub.stub_launches()
    launchers.pair_top_k(*problem, 1, *cases.TILE)
    launchers.pair_count(*problem, *cases.TILE)
    launchers.pair_sample(*problem, 1, 1, "exponential", 3.0, 0.5, 1.0, *cases.TILE)
    assert pretend_driver.stub.stub_launches() > before + 2
