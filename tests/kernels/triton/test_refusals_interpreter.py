"""What the Triton ops refuse, and what they write, where they are called past the checks of the package's functions."""

import pytest
import torch

import hyperkernels  # noqa: F401  declares the ops
from tests.fuzz.case import make

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]


def valid(name, wanted=lambda arguments: True):
    """Arguments that the op takes."""
    for seed in range(1000):
        arguments = make(name, seed, "valid").arguments
        if wanted(arguments):
            return arguments
    raise AssertionError(f"no such call of {name}")


NEGATIVES = "negatives must be one of .*; got 'x'"
EMPTY = "must be 2 tensors, one for each of points; got 0"


@pytest.mark.parametrize(
    ("op", "changes", "error", "message"),
    [
        ("pair_statistics_triton", {"label": None}, TypeError, "label must be a tensor; got None"),
        ("sphere_residual_triton", {"block": None}, TypeError, "block must be a tensor; got None"),
        ("class_statistics_triton", {"negatives": "x"}, ValueError, NEGATIVES),
        ("class_statistics_backward_triton", {"negatives": "x"}, ValueError, NEGATIVES),
        ("sphere_sgd__triton", {"steps": []}, ValueError, f"steps {EMPTY}"),
        ("sphere_adam__triton", {"exp_avgs": []}, ValueError, f"exp_avgs {EMPTY}"),
    ],
)
def test_refused_by_name(op, changes, error, message):
    arguments = valid(op, lambda a: len(a.get("points", (1, 2))) == 2)
    with pytest.raises(error, match=message):
        getattr(torch.ops.hyperkernels, op)(**arguments | changes)


def test_the_norms_of_a_weight_that_is_taken_as_it_is():
    arguments = valid("class_statistics_triton", lambda a: not a["normalize_weight"] and a["classes"] is None)
    *_, w_norm, _, _ = torch.ops.hyperkernels.class_statistics_triton(**arguments)
    torch.testing.assert_close(w_norm.double(), arguments["weight"].double().norm(dim=1), rtol=1e-5, atol=0)
