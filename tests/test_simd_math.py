"""The functions of one number that all C++ loops use, in each instruction set: how far from the true value, and that a
loop of any length gives what the function alone gives."""

import ctypes
import math
import shutil
import subprocess

import pytest
import torch

from tests.support import ROOT
from tests.support.mutants import COMPILER

PROGRAM = r"""
#include "common/math.h"
namespace simd = hyperkernels::simd;
extern "C" int use(const char* name) { return simd::use_capability(name); }
extern "C" const char* in_use() { return simd::capability_name(); }
#define FUNCTION(name)                                                                             \
  struct name##_loop {                                                                             \
    template <class A>                                                                             \
    static HK_INLINE void run(const A* x, int64_t n, A* y) {                                       \
      _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) y[i] = simd::name(x[i]);                 \
    }                                                                                              \
  };                                                                                               \
  extern "C" void name##_float32(const float* x, int64_t n, float* y) { simd::run<name##_loop>(x, n, y); } \
  extern "C" void name##_float64(const double* x, int64_t n, double* y) { simd::run<name##_loop>(x, n, y); }
FUNCTION(exp)
FUNCTION(sin)
FUNCTION(cos)
FUNCTION(acos)
FUNCTION(log1p)
FUNCTION(log)
FUNCTION(softplus)
FUNCTION(sigmoid)
#define STORAGE(S, name)                                                                           \
  struct name##_copy {                                                                             \
    static HK_INLINE void run(const S* x, int64_t n, float* wide, S* y) {                          \
      _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) wide[i] = simd::load(x + i);             \
      _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) simd::store(y + i, wide[i]);             \
    }                                                                                              \
  };                                                                                               \
  extern "C" void name(const S* x, int64_t n, float* wide, S* y) { simd::run<name##_copy>(x, n, wide, y); }
STORAGE(simd::Bfloat16, bfloat16)
STORAGE(simd::Half, float16)
"""
LEVELS = ("baseline", "avx2", "avx512")
LENGTHS = (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64)
# Of each function its range, and the largest error there in units of the last place: of the true value, or of 1 where
# the function has zeros inside. They are the figures of csrc/common/math.h.
FUNCTIONS = {
    "exp": (torch.exp, (-87.3, 5.0), {torch.float32: 1.2, torch.float64: 1.2}, "value"),
    "sin": (torch.sin, (-3000.0, 3000.0), {torch.float32: 1.0, torch.float64: 1.0}, "one"),
    "cos": (torch.cos, (-3000.0, 3000.0), {torch.float32: 1.0, torch.float64: 1.0}, "one"),
    "acos": (torch.acos, (-1.0, 1.0), {torch.float32: 3.0, torch.float64: 2.0}, "one"),
    "log1p": (torch.log1p, (0.0, 1.0), {torch.float32: 3.0, torch.float64: 1.0}, "value"),
    "log": (torch.log, (1e-30, 1e30), {torch.float32: 1.5, torch.float64: 1.0}, "value"),
    "softplus": (
        lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())),
        (-80.0, 80.0),
        {torch.float32: 4.0, torch.float64: 2.0},
        "value",
    ),
    "sigmoid": (torch.sigmoid, (-80.0, 80.0), {torch.float32: 3.0, torch.float64: 3.0}, "value"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs the compiler {COMPILER}")
    folder = tmp_path_factory.mktemp("math")
    (folder / "math.cpp").write_text(PROGRAM)
    flags = ["-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
    sources = [str(folder / "math.cpp"), str(ROOT / "csrc" / "common" / "capability.cpp")]
    made = folder / "math.so"
    subprocess.run([COMPILER, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", str(made)], check=True)
    loaded = ctypes.CDLL(str(made))
    loaded.in_use.restype = ctypes.c_char_p
    return loaded


def at(library, level):
    library.use(level.encode())
    if library.in_use().decode() != level:
        pytest.skip(f"this processor has no {level}")


def call(library, name, x):
    y = torch.full_like(x, math.nan)
    function = getattr(library, f"{name}_{str(x.dtype).removeprefix('torch.')}")
    function(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()), ctypes.c_void_p(y.data_ptr()))
    return y


def inputs(name, dtype, count):
    low, high = FUNCTIONS[name][1]
    x = torch.rand(count, dtype=torch.float64)
    if name == "log":
        return (10 ** (math.log10(low) + x * (math.log10(high) - math.log10(low)))).to(dtype)
    return (low + x * (high - low)).to(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_largest_error(library, name, dtype, level):
    at(library, level)
    function, (low, high), allowed, unit = FUNCTIONS[name]
    x = torch.cat([inputs(name, dtype, 200_000), torch.tensor([low, high], dtype=dtype)])
    truth = function(x.double())
    size = truth.abs().clamp(min=torch.finfo(dtype).tiny) if unit == "value" else torch.ones_like(truth)
    last_place = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(size))
    error = ((call(library, name, x).double() - truth).abs() / last_place).max().item()
    assert error <= allowed[dtype], error


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loop_of_any_length_is_the_function_itself(library, name, level):
    at(library, level)
    for dtype in (torch.float32, torch.float64):
        for length in LENGTHS:
            x = inputs(name, dtype, length)
            alone = torch.cat([call(library, name, x[i : i + 1]) for i in range(length)])
            together = call(library, name, x)
            assert torch.allclose(together, alone, rtol=4 * torch.finfo(dtype).eps, atol=0), (dtype, length)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits_goes_there_and_back(library, dtype, level):
    at(library, level)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    for length in (*LENGTHS, 2**16):
        x = every[-length:].clone()
        wide, back = torch.empty(length), torch.empty_like(x)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, wide, back)]
        getattr(library, str(dtype).removeprefix("torch."))(pointers[0], ctypes.c_int64(length), *pointers[1:])
        assert torch.equal(torch.nan_to_num(wide, nan=-7.0), torch.nan_to_num(x.float(), nan=-7.0))
        assert torch.equal(torch.nan_to_num(back.float(), nan=-7.0), torch.nan_to_num(x.float(), nan=-7.0))
