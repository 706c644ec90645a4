"""The CUDA C++ kernels of unit_norm executed on the host: the same source, every thread a fiber (cuda_on_cpu.h)."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support import ROOT, combinations

from . import cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # in the order of HkDtype

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc, whose headers are needed, is not on the PATH"
)


class Launchers:
    """The C launchers, on CPU tensors. Outputs lie at `shift` elements past a 16-byte boundary, between guards."""

    GUARD = 64

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.shift = 0

    def call(self, name: str, *tensors: torch.Tensor, rows: int, dim: int, eps: float) -> int:
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        sizes = (ctypes.c_int64(rows), ctypes.c_int64(dim), ctypes.c_double(eps))
        return getattr(self.library, name)(*pointers, *sizes, DTYPES.index(tensors[0].dtype), None)

    def _run(self, name: str, *inputs: torch.Tensor, eps: float, output: torch.Tensor | None = None) -> torch.Tensor:
        x = inputs[-1]
        dim = x.shape[-1]
        rows = x.numel() // max(dim, 1)
        # The poison that must be gone inside is the one that must be left outside.
        guarded = torch.full((x.numel() + 2 * self.GUARD,), torch.nan, dtype=x.dtype)
        y = guarded[self.GUARD + self.shift :][: x.numel()].view(x.shape) if output is None else output
        assert self.call(name, *inputs, y, rows=rows, dim=dim, eps=eps) == 0
        assert guarded[: self.GUARD + self.shift].isnan().all(), "wrote before the output"
        assert guarded[self.GUARD + self.shift + x.numel() :].isnan().all(), "wrote past the output"
        return y

    def kernels(self) -> cases.Kernels:
        return cases.Kernels(
            lambda x, eps: self._run("hk_unit_norm_forward", x.contiguous(), eps=eps),
            lambda g, x, eps: self._run("hk_unit_norm_backward", g.contiguous(), x.contiguous(), eps=eps),
            lambda x, eps: self._run("hk_unit_norm_forward", x, eps=eps, output=x),
        )


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    library = tmp_path_factory.mktemp("cuda_on_cpu") / "unit_norm.so"
    # -x c++: nvcc only calls the host compiler, with its own headers on the path.
    flags = ["-x", "c++", "-std=c++17", "-O1", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC,-Wno-unknown-pragmas"]
    paths = ["-include", Path(__file__).with_name("cuda_on_cpu.h"), ROOT / "csrc/unit_norm/cuda.cu", "-o", library]
    done = subprocess.run(["nvcc", *flags, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Launchers(library)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_up_to_a_few_words(launchers, dtype):
    for dim in (*range(1, 41), 63, 64, 65, 127, 128, 129):
        cases.check_shape(launchers.kernels(), 5, dim, dtype)


LIMITS = [128, 512, 1024, 2048, 4096, 8192, 32768]


@pytest.mark.parametrize(
    ("nbytes", "dtype"),
    combinations(LIMITS, DTYPES, everyday=lambda nbytes, dtype: LIMITS.index(nbytes) % 4 == DTYPES.index(dtype)),
)
def test_widths_around_every_limit_of_the_table(launchers, dtype, nbytes):
    for extra in (-1, 0, 1):
        cases.check_shape(launchers.kernels(), 3 if nbytes <= 4096 else 2, nbytes // dtype.itemsize + extra, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [5, 64, 100, 511])
def test_tensors_off_the_16_byte_grid(launchers, dtype, dim):
    vector = 16 // dtype.itemsize
    for shift in range(1, vector):
        base = (torch.randn(3 * dim + vector, dtype=torch.float64) * 3).to(dtype)
        x = base[shift:][: 3 * dim].view(3, dim)
        grad = torch.randn(3 * dim + vector, dtype=torch.float64).to(dtype)[shift:][: 3 * dim].view(3, dim)
        for output_shift in (shift, 0):  # aligned alike, and not
            launchers.shift = output_shift
            cases.check(launchers.kernels(), x, grad=grad)
    launchers.shift = 0


@pytest.mark.parametrize(
    ("dim", "eps", "dtype"),
    combinations(
        [37, 1100], cases.FLOORS, DTYPES, everyday=lambda dim, eps, dtype: dim == 37 or dtype == torch.float32
    ),
)
def test_extreme_rows(launchers, dtype, eps, dim):
    cases.check_extreme(launchers.kernels(), dim, dtype, eps)


@pytest.mark.parametrize(
    ("dim", "power"),
    combinations([37, 1100, 40000], [-1074, -600, 600, 1013], everyday=lambda dim, power: dim == 37 or power == 600),
)
def test_doubles_whose_squares_leave_their_range(launchers, dim, power):
    cases.check_far_doubles(launchers.kernels(), dim, power)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 37, 256])
def test_special_rows(launchers, dtype, dim):
    cases.check_special(launchers.kernels(), dim, dtype, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loop_for_wide_rows(launchers, dtype):
    x = (torch.randn(2, 32768 // dtype.itemsize + 19, dtype=torch.float64) * 1e-7).to(dtype)
    x[1] = 0
    if dtype != torch.float64:
        x[0, 5:500] = 6e4
    cases.check(launchers.kernels(), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(launchers, dtype):
    cases.check_layouts(launchers.kernels(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [7, 511, 1023])
def test_never_reads_outside_the_pages_of_the_tensor(launchers, dtype, dim):
    """A tensor that ends, or begins, where readable memory does: a stray read kills the process."""
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    rows = 3
    nbytes = rows * dim * dtype.itemsize
    inner = -(-nbytes // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    for edge in (whole.data_ptr(), whole.data_ptr() + page + inner):
        assert libc.mprotect(ctypes.c_void_p(edge), page, 0) == 0
    for start in (page, page + inner - nbytes):
        x = whole[start : start + nbytes].view(dtype).view(rows, dim)
        x.copy_(torch.randn(rows, dim))
        expected = launchers.kernels().forward(x.clone(), 1e-12)
        launchers.kernels().in_place(x, 1e-12)
        torch.testing.assert_close(x, expected)


def test_wrong_arguments_are_refused(launchers):
    x = torch.randn(2, 3)
    for rows, dim, eps in ((-1, 3, 1e-12), (2, -3, 1e-12), (2, 3, -1.0), (2, 3, float("nan"))):
        assert launchers.call("hk_unit_norm_forward", x, x, rows=rows, dim=dim, eps=eps) != 0
