"""The Triton kernels of the sphere on a GPU."""

import pytest
import torch

import hyperkernels as hk
from tests.support import sphere_triton_cases as cases
from tests.support.launchers import launchers

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _triton():
    with hk.backend("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 32, 64, 65, 256, 511, 512, 1024, 1025, 4096, 8192, 8193, 20000])
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_widths(name, dim, dtype, poisoned_memory):
    cases.check(name, cases.inputs(name, 301 if dim <= 1024 else 7, dim, dtype, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [19, 512, 2000, 9000])
def test_angles(dim, dtype):
    cases.check_angles(9, dim, dtype, "cuda")
    cases.check_velocities(9, dim, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [19, 512, 2000, 9000])
def test_special_rows(dim, dtype):
    cases.check_special_rows(dim, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [19, 512, 2000, 9000])
def test_long_rows(dim, dtype):
    cases.check_long_rows(dim, dtype, "cuda")


@pytest.mark.parametrize("dim", [19, 512, 2000, 9000])
def test_doubles_whose_squares_leave_their_range(dim):
    cases.check_far_doubles(dim, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype):
    cases.check_layouts(dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", [1, 16, 640])
@pytest.mark.parametrize("dim", [64, 9000])
def test_scales(dim, scales, dtype):
    cases.check("scaled", cases.inputs("scaled", 1920, dim, dtype, "cuda", scales))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "dim", "segments"), [(1, 1, 1), (50, 3, 4), (10_000, 512, 2), (2000, 513, 700), (300_000, 64, 10)]
)
def test_segment_sum(rows, dim, segments, dtype):
    cases.check_segments(rows, dim, segments, dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_a_million_rows_of_512(name, dtype):
    """The first and the last thousand against the formula, and the sums for alpha and scale against float64."""
    given = cases.inputs(name, 1_000_000, 512, dtype, "cuda")
    out = cases.forward(name, given)
    grad = torch.randn(out.shape, device="cuda").to(out.dtype)
    found = cases.backward(name, grad, given)
    for part in (slice(0, 1000), slice(-1000, None)):
        some = [x[part] if letter in "rt" else x for x, letter in zip(given, cases.OPERATIONS[name].inputs, strict=True)
                if x is not None or letter == "-"]  # fmt: skip
        right, gradients = cases.formula(name, grad[part].double(), [None if x is None else x.double() for x in some])
        tolerance = {
            "rtol": 1e-2 if dtype == torch.bfloat16 else 1e-4,
            "atol": 1e-3 if dtype == torch.bfloat16 else 1e-5,
        }
        torch.testing.assert_close(out[part].double(), right, **tolerance)
        for mine, truth, letter in zip(found, gradients, cases.OPERATIONS[name].inputs, strict=True):
            if letter in "rt":
                torch.testing.assert_close(mine[part].double(), truth, **tolerance)
    if name in ("residual", "scaled"):
        total = torch.zeros_like(found[-1], dtype=torch.float64)
        for start in range(0, 1_000_000, 50_000):
            some = [x[start : start + 50_000].double() for x in (*given[:-1], grad)]
            total += cases.formula(name, some[-1], [*some[:-1], given[-1].double()])[1][-1]
        assert (found[-1] - total).norm() < 1e-5 * total.norm()


def test_more_than_2_to_the_31_elements():
    dim = 511
    rows = 2**31 // dim + 1000
    if torch.cuda.mem_get_info()[0] < 6 * rows * dim * 2:
        pytest.skip("needs 26 GB of GPU memory")
    x, y = (torch.randn(1, dim, device="cuda").bfloat16().repeat(rows, 1) for _ in range(2))
    x[-500:] = torch.randn(500, dim, device="cuda").bfloat16()
    t, alpha = torch.rand(rows, device="cuda"), torch.rand(dim, device="cuda")
    last = slice(-500, None)
    for name, given in (
        ("slerp", [x, y, t]),
        ("exp", [x, y / 32]),
        ("residual", [x, y, alpha]),
        ("scaled", [x, alpha[None]]),
    ):
        out = cases.forward(name, given)
        tail = [a[last] if len(a) == rows else a for a in given]
        assert torch.equal(out[last], cases.forward(name, tail))
        del out
        found, of_tail = cases.backward(name, x, given), cases.backward(name, x[last], tail)
        for mine, right, a in zip(found, of_tail, given, strict=True):
            assert len(a) != rows or torch.equal(mine[last], right)
        del found, of_tail
    order = torch.arange(rows, device="cuda").flip(0)
    offsets = torch.tensor([0, 500, rows], device="cuda")
    sums = launchers.segment_sum(x, order, order, offsets)
    torch.testing.assert_close(sums[0].double(), x[last].double().sum(0), rtol=1e-4, atol=1e-3)


def _functions(h, other, t, alpha, scale):
    return {
        "angle": lambda: hk.sphere.angle(h, other),
        "slerp": lambda: hk.sphere.slerp(h, other, t),
        "log": lambda: hk.sphere.log_map(h, other),
        "exp": lambda: hk.sphere.exp_map(h, other),
        "retract": lambda: hk.sphere.retract(h, other),
        "residual": lambda: hk.sphere.residual(h, other, alpha),
        "scaled": lambda: hk.sphere.scaled_unit_norm(h, scale),
    }


FUNCTIONS = ("angle", "slerp", "log", "exp", "retract", "residual", "scaled")


def _leaves():
    shapes = ((100, 8, 64), (100, 8, 64), (100, 8), (64,), (8, 64))
    return [torch.rand(*shape, device="cuda", requires_grad=True) for shape in shapes]


def _step(name, leaves, compiler=lambda f: f):
    out = compiler(lambda *a: _functions(*a)[name]().sin())(*leaves)
    return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graph_capture(name):
    leaves = _leaves()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _step(name, leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(name, leaves)
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(torch.rand_like(leaf))
    graph.replay()
    for mine, eager in zip(captured, _step(name, leaves), strict=True):
        assert (mine is None and eager is None) or torch.equal(mine, eager)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_in_one_graph(name):
    leaves = _leaves()
    compiled = _step(name, leaves, lambda f: torch.compile(f, fullgraph=True))
    for mine, eager in zip(compiled, _step(name, leaves), strict=True):
        if eager is None:
            assert mine is None or not mine.any()
        else:
            torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_every_time(name):
    leaves = _leaves()
    first = _step(name, leaves)
    for _ in range(10):
        assert all(a is None or torch.equal(a, b) for a, b in zip(first, _step(name, leaves), strict=True))


@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_gradcheck(name):
    operation = cases.OPERATIONS[name]
    given = [x.requires_grad_() for x in cases.inputs(name, 4, 6, torch.float64, "cuda") if x is not None]
    op = getattr(torch.ops.hyperkernels, f"{operation.name}_triton")
    rest = ([None] if "-" in operation.inputs else []) + ([operation.kind] if operation.kind else [])
    assert torch.autograd.gradcheck(lambda *a: op(*a, *rest), given)


def test_row_of_every_angle_is_finite():
    for dtype in DTYPES:
        for angle in cases.ANGLES:
            x, y = cases.at_angle(angle, 64, 512, dtype, "cuda")
            for name in cases.TWO_POINTS:
                given = [x, y, *cases.numbers(cases.OPERATIONS[name], 64, 512, dtype, "cuda")]
                out = cases.forward(name, given)
                assert out.isfinite().all()
                for gradient in cases.backward(name, torch.ones_like(out), given):
                    assert gradient.isfinite().all()
