"""The C++ kernels of pair_statistics, at the level of the op, against the reference and its autograd in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import op
from hyperkernels.kernels.pair_mining.op import Tile
from hyperkernels.kernels.pair_mining.reference import PairProblem, Transform
from tests.support import assert_passes_at, need_cpp_kernels
from tests.support.accuracy import assert_as_accurate
from tests.support.pair_cases import arguments_of, by_kernel, by_reference, fixed_gradients, make, names

need_cpp_kernels()

HALVES = (torch.bfloat16, torch.float16)
SIZES = st.sampled_from([0, 1, 2, 7, 12, 31, 67])
CASES = {
    "n": SIZES,
    "d": st.sampled_from([1, 3, 16, 33]),
    "label": st.sampled_from(["none", "codes", "ignored", "bits", "huge"]),
    "classes": st.sampled_from([1, 3, 20]),
    "id": st.sampled_from(["none", "rows", "shared"]),
    "window": st.sampled_from(["none", "lower", "upper", "both"]),
    "select": st.sampled_from(["positive", "negative", "all"]),
    "transform": st.sampled_from(["none", "linear", "circle", "softplus"]),
    "scale": st.sampled_from([1.0, 8.0]),
    "signs": st.booleans(),
    "offset": st.booleans(),
    "moments": st.booleans(),
    "extremes": st.booleans(),
    "ordered": st.booleans(),
}
TILES = st.sampled_from([Tile(1, 1), Tile(3, 7), Tile(7, 3), Tile(5, 16), Tile(64, 32), Tile()])


def within_softplus(options):
    """PyTorch's softplus is x itself above 20, which is off by 2e-9: no power gets there."""
    return options | {"scale": 0.25} if options["transform"] == "softplus" else options


def assert_same(case, ours, truth, rtol=1e-9, atol=1e-10):
    for name, mine, right in zip(names(case), ours[0] + ours[1], truth[0] + truth[1], strict=True):
        torch.testing.assert_close(mine, right, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


# A row's own distance is a rounding error of zero, whose gradient is noise: with exact products it is zero itself.
@settings(max_examples=250, deadline=None)
@given(
    options=st.fixed_dictionaries(CASES), seed=st.integers(0, 2**31), tile=TILES, exact=st.booleans(),
    similarity=st.sampled_from(["dot", "euclidean", "squared_euclidean"]),
)  # fmt: skip
def test_x_with_itself(options, seed, tile, exact, similarity):
    torch.manual_seed(seed)
    values = "eighths" if exact or similarity != "dot" else "unit"
    case = make(**within_softplus(options), values=values, similarity=similarity)
    assert_same(case, by_kernel(case, fixed_gradients(seed), tile), by_reference(case, fixed_gradients(seed)))


@settings(max_examples=250, deadline=None)
@given(
    options=st.fixed_dictionaries(CASES), m=SIZES, seed=st.integers(0, 2**31), tile=TILES, columns=st.booleans(),
    exact=st.booleans(), similarity=st.sampled_from(["dot", "euclidean", "squared_euclidean"]),
)  # fmt: skip
def test_x_with_ref(options, m, seed, tile, columns, exact, similarity):
    torch.manual_seed(seed)
    case = make(
        **within_softplus(options), m=m, columns=columns, values="eighths" if exact else "unit", similarity=similarity
    )
    assert_same(case, by_kernel(case, fixed_gradients(seed), tile), by_reference(case, fixed_gradients(seed)))


@pytest.mark.parametrize("sizes", [(700, None), (300, 1100), (1100, 300), (10, 2000), (2000, 10)])
@pytest.mark.parametrize("similarity", ["dot", "squared_euclidean"])
@pytest.mark.parametrize("tile", [Tile(), Tile(8, 5)])
def test_more_than_a_tile(sizes, similarity, tile):
    n, m = sizes
    case = make(
        n=n,
        m=m,
        label="ignored",
        window="both",
        columns=True,
        similarity=similarity,
        select="negative",
        values="eighths",
    )
    ours, truth = by_kernel(case, fixed_gradients(), tile), by_reference(case, fixed_gradients())
    assert_same(case, ours, truth)


@pytest.mark.parametrize("m", [None, 11])
@pytest.mark.parametrize("similarity", ["dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("transform", ["linear", "softplus"])
def test_gradcheck(m, similarity, transform):
    case = make(n=9, m=m, d=5, transform=transform, similarity=similarity, columns=True, signs=True)
    leaves = [case.problem.x] if m is None else [case.problem.x, case.problem.ref]
    leaves += [case.scale, case.offset] if transform == "softplus" else [case.scale]
    if m is not None:
        leaves += [t for t in (case.columns.scale, case.columns.offset) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    at = [k for side in ((0, 10) if m is not None else (0,)) for k in (side + 1, side + 2, side + 7)]

    def function(*_):
        out = torch.ops.hyperkernels.pair_statistics(*arguments_of(case))
        return tuple(out[k] for k in at)

    assert torch.autograd.gradcheck(function, leaves, atol=1e-6)


def test_weighted_mean():
    """d_scale of "linear" has a gradient to x, and refuses one to the scale."""
    case = make(n=9, d=5)
    case.problem.x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *_: torch.ops.hyperkernels.pair_statistics(*arguments_of(case))[8], [case.problem.x], atol=1e-6
    )
    case.scale.requires_grad_()
    with pytest.raises(RuntimeError, match="detach"):
        torch.ops.hyperkernels.pair_statistics(*arguments_of(case))[8].sum().backward()


@pytest.mark.parametrize("m", [None, 500])
@pytest.mark.parametrize("transform", ["linear", "circle", "softplus"])
@pytest.mark.parametrize("similarity", ["dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_accuracy(dtype, similarity, transform, m):
    case = make(
        n=700, m=m, d=130, classes=30, transform=transform, similarity=similarity, columns=True, scale=16.0, dtype=dtype
    )
    gradients = fixed_gradients()
    ours, peer, truth = (
        by_kernel(case, gradients),
        by_reference(case, gradients),
        by_reference(case.to(torch.float64), gradients),
    )
    for name, mine, theirs, right in zip(names(case), *(r[0] + r[1] for r in (ours, peer, truth)), strict=True):
        if mine.is_floating_point():
            assert_as_accurate(mine, theirs, right, what=name)
        else:
            assert (mine == right).float().mean() > 0.98, name


@pytest.mark.parametrize("scale", [1000.0, -1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scale(dtype, scale):
    case = make(n=300, d=16, scale=scale, dtype=dtype)
    gradients = fixed_gradients()
    ours, peer, truth = (
        by_kernel(case, gradients),
        by_reference(case, gradients),
        by_reference(case.to(torch.float64), gradients),
    )
    for name, mine, theirs, right in zip(names(case), *(r[0] + r[1] for r in (ours, peer, truth)), strict=True):
        if mine.is_floating_point():
            factor = 1e3 if dtype == torch.float64 else 2.0  # what a large scale makes of a rounding error of value
            assert_as_accurate(mine, theirs, right, factor=factor, magnitude=factor * right.norm().item(), what=name)


@pytest.mark.parametrize("m", [None, 333])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_indices_and_counts_do_not_depend_on_the_tile(dtype, m):
    case = make(n=300, m=m, d=4, values="eighths", window="both", columns=True, label="ignored", dtype=dtype)
    right = by_reference(case, fixed_gradients())[0]
    for tile in (Tile(), Tile(16, 16), Tile(7, 50), Tile(50, 7), Tile(1, 300)):
        found = by_kernel(case, fixed_gradients(), tile)[0]
        for name, a, b in zip(names(case), found, right, strict=False):
            if not a.is_floating_point() or name.removeprefix("column_") in ("min", "max"):
                assert torch.equal(a, b), name


@pytest.mark.parametrize("sizes", [(600, None), (300, 700), (20, 700), (700, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_equal_bits_for_any_threads(dtype, sizes):
    n, m = sizes
    case = make(n=n, m=m, d=64, window="both", columns=True, similarity="euclidean", dtype=dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values, gradients = by_kernel(case, fixed_gradients(), Tile(32, 64))
            results.append(values + gradients)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, a, b in zip(names(case), results[0], other, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_every_element_is_written(dtype):
    for n, m, d in ((9, None, 7), (9, 11, 7), (40, 3, 7), (0, 5, 7), (5, 0, 7), (0, None, 7), (5, 6, 0), (5, None, 0)):
        for similarity in ("dot", "euclidean"):
            case = make(
                n=n, m=m, d=d, label="ignored", select="negative", columns=True, similarity=similarity, dtype=dtype
            )
            values, gradients = by_kernel(case, fixed_gradients(), Tile(4, 4))
            assert not any(t.isnan().any() for t in values + gradients)
            for name, t in zip(names(case), values, strict=False):
                size = (m if name.startswith("column_") else n) if not name.endswith("d_offset") else 0
                assert t.shape == (size,)
                if name.endswith("index"):
                    assert ((t >= -1) & (t < (n if name.startswith("column_") or m is None else m))).all()


@pytest.mark.parametrize("m", [None, 40])
@pytest.mark.parametrize("similarity", ["dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("transform", ["linear", "circle", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_rows_that_are_not_finite(dtype, poison, transform, similarity, m):
    """A row that no pair counts with may hold anything; NaN reaches every row that it is paired with, and no other."""
    case = make(n=40, m=m, transform=transform, similarity=similarity, columns=True, select="negative", dtype=dtype)
    p, tile = case.problem, Tile(8, 16)
    p.label[3], p.label[5], p.label[7] = -1, 1, 1
    clean = by_kernel(case, fixed_gradients(), tile)
    p.x[3] = poison
    poisoned = by_kernel(case, fixed_gradients(), tile)
    for name, a, b in zip(names(case), clean[0] + clean[1], poisoned[0] + poisoned[1], strict=True):
        assert torch.equal(a, b), name
    p.x[5] = torch.nan
    values, gradients = by_kernel(case, fixed_gradients(), tile)
    value = dict(zip(names(case), values, strict=False))
    apart = (p.ref_label != 1) & (p.ref_label >= 0) & (p.ref_id != 5)
    prefix = "" if m is None else "column_"
    for name in ("sum", "min", "max", "lse"):
        assert torch.equal(value[prefix + name].isnan() & apart, apart), name
        others = ~apart.clone()
        if m is None:
            assert value[name][5].isnan()
            others[5] = False
        assert not value[prefix + name][others].isnan().any(), name
    assert (value[prefix + "argmin"][apart] == 5).all()
    assert (value[prefix + "argmax"][apart] == 5).all()
    if m is not None:  # of x with itself every row is paired with one whose log-sum-exp is NaN
        assert gradients[1][~apart].isfinite().all()
        assert gradients[1][apart].isnan().all()


def test_infinite_similarities():
    """They are the largest and the smallest there are; a log-sum-exp over +inf is +inf."""
    x = torch.tensor([[1.0, 0.0], [torch.inf, 1.0], [-1.0, 0.0]])
    empty = torch.empty(0, dtype=torch.int32)
    ids = torch.arange(3, dtype=torch.int32)
    problem = PairProblem(x, None, empty, empty, ids, ids, None, None, "all", "dot")
    rows, _ = op.pair_statistics(problem, torch.ones(3), None, False, True, Transform("linear"))
    assert rows.max[0] == torch.inf
    assert rows.argmax[0] == 1
    assert rows.lse[0] == torch.inf
    assert rows.min[2] == -torch.inf
    torch.testing.assert_close(rows.lse[2], torch.tensor(-1.0))


@pytest.mark.parametrize("m", [None, 50])
def test_the_lowest_index_wins_ties(m):
    case = make(n=50, m=m, label="none", id="none", columns=True, dtype=torch.float32)
    p = case.problem
    case.problem = p._replace(x=torch.ones_like(p.x), ref=None if m is None else torch.ones_like(p.ref))
    for tile in (Tile(), Tile(8, 16), Tile(16, 8), Tile(1, 1)):
        values = dict(zip(names(case), by_kernel(case, fixed_gradients(), tile)[0], strict=False))
        for name in ("argmin", "argmax"):
            assert (values[name] == 0).all()
            assert m is None or (values["column_" + name] == 0).all()


def test_inputs_that_are_not_contiguous():
    case = make(n=20, m=30, d=8, columns=True, window="both")
    p = case.problem

    def spread(t):
        return None if t is None else torch.stack([t, t], -1)[..., 0]

    strange = make()
    strange.__dict__.update(case.__dict__)
    strange.problem = p._replace(
        x=p.x.T.contiguous().T, ref=p.ref.T.contiguous().T, **{f: spread(getattr(p, f)) for f in p._fields[2:8]}
    )
    strange.scale, strange.columns = spread(case.scale), op.Columns(*map(spread, case.columns))
    ours, truth = by_kernel(strange, fixed_gradients()), by_kernel(case, fixed_gradients())
    for a, b in zip(ours[0] + ours[1], truth[0] + truth[1], strict=True):
        assert torch.equal(a, b)


def test_the_lowest_instruction_set():
    assert_passes_at("baseline", __file__, "more_than_a_tile or ties")


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets(capability):
    # Without fused multiply-add the softplus of a distance rounds to up to four times PyTorch's error.
    accuracy = "test_accuracy" if capability != "baseline" else "(test_accuracy and not (euclidean and softplus))"
    assert_passes_at(capability, __file__, f"{accuracy} or more_than_a_tile or equal_bits or ties")


def test_the_accumulator_is_that_of_the_reference():
    for dtype in (torch.float64, torch.float32, *HALVES):
        case = make(n=5, dtype=dtype)
        assert by_kernel(case, fixed_gradients())[0][7].dtype == accumulate_dtype(dtype)
