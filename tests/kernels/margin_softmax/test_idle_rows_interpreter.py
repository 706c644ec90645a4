"""Rows that no gradient reaches, and problems without a class, in the Triton kernels of the class softmax."""

import pytest
import torch

from .test_interpreter import IGNORED, Problem, check, pytestmark

pytestmark = [pytest.mark.interpreter, *pytestmark]


@pytest.mark.parametrize(
    ("kind", "dtype", "sub_centers"),
    [
        ("cosine", torch.float32, 2),
        pytest.param("quadratic", torch.float64, 1, marks=pytest.mark.slow),
        pytest.param("sphereface2", torch.float32, 1, marks=pytest.mark.slow),
        ("cosine", torch.float16, 1),
    ],
)
def test_a_row_into_which_nothing_flows_contributes_nothing(kind, dtype, sub_centers):
    """Whatever it holds; the other gradients are those of a problem in which it is ignored, bit by bit."""
    problem = Problem(9, 50, 20, dtype, kind, per_class=dtype != torch.float16, sub_centers=sub_centers)
    leaves = [t for t in (problem.x, problem.weight, problem.class_scale, problem.bias) if t is not None]
    left_out = [4, 6, 8]
    for incoming in problem.incoming:
        incoming[left_out] = 0
    kept = problem.target.clone()
    problem.target[left_out] = IGNORED
    expected = problem.gradients(problem.kernels(), leaves)
    problem.target = kept
    with torch.no_grad():
        problem.x[4], problem.x[6, 0], problem.scale[8] = torch.nan, torch.inf, torch.nan
        if problem.transform is not None:
            problem.transform[8] = torch.nan
    gradients = problem.gradients(problem.kernels(), leaves)
    assert (gradients[0][left_out] == 0).all()
    for mine, right in zip(gradients, expected, strict=True):
        assert right.abs().sum() > 0
        assert torch.equal(mine, right)


def test_a_row_that_only_its_length_reaches():
    problem = Problem(5, 40, 12, special=False)
    for statistic in (0, 1, 3):
        problem.incoming[statistic][2] = 0
    check(problem)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_classes_are_refused(rows):
    problem = Problem(3, 5, 8, special=False)
    problem.weight, problem.target = problem.weight.detach()[:0], problem.target[:rows]
    problem.x, problem.scale = problem.x.detach()[:rows], problem.scale.detach()[:rows]
    with pytest.raises(ValueError, match="weight must have at least one row"):
        problem.kernels()
