"""Sampled classes in the C++ kernels, at the level of the op, against the kernels on the gathered rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperkernels.kernels.margin_softmax.rows import rows_of_classes
from tests.support import REFUSED
from tests.support.margin_softmax_cases import backward_arguments, op_arguments
from tests.support.margin_softmax_kernel_cases import PARAMETERS, by_kernel, by_reference, kernel_backward, make
from tests.support.sampled_classes_cases import FLOAT64, C, R, sample, sampled_problem, spread


def in_larger_weight(case, count):
    """The same case with the rows of its weight among others, which hold NaN."""
    classes = sample(count, len(case.weight) // case.options.sub_centers)
    larger = case.to(case.x.dtype)
    larger.weight = spread(case.weight, classes, count, case.options.sub_centers).detach()
    larger.classes = classes
    return larger, classes


def assert_equal_to_rounding(found, wanted, dtype):
    """Up to the order of the products' sums, which may depend on where an operand lies in memory."""
    close = 8 * torch.finfo(dtype).eps
    for mine, right in zip(found, wanted, strict=True):
        size = right[right.isfinite()].abs().sum().item() if right.is_floating_point() else 0
        torch.testing.assert_close(mine, right, rtol=close, atol=close * size)


@settings(max_examples=60, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {
            "kind": st.sampled_from(list(PARAMETERS)),
            "n": st.sampled_from([0, 1, 12, 300]),
            "c": st.sampled_from([1, 9, 140]),
            "d": st.sampled_from([3, 33]),
            "sub_centers": st.integers(1, 3),
            "class_scale": st.booleans(),
            "bias": st.booleans(),
            "normalize_weight": st.booleans(),
            "ignored": st.sampled_from([0, 1]),
            "absent": st.sampled_from([0, 2]),
            "dtype": st.sampled_from([FLOAT64, torch.float32, torch.bfloat16, torch.float16]),
        }
    ),
    more=st.sampled_from([0, 1, 100]),
    seed=st.integers(0, 2**31),
    block=st.sampled_from([1, 7, 200]),
    kept=st.sampled_from([0, 1, 99]),
)
def test_the_kernels_equal_those_on_the_gathered_rows(options, more, seed, block, kept):
    torch.manual_seed(seed)
    case = make(**options)
    larger, classes = in_larger_weight(case, options["c"] + more)
    (values, grads), (right, right_grads) = by_kernel(larger, block, kept), by_kernel(case, block, kept)
    rows = rows_of_classes(classes, options["sub_centers"])
    grads[1] = grads[1].to_dense()[rows]
    assert_equal_to_rounding(values + grads, right + right_grads, options["dtype"])
    if options["dtype"] == FLOAT64:
        by_formula = by_reference(larger)
        by_formula[1][1] = by_formula[1][1].to_dense()[rows]
        for mine, other in zip(values + grads, by_formula[0] + by_formula[1], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)
    if case.x.numel() > 0 and case.options.negatives in ("cosine", "quadratic"):
        skip = (torch.rand(len(case.x), -(-options["c"] // block)) > 0.5).to(torch.uint8)
        found, wanted = (kernel_backward(c, block, kept, skip) for c in (larger, case))
        assert_equal_to_rounding(found, wanted, options["dtype"])


def test_opcheck():
    (x, weight, _), (_, _, place), classes = sampled_problem(n=6, sub_centers=2, dtype=torch.float32, ignored=1)
    weight = torch.where(weight.isnan(), 1.0, weight.detach()).requires_grad_()
    arguments = op_arguments(x, weight, place, 8.0, 16, 2, sub_centers=2, classes=classes)
    # Its functions that trace the gradient compare it elementwise, which sparse tensors do not do.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.hyperkernels.class_statistics.default, arguments, test_utils=checks)
    detached = tuple(v.detach() if isinstance(v, torch.Tensor) else v for v in arguments)
    out = torch.ops.hyperkernels.class_statistics(*detached)
    incoming = [torch.randn(6) for _ in range(4)]
    backward = backward_arguments(detached, out, incoming)
    torch.library.opcheck(torch.ops.hyperkernels.class_statistics_backward.default, backward)


def test_errors_of_the_op():
    (x, weight, _), (_, _, place), classes = sampled_problem()

    def call(classes, place=place):
        return torch.ops.hyperkernels.class_statistics(*op_arguments(x, weight, place, 8.0, 16, 0, classes=classes))

    call(classes)
    for wrong, error in (
        (classes.int(), REFUSED),
        (classes[:0], REFUSED),
        (classes[None], REFUSED),
        (classes.flip(0), REFUSED),
        (classes + C, IndexError),
        (classes - C, IndexError),
    ):
        with pytest.raises(error, match="classes"):
            call(wrong)
    with pytest.raises(IndexError, match="target"):
        call(classes, torch.where(place > 0, R, place))
