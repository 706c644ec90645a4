"""FastAP against its paper's formula, in float64 over the full matrix."""

import functools

import pytest
import torch

from hyperkernels import _backend, losses
from tests.support.accuracy import assert_as_accurate

from . import formulas_margins as formulas
from .cases import PROBLEMS, agree, by_formula, problem, reads_nothing, value_and_gradients, with_duplicates


def formula(bins):
    return functools.partial(by_formula, lambda *a: formulas.fast_ap(*a, bins), "squared_euclidean")


@pytest.mark.parametrize("bins", [1, 3, 10, 40])
@pytest.mark.parametrize("pairs", PROBLEMS)
def test_value_and_gradients(pairs, bins):
    given = problem(pairs)
    ours = functools.partial(losses.fast_ap, num_bins=bins)
    agree(value_and_gradients(ours, given), value_and_gradients(formula(bins), given))


def test_duplicates_and_opposites():
    """Distances at both ends of the histogram, where its derivative has a kink and only the value is compared."""
    given = with_duplicates()
    given["x"] = torch.cat([given["x"], -given["x"][:3]])
    given["labels"] = torch.cat([given["labels"], torch.tensor([0, 1, 2])])
    found = value_and_gradients(losses.fast_ap, given)
    agree(found[:1], value_and_gradients(formula(10), given)[:1])
    assert found[1].isfinite().all()


def test_reductions():
    given = problem("self")
    rows, total, mean = (losses.fast_ap(**given, reduction=r) for r in ("none", "sum", "mean"))
    pos, _ = formulas.masks(given["labels"])
    assert rows.shape == (15,) and (rows[~pos.any(1)] == 0).all() and (rows >= 0).all() and (rows <= 1).all()
    torch.testing.assert_close(rows.sum(), total)
    torch.testing.assert_close(total / pos.any(1).sum(), mean)


def test_a_perfect_ranking_costs_nothing():
    x = torch.eye(4, dtype=torch.float64).repeat_interleave(3, 0)
    torch.testing.assert_close(losses.fast_ap(x, torch.arange(12) // 3), torch.zeros((), dtype=torch.float64))


def test_gradcheck():
    torch.manual_seed(1)
    given = problem("ref")
    leaves = [given.pop(k).requires_grad_() for k in ("x", "ref")]
    assert torch.autograd.gradcheck(lambda x, ref: losses.fast_ap(x, ref=ref, **given), leaves, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(dtype):
    given = problem("ref", dtype)
    found = value_and_gradients(losses.fast_ap, given)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    truth = value_and_gradients(
        formula(10), {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    )  # fmt: skip
    if dtype == torch.float32:
        for mine, theirs, right in zip(found, value_and_gradients(formula(10), given), truth, strict=True):
            scale = max(float(t.norm()) for t in truth)
            assert_as_accurate(mine, theirs, right, factor=3.0, magnitude=4 * scale)
    else:
        torch.testing.assert_close(found[0].double(), truth[0], rtol=0.02, atol=0.005)
        assert all(v.isfinite().all() for v in found)


@pytest.mark.skipif(
    _backend.select("pair_mining", torch.device("cpu")) == "reference",
    reason="the reference reads the offsets of its bins",
)
def test_nothing_is_read_on_the_host():
    reads_nothing(losses.fast_ap)


def test_nan_reaches_the_loss():
    given = problem("self")
    given["x"][3, 2] = torch.nan
    assert losses.fast_ap(**given).isnan()


def test_arguments():
    given = problem("self", torch.float32)
    for wrong, error, word in (
        ({"num_bins": 0}, ValueError, "num_bins"),
        ({"num_bins": 2.5}, TypeError, "num_bins"),
        ({"reduction": "max"}, ValueError, "reduction"),
        ({"labels": given["labels"][1:]}, ValueError, "labels"),
    ):
        with pytest.raises(error, match=word):
            losses.fast_ap(**{**given, **wrong})
