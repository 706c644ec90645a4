"""The Triton kernels of the sphere in Triton's interpreter, whose bfloat16 is garbage: that dtype waits for a GPU."""

import math

import pytest
import torch
import triton
import triton.language as tl

import hyperkernels as hk
from hyperkernels.kernels.sphere.triton import kernels as triton_kernels
from hyperkernels.kernels.sphere.triton import rows as triton_rows
from hyperkernels.kernels.triton.rows import program_rows
from tests.support import sphere_triton_cases as cases
from tests.support.launchers import launchers

DTYPES = (torch.float32, torch.float16, torch.float64)

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("poisoned_memory"),
    # numpy reports what the kernels let happen on purpose: overflow on the way to float16, NaN of a NaN row.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
]


@pytest.fixture(params=["narrow", "wide"])
def loop(request, monkeypatch):
    """The kernels for wide rows, on rows that the interpreter gets through quickly."""
    if request.param == "wide":
        wide = triton_rows.SphereConfiguration(1, 16, 1, wide=True)
        monkeypatch.setattr(triton_kernels, "configuration", lambda *_: wide)
    return request.param


@pytest.fixture
def few_programs(monkeypatch):
    """Each goes round its loop several times."""
    monkeypatch.setattr(triton_kernels, "PROGRAMS", 3)
    monkeypatch.setattr(triton_kernels, "WIDE_SUMS", 100)


# (rows, columns): a column, a line, the rows of several programs, wider than a warp's tile.
SHAPES = {
    torch.float64: ((1, 1), (40, 37)),
    torch.float32: ((9, 2), (67, 32), (9, 130), (2, 1025)),
    torch.float16: ((5, 3), (2, 512)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_shapes(name, dtype, few_programs):
    for rows, dim in SHAPES[dtype]:
        cases.check(name, cases.inputs(name, rows, dim, dtype))


@pytest.mark.parametrize("name", cases.OPERATIONS)
@pytest.mark.parametrize("loop", ["wide"], indirect=True)
def test_wide_shapes(name, loop, few_programs):
    cases.check(name, cases.inputs(name, 3, 37, torch.float32))
    cases.check(name, cases.inputs(name, 1, 18, torch.float64))


@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_rows_wider_than_a_block(name):
    cases.check(name, cases.inputs(name, 2, 8200, torch.float32))


# The wide kernels take the same scalar functions as the narrow ones, and the interpreter's time by the row.
NARROW_AND_WIDE = [
    *(pytest.param("narrow", d, marks=() if d == torch.float32 else pytest.mark.slow) for d in DTYPES),
    ("wide", torch.float32),
]


@pytest.mark.parametrize(("loop", "dtype"), NARROW_AND_WIDE, indirect=["loop"])
def test_angles(dtype, loop):
    if loop == "wide":
        cases.check_angles(1, 19, dtype, angles=(0.0, 3.0, math.pi))
    else:
        cases.check_angles(6, 19, dtype)
        cases.check_velocities(6, 19, dtype)


@pytest.mark.parametrize(("loop", "dtype"), NARROW_AND_WIDE, indirect=["loop"])
def test_special_rows(dtype, loop):
    cases.check_special_rows(19, dtype, names=("slerp",) if loop == "wide" else cases.OPERATIONS)


@pytest.mark.parametrize(("loop", "dtype"), NARROW_AND_WIDE, indirect=["loop"])
def test_long_rows(dtype, loop):
    cases.check_long_rows(19, dtype, names=("retract",) if loop == "wide" else cases.OPERATIONS)


@pytest.mark.parametrize("loop", ["narrow", "wide"], indirect=True)
def test_doubles_whose_squares_leave_their_range(loop, few_programs):
    names = ("slerp", "tangent", "scaled") if loop == "wide" else cases.OPERATIONS
    cases.check_far_doubles(19, names=names)


def test_a_long_velocity_along_a_line():
    """Nothing of it is tangent to the sphere of one dimension, and no square of its unit comes in."""
    x, v = torch.tensor([[2.0], [-3.0]]), torch.tensor([[1e30], [1e-30]])
    assert torch.equal(cases.forward("exp", [x, v]), x.sign())
    for gradient in cases.backward("exp", torch.ones(2, 1), [x, v]):
        assert not gradient.any()


def test_layouts():
    cases.check_layouts(torch.float32)


@pytest.mark.parametrize("scales", [1, 3, 6])
def test_scales(scales, loop, few_programs):
    cases.check("scaled", cases.inputs("scaled", 6, 19, torch.float32, scales=scales))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim", "segments"), [(1, 1, 1), (50, 3, 4), (40, 300, 2), (23, 19, 8)])
def test_segment_sum(rows, dim, segments, dtype):
    cases.check_segments(rows, dim, segments, dtype)


def test_segments_of_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    for segments in (0, 3):
        sums = launchers.segment_sum(torch.empty(0, 5), none, none, torch.zeros(segments + 1, dtype=torch.int64))
        assert torch.equal(sums, torch.zeros(segments, 5))


@pytest.mark.parametrize("offset", [-3, -(2**40), 2**40])
def test_segments_lie_within_the_rows_whatever_the_offsets_say(offset):
    x = torch.randn(9, 5)
    labels, order = torch.zeros(9, dtype=torch.int64), torch.arange(9)
    begin, end = min(offset, 4), max(offset, 4)
    sums = launchers.segment_sum(x, labels, order, torch.tensor([begin, end, end]))
    torch.testing.assert_close(sums[0], x[max(begin, 0) : min(end, 9)].sum(0))
    assert torch.equal(sums[1], torch.zeros(5))


@triton.jit
def circular(angle_ptr, a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    sine, cosine = triton_rows.sine_and_cosine(tl.load(angle_ptr + i))
    tl.store(out_ptr + i, sine)
    tl.store(out_ptr + SIZE + i, cosine)
    tl.store(out_ptr + 2 * SIZE + i, triton_rows.twice_arc_tangent(tl.load(a_ptr + i), tl.load(b_ptr + i)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_circular_functions(dtype):
    size = 4096
    angle = torch.cat(
        [torch.linspace(-20, 20, 2048, dtype=torch.float64), torch.logspace(-9, 3.9, 2048, dtype=torch.float64)]
    )
    angle[:3] = torch.tensor([0.0, math.inf, math.nan])
    share = torch.cat([torch.linspace(0, math.pi / 2, 2048, dtype=torch.float64), torch.logspace(-30, 0, 2048)])
    angle, a, b = angle.to(dtype), torch.sin(share).to(dtype), torch.cos(share).clamp_min(0).to(dtype)
    b[2047] = 0
    out = torch.empty(3, size, dtype=dtype)
    circular[(1,)](angle, a, b, out, SIZE=size)
    eps = torch.finfo(dtype).eps
    truth = torch.stack([angle.double().sin(), angle.double().cos()])
    assert out[:2, 1:3].isnan().all()
    error = ((out[:2] - truth).abs() / eps)[:, angle.isfinite()]
    assert error.max() < 2, error.max()
    right = 2 * torch.atan2(a.double(), b.double())
    error = ((out[2] - right).abs() / right.clamp_min(1e-300) / eps)[1:]
    assert out[2, 0] == 0 and error.max() < 2.5, error.max()
    far = torch.full((size,), 1e30, dtype=dtype)
    circular[(1,)](far, a, b, out, SIZE=size)
    assert out[:2].abs().max() <= 1


@triton.jit
def rows_of(out_ptr, there_ptr, program, rows, BLOCK_ROWS: tl.constexpr):
    row, there = program_rows(program, rows, BLOCK_ROWS)
    tl.store(out_ptr + tl.arange(0, BLOCK_ROWS), row)
    tl.store(there_ptr + tl.arange(0, BLOCK_ROWS), there)


@pytest.mark.parametrize(("program", "rows"), [(2**26, 2**28), (2**29 + 7, 2**31 + 29)])
def test_far_rows_do_not_wrap(program, rows):
    out, there = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
    rows_of[(1,)](out, there, program, rows, BLOCK_ROWS=4)
    right = program * 4 + torch.arange(4)
    assert torch.equal(out, right) and torch.equal(there, right < rows)


def test_what_does_not_fit_is_refused():
    x, t = torch.randn(4, 3), torch.rand(4)
    for call, said in (
        (lambda: launchers.sphere_points(x, x[:2], t, "slerp"), "y must be"),
        (lambda: launchers.sphere_points(x, x.double(), None, "log"), "y must be"),
        (lambda: launchers.sphere_points(x, x, t[:3], "slerp"), "t must be"),
        (lambda: launchers.sphere_points(x, x, None, "slerp"), "t must be"),
        (lambda: launchers.sphere_points(x, x, t, "cosine"), "kind must be"),
        (lambda: launchers.sphere_points_backward(x, x, x, None, "angle", True, True, False), "grad must be"),
        (lambda: launchers.sphere_vectors(x, x.t(), "exp"), "v must be"),
        (lambda: launchers.sphere_residual(x, x, t), "alpha must be"),
        (lambda: launchers.scaled_unit_norm(x, torch.rand(3, 3)), "scale must be"),
        (lambda: launchers.scaled_unit_norm(x, torch.rand(2, 3).double()), "scale must be"),
        (lambda: launchers.scaled_unit_norm(x.int(), torch.rand(2, 3)), "rows must be"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_through_the_public_functions():
    h, other = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    share, alpha, scale = torch.rand(3, 4), torch.rand(6), torch.rand(4, 6)
    functions = [
        (hk.sphere.angle, h, other),
        (hk.sphere.slerp, h, other, share),
        (hk.sphere.log_map, other, h),
        (hk.sphere.tangent, h, other),
        (hk.sphere.exp_map, h, other),
        (hk.sphere.retract, h, other[0]),
        (hk.sphere.transport, h, other, other[1]),
        (hk.sphere.residual, h, other, alpha),
        (hk.sphere.scaled_unit_norm, h, scale),
    ]
    for function, *given in functions:
        results = []
        for backend in ("triton", "reference"):
            leaves = [x.clone().requires_grad_() for x in given]
            with hk.backend(backend):
                out = function(*leaves)
                torch.manual_seed(5)
                results.append([out, *torch.autograd.grad(out, leaves, torch.randn_like(out))])
        for mine, right in zip(*results, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-9 if right.dtype == torch.float64 else 1e-6, atol=1e-12)
