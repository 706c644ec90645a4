"""Every production configuration of the GPU kernels compiles for its targets without spilling; no GPU is needed."""

from __future__ import annotations

import importlib.util
import re

import aot
import pytest
import torch
from support import ROOT

TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_nvcc = pytest.mark.skipif(aot.NVCC is None, reason="nvcc is not on the PATH")

# Every line of the table in triton_kernels.configuration; 511 for rows that are not aligned, 3 for very short ones.
UNIT_NORM_WIDTHS = (3, 64, 128, 256, 511, 512, 1024, 2048, 4096, 8192, 16384, 65536)


def unit_norm_resources(target: str, dtype: torch.dtype, dim: int) -> list[aot.Resources]:
    from hyperkernels.unit_norm import triton_kernels as family

    config = family.configuration(dim, dtype.itemsize)
    kernels = {
        False: (family.forward_kernel, family.backward_kernel),
        True: (family.forward_wide_kernel, family.backward_wide_kernel),
    }[config.wide]
    constants = {"D": dim, "BLOCK_ROWS": config.block_rows, "BLOCK_D": config.block_d}
    constants |= family.floor_constants(1e-12, dtype)
    return [
        aot.compile_triton(
            kernel,
            target,
            {name: f"*{TYPES[dtype]}" for name in kernel.arg_names if name.endswith("_ptr")} | {"rows": "i32"},
            constants,
            num_warps=config.warps,
        )
        for kernel in kernels
    ]


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.get)
def test_unit_norm_in_triton(target, dtype):
    # float16 and float64 differ from their neighbours in a conversion and in width: the full table is for sm_90.
    full = target == "sm_90" or dtype in (torch.float32, torch.bfloat16)
    for dim in UNIT_NORM_WIDTHS if full else (3, 512, 8192, 65536):
        for resources in unit_norm_resources(target, dtype, dim):
            report = aot.table([resources])
            print(report)
            assert resources.stack == 0, report
            assert resources.shared <= (64 * 1024 if target.startswith("gfx") else aot.SHARED_LIMIT), report
            if dim <= 1024 and not target.startswith("gfx"):
                assert resources.shared == 0, f"a row up to 1024 elements belongs to one warp: {report}"
            if dim % 16 == 0 and not target.startswith("gfx"):
                widths = set(re.findall(r"\b((?:ld|st)\.global)\S*?((?:\.v\d)?\.b\d+)", resources.text))
                assert {kind for kind, _ in widths} == {"ld.global", "st.global"}, report
                assert {width for _, width in widths} <= {".v4.b32", ".v2.b64"}, (
                    f"not 16 bytes wide: {widths}, {report}"
                )


@needs_triton
@needs_nvcc
def test_unit_norm_in_cuda():
    found = aot.compile_cuda(ROOT / "csrc/unit_norm/cuda.cu", ["sm_80", "sm_90", "sm_100"])
    print(aot.table(found))
    assert len(found) == 3 * 120
    for resources in found:
        assert resources.stack == 0, aot.table([resources])
        # Tensors that are not aligned alike go element by element, through the kernels for wide rows.
        by_elements = "wide" in resources.kernel and "Li1E" in resources.kernel
        vectors = set(re.findall(r"\b(LDG|STG)\.E\.128\b", resources.text))
        assert vectors == (set() if by_elements else {"LDG", "STG"}), resources.kernel
