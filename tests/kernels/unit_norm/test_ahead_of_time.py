"""Every production configuration of unit_norm compiles for its targets without spilling; no GPU is needed."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support import ROOT, aot, combinations
from tests.support.aot import TYPES, name_of, needs_nvcc, needs_triton

pytestmark = pytest.mark.aot

# Every line of the table in unit_norm's configuration; 511 for rows that are not aligned, 3 for very short ones.
UNIT_NORM_WIDTHS = (3, 64, 128, 256, 511, 512, 1024, 2048, 4096, 8192, 16384, 65536)


def unit_norm_resources(target: str, dtype: torch.dtype, dim: int) -> list[aot.Resources]:
    from hyperkernels.kernels.unit_norm.triton import kernels as family

    config = family.configuration(dim, dtype.itemsize)
    kernels = {
        False: (family.forward_kernel, family.backward_kernel),
        True: (family.forward_wide_kernel, family.backward_wide_kernel),
    }[config.wide]
    blocks = family.row_blocks(dim, config.block_rows, config.block_d)
    constants = {"blocks": blocks, **family.floor_constants(1e-12, dtype)}
    types = {"rows": "i32", "blocks": aot.constants_of(blocks)}
    return [
        aot.compile_triton(
            kernel,
            target,
            {name: f"*{TYPES[dtype]}" for name in kernel.arg_names if name.endswith("_ptr")} | types,
            constants,
            num_warps=config.warps,
        )
        for kernel in kernels
    ]


def unit_norm_case_is_of_every_day(target, dtype, dim):
    return target == "sm_90" and dtype == torch.bfloat16 and dim in (511, 512, 8192)


# float16 and float64 differ from their neighbours in a conversion and in width: the full table is for sm_90.
UNIT_NORM_CASES = [
    case for case in combinations(aot.TARGETS, TYPES, UNIT_NORM_WIDTHS, everyday=unit_norm_case_is_of_every_day)
    if case.values[0] == "sm_90" or case.values[1] in (torch.float32, torch.bfloat16)
    or case.values[2] in (3, 512, 8192, 65536)
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize(("target", "dtype", "dim"), UNIT_NORM_CASES, ids=name_of)
def test_unit_norm_in_triton(target, dtype, dim):
    for resources in unit_norm_resources(target, dtype, dim):
        report = aot.table([resources])
        print(report)
        assert resources.stack == 0, report
        assert resources.shared <= aot.SHARED[target], report
        if dim <= 1024 and not target.startswith("gfx"):
            assert resources.shared == 0, f"a row up to 1024 elements belongs to one warp: {report}"
        if dim % 16 == 0 and not target.startswith("gfx"):
            widths = set(re.findall(r"\b((?:ld|st)\.global)\S*?((?:\.v\d)?\.b\d+)", resources.text))
            assert {kind for kind, _ in widths} == {"ld.global", "st.global"}, report
            assert {width for _, width in widths} <= {".v4.b32", ".v2.b64"}, f"not 16 bytes wide: {widths}, {report}"


@needs_triton
@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_80", "sm_100", "sm_120"])
def test_unit_norm_in_cuda(target):
    found = aot.compile_cuda(ROOT / "csrc/unit_norm/cuda.cu", [target])
    print(aot.table(found))
    assert len(found) == 120
    for resources in found:
        assert resources.stack == 0, aot.table([resources])
        # Tensors that are not aligned alike go element by element, through the kernels for wide rows.
        by_elements = "wide" in resources.kernel and "Li1E" in resources.kernel
        vectors = set(re.findall(r"\b(LDG|STG)\.E\.128\b", resources.text))
        assert vectors == (set() if by_elements else {"LDG", "STG"}), resources.kernel
