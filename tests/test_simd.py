"""What all C++ kernels stand on: sums over rows, lengths, and the widening of half precision."""

import ctypes
import shutil
import subprocess

import pytest
import torch

import hyperkernels as hk
from tests.support import ROOT
from tests.support.mutants import COMPILER

PROGRAM = r"""
#include "common/sums.h"
using namespace hyperkernels::simd;
extern "C" double length_float(const float* v, int64_t n) { return length(v, n); }
extern "C" double length_double(const double* v, int64_t n) { return length(v, n); }
extern "C" double dot_float(const float* a, const float* b, int64_t n) { return dot<float>(a, b, n); }
"""


@pytest.fixture(scope="module", params=["-O0", "-O1", "-O3"])
def kernels(request, tmp_path_factory):
    """The sums compiled by themselves, for the baseline instruction set, at that level of optimisation."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs the compiler {COMPILER}")
    folder = tmp_path_factory.mktemp("simd")
    source, library = folder / "sums.cpp", folder / "sums.so"
    source.write_text(PROGRAM)
    flags = ["-std=c++20", request.param, "-fopenmp", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    for function in (loaded.length_float, loaded.length_double, loaded.dot_float):
        function.restype = ctypes.c_double
    return loaded


def call(function, *rows):
    pointers = [ctypes.c_void_p(row.data_ptr()) for row in rows]
    return function(*pointers, ctypes.c_int64(rows[0].numel()))


@pytest.mark.parametrize("size", [1, 17, 100, 512, 1000, 4096, 20_011])
def test_sums_are_as_accurate_as_those_of_pytorch_whatever_the_compiler_makes_of_them(kernels, size):
    ours = theirs = 0.0
    for _ in range(200):
        row, other = torch.rand(2, size)  # of one sign: the error is not hidden by the sum's own size
        truth = (row.double() * other.double()).sum()
        ours += abs(call(kernels.dot_float, row, other) - truth.item()) / truth.item()
        theirs += abs((row * other).sum() - truth).item() / truth.item()
        norm = row.double().norm().item()
        assert abs(call(kernels.length_float, row) - norm) <= 3e-7 * norm
    assert ours <= 2 * theirs + 200 * torch.finfo(torch.float32).eps / 2


@pytest.mark.parametrize("magnitude", [5e-324, 1e-310, 1e-200, 1e-150, 1.0, 1e150, 1e154, 1e200, 1e306])
def test_lengths_of_doubles_neither_overflow_nor_vanish(kernels, magnitude):
    row = torch.rand(100, dtype=torch.float64) * magnitude
    row[3] = magnitude
    largest = row.max()
    truth = (row / largest).norm() * largest
    assert abs(call(kernels.length_double, row) - truth.item()) <= 1e-15 * truth.item() + 5e-324
    assert call(kernels.length_double, row * 0) == 0
    row[7] = torch.inf
    assert call(kernels.length_double, row) == torch.inf
    row[8] = torch.nan
    assert call(kernels.length_double, row) != call(kernels.length_double, row)


def results(x, y):
    """What kernels of each family make of rows of half precision."""
    labels, target = torch.arange(len(x)) % 3, torch.arange(len(x)) % len(y)
    leaves = [v.clone().requires_grad_() for v in (x, y)]
    losses = hk.margin_softmax_loss(*leaves, target, eps=1e-30, reduction="none")
    found = hk.pair_statistics(x, labels, ref=y, ref_labels=labels[: len(y)], select="negative", similarity="dot")
    angle = hk.sphere.angle(x, y[:1].expand_as(x))
    return [hk.unit_norm(x, eps=1e-30), losses.detach(), *torch.autograd.grad(losses.sum(), leaves), found.sum, angle]


def test_half_precision_does_not_depend_on_whether_subnormal_floats_are_flushed():
    x = (torch.randint(-1023, 1024, (40, 96)).double() * 2.0**-24).half()  # subnormal in float16, and normal in float32
    y = torch.randn(40, 96).half()
    wanted = results(x, y)
    assert torch.equal(hk.unit_norm(x, eps=1e-30).double(), hk.unit_norm(x.double(), eps=1e-30).half().double())
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        got = results(x, y)
    finally:
        torch.set_flush_denormal(False)
    for ours, right in zip(got, wanted, strict=True):
        assert torch.equal(ours, right)
