"""The Triton kernels of the sphere compile for every target without spilling, and move 16 bytes at a time."""

import re

import pytest
import torch

from tests.support import aot, combinations
from tests.support.aot import TYPES, needs_triton

# What has one kind of element and what has the accumulator's.
ROWS = [f"{name}_ptr" for name in ("grad", "x", "out", "dx", "dy", "dv", "dh", "dblock")]
NUMBERS = [f"{name}_ptr" for name in ("t", "dt", "alpha", "dalpha", "scale", "dscale")]

pytestmark = [pytest.mark.aot, needs_triton]


def resources(target, name, dtype, dim, kind=None):
    from hyperkernels.kernels.sphere.triton import kernels as family

    module = {"points": family.points, "vector": family.vectors, "segmen": family}.get(name[:6], family.residuals)
    config = family.configuration(dim, dtype.itemsize, family.BACKWARD if "backward" in name else family.FORWARD)
    if name == "segment_sum":
        config = family.segment_configuration(dim, dtype.itemsize)
    kernel = getattr(module, f"{name}_wide_kernel" if config.wide else f"{name}_kernel")
    accumulator = "*fp64" if dtype == torch.float64 else "*fp32"
    signature = dict.fromkeys(ROWS, f"*{TYPES[dtype]}") | dict.fromkeys(NUMBERS, accumulator)
    signature |= dict.fromkeys(("order_ptr", "offsets_ptr"), "*i64")
    signature |= dict.fromkeys(("rows", "scale_rows", "segments", "splits"), "i32")
    if name == "segment_sum":
        signature["out_ptr"] = accumulator
    blocks = config.blocks(dim)
    signature["blocks"], constants = aot.constants_of(blocks), {"blocks": blocks}
    # The launcher finds out which strides are multiples of 16; here the compiler learns it from the number.
    constants |= {name: dim for name in kernel.arg_names if name.endswith("_stride")}
    if "pair" in kernel.arg_names:
        rows = signature["x_ptr"]
        signature["pair"] = family.RowPair(rows, rows, "constexpr", "constexpr")
        constants["pair"] = family.RowPair(None, None, dim, dim)
    if kind is not None:
        constants["KIND"] = module.KINDS[kind]
        if kind == "angle":
            signature |= dict.fromkeys(("out_ptr", "grad_ptr"), accumulator)
        if kind != "slerp" and "t_ptr" in kernel.arg_names:
            constants |= dict.fromkeys([n for n in ("t_ptr", "dt_ptr") if n in kernel.arg_names])
    signature = {n: k for n, k in signature.items() if n in kernel.arg_names}
    signature = {n: k for n, k in signature.items() if isinstance(k, tuple) or n not in constants}
    assert set(signature) | set(constants) == set(kernel.arg_names)
    return aot.compile_triton(kernel, target, signature, constants, num_warps=config.warps)


def check(*found):
    for r in found:
        report = aot.table([r])
        print(report)
        assert r.stack == 0, report
        assert r.shared <= aot.SHARED[r.target], report


SMALL = [
    ("points", "slerp"),
    ("points_backward", "slerp"),
    ("vectors", "exp"),
    ("vectors_backward", "exp"),
    ("residual", None),
    ("residual_backward", None),
    ("scaled_unit_norm", None),
    ("scaled_unit_norm_backward", None),
    ("segment_sum", None),
]


@pytest.mark.parametrize("target", combinations(aot.TARGETS, everyday=lambda target: target == "sm_90"))
def test_rows_of_512(target):
    for name, kind in SMALL:
        found = resources(target, name, torch.bfloat16, 512, kind)
        check(found)
        if target.startswith("gfx"):
            continue
        if name != "segment_sum":
            # Numbers of the row, and of alpha and the scale in float32, come beside the rows.
            widths = re.findall(r"\b((?:ld|st)\.global)\S*?((?:\.v\d)?\.b\d+)", found.text)
            assert {kind for kind, width in widths if width == ".v4.b32"} == {"ld.global", "st.global"}, found.kernel
            assert not {width for _, width in widths} & {".b16", ".v2.b32"}, f"{sorted(set(widths))} {found.kernel}"
        if "backward" not in name and name != "segment_sum":
            assert found.shared == 0, f"a row of 512 belongs to one warp: {aot.table([found])}"
        if target == "sm_90":
            # What it takes to keep the memory busy: some 24 KB under way to each multiprocessor.
            warps = 4 if name == "segment_sum" else 1
            blocks = aot.blocks_per_multiprocessor(found.registers, found.shared, warps)
            assert blocks * warps >= (15 if name == "residual_backward" else 16), aot.table([found])


# Where a row takes most registers, takes a loop, and is short.
HEAVY = [
    (dtype, dim) for dtype in (torch.float32, torch.float64) for dim in (3, 511, 4096 * 4 // dtype.itemsize, 65536)
]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "dim"), HEAVY)
def test_every_backward(dtype, dim):
    for name, kind in (("points_backward", "slerp"), ("residual_backward", None)):
        check(resources("sm_90", name, dtype, dim, kind))


def test_the_wide_kernels():
    for name, kind in SMALL:
        if name != "segment_sum":  # which has one kernel for all widths
            check(resources("sm_90", name, torch.bfloat16, 65536, kind))


@pytest.mark.slow
def test_the_other_kinds():
    kinds = [("points", "angle"), ("points_backward", "log"), ("vectors", "retract"), ("vectors_backward", "retract")]
    for name, kind in kinds:
        check(resources("sm_90", name, torch.float32, 512, kind))
    for name, kind in [("points", "log"), ("vectors_backward", "exp"), ("scaled_unit_norm_backward", None)]:
        check(resources("sm_90", name, torch.float32, 65536, kind))
