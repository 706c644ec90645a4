"""unit_norm on a GPU: the Triton and the CUDA C++ kernels."""

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from hyperkernels import _backend

from . import cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ops = torch.ops.hyperkernels

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    if request.param == "cuda" and not _backend.has_cuda_kernels():
        pytest.skip("the library was built without CUDA kernels")
    with hk.backend(request.param):
        yield request.param


@pytest.fixture
def kernels(backend):
    if backend == "triton":
        return cases.Kernels(ops.unit_norm_triton, ops.unit_norm_backward_triton, ops.unit_norm__triton)
    return cases.Kernels(ops.unit_norm, ops.unit_norm_backward, ops.unit_norm_)


SHORT = (1, 3, 31, 64, 65, 127, 128, 255, 256, 511, 512, 513, 1023, 1024)
LONG = (1025, 2048, 4095, 4096, 8192, 16384, 16385, 65536)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", SHORT + LONG)
def test_widths(kernels, dim, dtype, poisoned_memory):
    cases.check_shape(kernels, 37 if dim <= 1024 else 5, dim, dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", cases.FLOORS)
@pytest.mark.parametrize("dim", [37, 512, 1100, 40000])
def test_extreme_rows(kernels, dim, eps, dtype):
    cases.check_extreme(kernels, dim, dtype, eps, device="cuda")


@pytest.mark.parametrize("power", [-1074, -600, 600, 1013])
@pytest.mark.parametrize("dim", [37, 512, 1100, 40000])
def test_doubles_whose_squares_leave_their_range(kernels, dim, power):
    cases.check_far_doubles(kernels, dim, power, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 37, 512, 1100, 40000])
def test_special_rows(kernels, dim, dtype):
    cases.check_special(kernels, dim, dtype, 1e-12, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(kernels, dtype):
    x = torch.randn(3, 4, dtype=torch.float64, device="cuda").to(dtype)
    assert torch.equal(kernels.forward(x.t(), 1e-12), kernels.forward(x.t().contiguous(), 1e-12))
    cases.check_layouts(kernels, dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [5, 33, 511, 1023, 5001, 40001])
def test_rows_off_the_16_byte_grid(kernels, dim, dtype):
    """A slice that starts at an odd element, written in place, leaves its neighbours alone."""
    base = torch.randn(7, dim, dtype=torch.float64, device="cuda").to(dtype)
    cases.check(kernels, base[1:])
    before = base.clone()
    kernels.in_place(base[1:6], 1e-12)
    assert torch.equal(base[0], before[0])
    assert torch.equal(base[6], before[6])
    assert torch.equal(base[1:6], kernels.forward(before, 1e-12)[1:6])


def test_more_than_2_to_the_31_elements(kernels):
    dim = 511
    rows = 2**31 // dim + 1000
    if torch.cuda.mem_get_info()[0] < 4 * rows * dim * 2:
        pytest.skip("needs 18 GB of GPU memory")
    x = torch.ones(1, dim, dtype=torch.bfloat16, device="cuda").repeat(rows, 1)
    last = torch.randn(500, dim, device="cuda").bfloat16()
    x[-500:] = last
    expected = F.normalize(last.double(), dim=-1)
    torch.testing.assert_close(kernels.forward(x, 1e-12)[-500:].double(), expected, rtol=1e-2, atol=1e-5)
    dx = kernels.backward(x, x, 1e-12)  # along x: no tangent part
    assert dx[-500:].abs().max() < 1e-2
    del dx
    kernels.in_place(x, 1e-12)
    torch.testing.assert_close(x[-500:].double(), expected, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(x[:3].float(), torch.full((3, dim), dim**-0.5, device="cuda"), rtol=1e-2, atol=0)


def test_more_rows_than_2_to_the_31(kernels):
    rows = 2**31 + 100
    if torch.cuda.mem_get_info()[0] < 3 * rows * 2:
        pytest.skip("needs 13 GB of GPU memory")
    x = torch.full((rows, 1), -3.0, dtype=torch.bfloat16, device="cuda")
    kernels.in_place(x, 1e-12)
    assert x.min() == -1 and x.max() == -1


def test_graph_capture(backend):
    x = torch.randn(100, 512, device="cuda", requires_grad=True)
    g = torch.randn(100, 512, device="cuda")

    def step():
        y = hk.unit_norm(x)
        return y, torch.autograd.grad(y, x, g)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for mine, eager in zip(captured, step(), strict=True):
        assert torch.equal(mine, eager)


@pytest.mark.parametrize("dim", [0, -1])
def test_compiles_in_one_graph(backend, dim):
    x = torch.randn(9, 65, device="cuda", requires_grad=True)
    f = lambda v: hk.unit_norm(v * 2, dim=dim).tanh()  # noqa: E731
    compiled, eager = torch.compile(f, fullgraph=True)(x), f(x)
    torch.testing.assert_close(compiled, eager)
    g = torch.randn_like(x)
    torch.testing.assert_close(torch.autograd.grad(compiled, x, g), torch.autograd.grad(eager, x, g))


@pytest.mark.parametrize("dim", [0, -1])
def test_gradcheck(backend, dim):
    x = torch.randn(4, 6, dtype=torch.float64, device="cuda", requires_grad=True)
    for eps in (1e-12, 1.5, 100.0):
        assert torch.autograd.gradcheck(lambda v, eps=eps: hk.unit_norm(v, dim=dim, eps=eps), x)
        assert torch.autograd.gradgradcheck(lambda v, eps=eps: hk.unit_norm(v, dim=dim, eps=eps), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 511, 4096, 40000])
def test_same_bits_every_time(kernels, dim, dtype):
    x, g = (torch.randn(64, dim, device="cuda").to(dtype) for _ in range(2))
    y, dx = kernels.forward(x, 1e-12), kernels.backward(g, x, 1e-12)
    for _ in range(20):
        assert torch.equal(kernels.forward(x, 1e-12), y)
        assert torch.equal(kernels.backward(g, x, 1e-12), dx)


def test_runs_on_the_current_stream(backend):
    """Work queued on a side stream is seen by the kernel, and the kernel by the work behind it."""
    x = torch.randn(4096, 512, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        doubled = hk.unit_norm(x + 1) * 2
    side.synchronize()
    torch.testing.assert_close(doubled, F.normalize(x + 1, dim=-1) * 2)
