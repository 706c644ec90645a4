"""The C++ kernels of class_statistics, at the level of the op, against the reference and its autograd in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperkernels.kernels.margin_softmax import reference, statistics
from hyperkernels.kernels.margin_softmax.negatives import SUMS, Negatives
from hyperkernels.kernels.margin_softmax.problem import ClassRowStatistics
from hyperkernels.kernels.margin_softmax.rows import unit_rows
from tests.support import REFUSED, assert_passes_at, need_cpp_kernels
from tests.support.accuracy import assert_as_accurate
from tests.support.margin_softmax_kernel_cases import (
    PARAMETERS,
    by_kernel,
    by_reference,
    gradients_of,
    kernel_backward,
    make,
)

need_cpp_kernels()

NAMES = (*ClassRowStatistics._fields, "dx", "dweight", "dscale or later", "later", "later")
HALVES = (torch.bfloat16, torch.float16)

CASES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(PARAMETERS)),
        "n": st.sampled_from([0, 1, 5, 12, 300]),
        "c": st.sampled_from([1, 2, 9, 30, 140]),
        "d": st.sampled_from([3, 16, 33]),
        "sub_centers": st.integers(1, 4),
        "class_scale": st.booleans(),
        "bias": st.booleans(),
        "normalize_x": st.booleans(),
        "normalize_weight": st.booleans(),
        "ignored": st.sampled_from([0, 1, 2]),
        "absent": st.sampled_from([0, 2]),
    }
)


def assert_same(ours, truth, rtol=1e-9, atol=1e-10):
    for name, mine, right in zip(NAMES, ours[0] + ours[1], truth[0] + truth[1], strict=False):
        torch.testing.assert_close(mine, right.to(mine.dtype), rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=150, deadline=None)
@given(
    options=CASES, seed=st.integers(0, 2**31), block=st.sampled_from([1, 7, 50, 200]), kept=st.sampled_from([0, 1, 99])
)
def test_float64_equals_the_reference_and_its_gradient(options, seed, block, kept):
    torch.manual_seed(seed)
    case = make(**options)
    assert_same(by_kernel(case, block, kept), by_reference(case))


@pytest.mark.parametrize("straight", [0.0, 1.0])
@pytest.mark.parametrize("power", [1.0, 2.0, 5.0, 8.0])
def test_parameters_of_the_kinds(straight, power):
    for kind, parameters in (
        ("sphereface2", {"straight": straight, "power": power}),
        ("angle", {"straight": straight, "divisor": power}),
    ):
        case = make(kind=kind, bias=True, parameters=parameters)
        assert_same(by_kernel(case), by_reference(case))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cosines_beyond_one(dtype):
    """Unnormalised rows have inner products outside [-1, 1], where acos has none."""
    for kind in PARAMETERS:
        case = make(kind=kind, normalize_x=False, normalize_weight=False, near=2.0, scale=1.0, dtype=dtype)
        rtol = 1e-9 if dtype == torch.float64 else 2e-4
        assert_same(by_kernel(case), by_reference(case.to(torch.float64)), rtol, rtol)


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("sub_centers", [1, 3])
def test_gradcheck(kind, sub_centers):
    if kind in ("quadratic", "gaussian", "sface"):
        pytest.skip("holds a factor constant")
    case = make(n=4, c=9, d=5, kind=kind, sub_centers=sub_centers, class_scale=True, bias=True, ignored=1, absent=1)
    leaves = [t.requires_grad_() for t in (case.x, case.weight, case.class_scale, case.bias) if t is not None]
    if kind not in SUMS:
        leaves.append(case.scale.requires_grad_())

    def function(*_):
        out = torch.ops.hyperkernels.class_statistics(
            case.x, case.weight, case.target, case.scale, case.class_scale, case.bias, case.negatives.parameters,
            None, *case.options, 4, 1, 0.0, None,
        )  # fmt: skip
        return out[0][1:], out[1], out[2], out[5]

    assert torch.autograd.gradcheck(function, leaves, atol=1e-6)


@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_accuracy(dtype, kind, sub_centers):
    """The peer is the reference in the same dtype. In 16 bits it widens its operands, so that what is granted to the
    gradients here is one rounding on the way to the products beside that of the result."""
    case = make(
        n=300, c=600, d=130, kind=kind, sub_centers=sub_centers, class_scale=True, bias=True, ignored=1, absent=2,
        scale=16.0, normalize_x=sub_centers == 1, normalize_weight=sub_centers == 1, dtype=dtype,
    )  # fmt: skip
    values, gradients = by_kernel(case, 64, 1)
    truth_values, truth_gradients = by_reference(case.to(torch.float64))
    peer_values, peer_gradients = by_reference(case)
    same = values[4] == truth_values[4]
    assert same.float().mean() > 0.98, "hardest_class"
    for i, name in enumerate(ClassRowStatistics._fields):
        if values[i].is_floating_point():
            assert_as_accurate(values[i], peer_values[i], truth_values[i], what=name)
    for mine, peer, truth in zip(gradients, peer_gradients, truth_gradients, strict=True):
        assert_as_accurate(mine, peer, truth)


@pytest.mark.parametrize("sizes", [(65, 77, 1041), (8, 33, 1), (257, 31, 515)])
@pytest.mark.parametrize("dtype", HALVES)
def test_odd_sizes(dtype, sizes):
    """Sizes that fill no register, no pair and more than one pass over the embedding."""
    n, c, d = sizes
    case = make(n=n, c=c, d=d, dtype=dtype, scale=4.0)
    for mine, right in zip(
        itertools.chain(*by_kernel(case, 40, 1)), itertools.chain(*by_reference(case.to(torch.float64))), strict=True
    ):
        if mine.is_floating_point():
            assert (mine - right).norm() <= torch.finfo(dtype).eps * max(1, right.norm())


def skipped_truth(case, skip, block):
    """The gradient with the negatives of skipped (row, tile) pairs left out, by the reference, a tile at a time.

    The cosines are the leaves: they are their own inner products with unit vectors.
    """
    options, classes = case.options, case.weight.shape[0] // case.options.sub_centers
    x, weight = case.x.detach().requires_grad_(), case.weight.detach().requires_grad_()
    unit, norm = unit_rows(torch.where((case.target != -100)[:, None], x, 0), options.eps)
    w_hat = unit_rows(weight, options.eps)[0] if options.normalize_weight else weight
    cos = (unit if options.normalize_x else x) @ w_hat.T
    slope = torch.zeros_like(cos)
    per_class = [torch.zeros(classes, dtype=torch.float64) for _ in range(2)]
    for b in range(skip.shape[1]):
        leaves = [cos.detach().requires_grad_(), case.class_scale, case.bias]
        leaves = [None if leaf is None else leaf.detach().requires_grad_() for leaf in leaves]
        constants = options._replace(normalize_x=False, normalize_weight=False)
        statistics = reference.class_statistics(
            leaves[0], torch.eye(cos.shape[1], dtype=cos.dtype), case.target, case.scale, *leaves[1:],
            case.negatives.parameters, None, *constants,
        )  # fmt: skip
        live = (skip[:, b] == 0).double()
        masked = case.to(torch.float64)
        masked.gradients = [case.gradients[0] * live, case.gradients[1], 0 * live, case.gradients[3] * live]
        found = gradients_of(masked, statistics, [leaf for leaf in leaves if leaf is not None])
        tile = slice(b * block, (b + 1) * block)
        columns = slice(b * block * options.sub_centers, (b + 1) * block * options.sub_centers)
        slope[:, columns] = found[0][:, columns]
        for k, leaf in enumerate(leaves[1:]):
            if leaf is not None:
                per_class[k][tile] = found[1 + sum(other is not None for other in leaves[1 : 1 + k])][tile]
    active = case.target != options.ignore_index
    loss = (cos * slope).sum() + torch.where(active, norm * case.gradients[2], 0).sum()
    return [*torch.autograd.grad(loss, (x, weight)), *per_class]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    options=CASES.filter(lambda o: o["kind"] not in SUMS and o["n"] > 0 and o["c"] > 1),
    seed=st.integers(0, 2**31),
    block=st.sampled_from([1, 7, 50]),
    kept=st.sampled_from([0, 1, 99]),
    density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_skipped_tiles(options, seed, block, kept, density):
    torch.manual_seed(seed)
    case = make(**options)
    skip = (torch.rand(len(case.x), -(-options["c"] // block)) > density).to(torch.uint8)
    skip[:, torch.rand(skip.shape[1]) < 0.3] = 0  # whole tiles, which may be kept
    found = kernel_backward(case, block, kept, skip)
    for mine, right in zip(found, skipped_truth(case, skip, block), strict=True):
        if mine.numel() > 0:
            torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_skipped_tiles_in_lower_precision(dtype):
    case = make(n=300, c=400, d=66, sub_centers=2, bias=True, ignored=2, absent=2, dtype=dtype)
    skip = (torch.rand(300, 7) > 0.1).to(torch.uint8)
    skip[:, 2], skip[:, 3] = 0, 1
    truth = skipped_truth(case.to(torch.float64), skip, 64)
    for mine, right in zip(kernel_backward(case, 64, 1, skip), truth, strict=True):
        if mine.numel() > 0:
            assert (mine - right).norm() <= 4 * torch.finfo(dtype).eps * right.norm()


@pytest.mark.parametrize("sub_centers", [1, 2])
def test_log_sum_exp_of_tiles(sub_centers):
    case = make(n=12, c=30, sub_centers=sub_centers, bias=True, class_scale=True, ignored=1, absent=1)
    rest = (7, 1, 0.1, None)
    out = torch.ops.hyperkernels.class_statistics(
        case.x, case.weight, case.target, case.scale, case.class_scale, case.bias, None, None, *case.options, *rest
    )
    assert out[13].shape == (12, 5)
    torch.testing.assert_close(out[13][1:].logsumexp(1), out[0][1:], rtol=1e-12, atol=1e-12)


def test_a_budget_bounds_what_is_dropped():
    case = make(n=64, c=500, near=1.0, scale=30.0)
    case.gradients[3].zero_()  # the mass is that of the log-sum-exp alone
    report = torch.zeros(2, dtype=torch.float64)
    dropped = by_kernel(case, 7, 1, 0.01, report)[1][0] - by_kernel(case, 7, 1)[1][0]
    assert 0 < report[0] <= 0.01
    assert report[1] > 0.3
    bound = case.gradients[0].abs().sum() * case.scale.max() * report[0] / case.x.norm(dim=1).min()
    assert 0 < dropped.norm(dim=1).sum() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("skipping", [False, True])
def test_equal_bits_for_any_threads_and_workspace(dtype, skipping):
    case = make(n=300, c=700, d=64, sub_centers=2, class_scale=True, ignored=1, dtype=dtype)
    skip = torch.empty(0, dtype=torch.uint8)
    if skipping:
        skip = (torch.rand(300, 11) > 0.5).to(torch.uint8)
        skip[:, :4] = 0
    threads, results = torch.get_num_threads(), []
    try:
        for count, kept in ((1, 0), (2, 0), (1, 99), (2, 3)):
            torch.set_num_threads(count)
            results.append(by_kernel(case, 64, kept)[0] + list(kernel_backward(case, 64, kept, skip)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_every_element_is_written(dtype):
    for n, skipping in ((9, False), (9, True), (0, False)):
        case = make(n=n, c=11, d=7, sub_centers=3, bias=True, class_scale=True, dtype=dtype)
        values, gradients = by_kernel(case, 4, 1)
        skip = torch.tensor([[0, 1, 1]] * n, dtype=torch.uint8) if skipping else torch.empty(0, dtype=torch.uint8)
        for tensor in (*values, *gradients, *kernel_backward(case, 4, 1, skip)):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_rows_that_are_not_finite(dtype, poison):
    """An ignored row may hold anything; another spoils its own statistics alone."""
    case = make(n=6, c=20, d=8, ignored=1, dtype=dtype)
    clean = by_kernel(case)
    case.x[0] = poison
    values, gradients = by_kernel(case)
    for a, b in zip(clean[0] + clean[1], values + gradients, strict=True):
        assert torch.equal(a, b)
    case.x[3] = poison
    values = by_kernel(case)[0]
    assert values[0][3].isnan()
    others = torch.tensor([0, 1, 2, 4, 5])
    for a, b in zip(clean[0], values, strict=True):
        assert torch.equal(a[others], b[others])


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets(capability):
    assert_passes_at(capability, __file__, "test_accuracy or lower_precision or equal_bits")


def test_the_lowest_instruction_set():
    assert_passes_at("baseline", __file__, "equal_bits")


def test_errors():
    case = make(n=4, c=9)
    ops = torch.ops.hyperkernels
    arguments = [case.x, case.weight, case.target, case.scale, *[None] * 4, *case.options, 4, 1, 0.0, None]

    def call(**changes):
        changed = list(arguments)
        for name, value in changes.items():
            changed[int(name[1:])] = value
        return ops.class_statistics(*changed)

    with pytest.raises(IndexError, match="is 9"):
        call(_2=torch.full((4,), 9))
    with pytest.raises(REFUSED, match="class_scale"):
        call(_4=case.scale.new_ones(9), _8="uniface")
    with pytest.raises(REFUSED, match="parameters"):
        call(_8="angle")
    with pytest.raises(REFUSED, match="unknown kind"):
        call(_8="other")
    with pytest.raises(REFUSED, match="scale"):
        call(_3=case.scale[:3])
    with pytest.raises(REFUSED, match="bias"):
        call(_5=torch.ones(9))
    with pytest.raises(REFUSED, match="sub_centers"):
        call(_9=2)
    with pytest.raises(REFUSED, match="skip"):
        call(_8="uniface", _17=0.1)
    for wrong in ("x_norm", "target_center", "top", "w_norm", "kept", "skip"):
        with pytest.raises(REFUSED, match="must"):
            kernel_backward(case, 4, 1, torch.empty(0, dtype=torch.uint8), wrong=wrong)


def test_the_op_plans_its_tiles():
    case = make(n=20, c=50, d=8, dtype=torch.bfloat16)
    problem = (case.x, case.weight, case.target, case.scale, None, None, Negatives("cosine", None), None, case.options)
    found = statistics.class_statistics(*problem, None, 0.0, None)
    torch.testing.assert_close(found.neg_lse, by_kernel(case, 50, 0)[0][0])
