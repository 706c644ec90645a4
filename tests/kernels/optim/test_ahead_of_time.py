"""The Triton kernels of the optimisers compile for every target without spilling, and move 16 bytes at a time."""

import re

import pytest
import torch

from tests.support import aot, combinations
from tests.support.aot import TYPES, name_of, needs_triton

pytestmark = [pytest.mark.aot, needs_triton]


def resources(family, kernel, target, dtype, dim, given):
    from hyperkernels.kernels.optim.triton.kernels import DeviceGradient

    state = "*fp64" if dtype == torch.float64 else "*fp32"
    signature = {"step_ptr": "*i32", "count": "i64", "rows": "i64"}
    signature |= dict.fromkeys(("weight_ptr", "point_ptr"), f"*{TYPES[dtype]}")
    signature |= dict.fromkeys(("buffer_ptr", "mean_ptr", "square_ptr", "largest_ptr"), state)
    pointers = ("*i64", "*fp64", "*fp32", "*fp32") if given else ("constexpr",) * 4
    gradient = DeviceGradient(f"*{TYPES[dtype]}", *pointers)
    if "point_ptr" in kernel.arg_names:
        gradient = gradient._replace(index="constexpr")
    # Numbers of the host are float64 because their parameters are annotated so: the launcher compiles for the same.
    scalars = [p.name for p in kernel.params if p.annotation_type]
    assert all(p.annotation_type == "fp64" for p in kernel.params if p.annotation_type)
    signature |= dict.fromkeys(scalars, "fp64")
    constants = {"NESTEROV": True, "MAXIMIZE": False, "given": DeviceGradient(*[None] * 5)}
    if not given:
        constants["largest_ptr"] = None
    config = family.configuration(dim, dtype.itemsize)
    warps = config.pop("num_warps")
    constants = {name: value for name, value in (constants | config).items() if name in kernel.arg_names}
    signature = {name: kind for name, kind in signature.items() if name in kernel.arg_names and name not in constants}
    signature |= {"given": gradient, "blocks": aot.constants_of(config["blocks"])}
    assert set(signature) | set(constants) == set(kernel.arg_names)
    return aot.compile_triton(kernel, target, signature, constants, num_warps=warps)


def check(family, kernel, target, dtype, dim, given):
    found = resources(family, kernel, target, dtype, dim, given)
    report = aot.table([found])
    print(report)
    # There a division of float64 calls a routine for its rare cases, with a return address on the stack.
    called = 8 if target in ("sm_80", "sm_120") and dtype == torch.float64 else 0
    assert found.stack <= called, report
    if dim % 16 == 0 and not target.startswith("gfx"):
        widths = re.findall(r"\bst\.global\S*?((?:\.v\d)?\.b\d+)", found.text)
        assert {".v4.b32", ".v2.b64"} & set(widths), f"not 16 bytes wide: {widths}, {report}"
    return found


def every_day(target, dtype):
    return target == "sm_90" and dtype == torch.bfloat16


@pytest.mark.parametrize(("target", "dtype"), combinations(aot.TARGETS, TYPES, everyday=every_day), ids=name_of)
def test_optim_in_triton(target, dtype):
    from hyperkernels.kernels.optim.triton import kernels as family

    for kernel, scalars in ((family.sgd_kernel, 4), (family.adamw_kernel, 9)):
        assert sum(bool(p.annotation_type) for p in kernel.params) == scalars
        for dim, given in ((1, False), (511, True), (512, True), (512, False), (4096, True)):
            check(family, kernel, target, dtype, dim, given)


OTHERS = [("sm_80", torch.bfloat16), ("sm_100", torch.float16), ("gfx942", torch.float32), ("gfx942", torch.float64)]
ON_THE_SPHERE = combinations(["sm_90"], TYPES, everyday=every_day)
ON_THE_SPHERE += [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS]


@pytest.mark.parametrize(("target", "dtype"), ON_THE_SPHERE, ids=name_of)
def test_optim_on_the_sphere_in_triton(target, dtype):
    from hyperkernels.kernels.optim.triton import sphere as family

    for kernel, scalars in ((family.sphere_sgd_kernel, 3), (family.sphere_adam_kernel, 8)):
        assert sum(bool(p.annotation_type) for p in kernel.params) == scalars
        for dim, given in ((511, True), (512, False), (4096, True), (20000, True)):
            found = check(family, kernel, target, dtype, dim, given)
            if dim in (512, 4096) and not target.startswith("gfx"):
                # A vector of one block is read once: three arrays of 16 numbers a lane (8 in float64), 16 bytes each.
                assert len(re.findall(r"\bld\.global", found.text)) <= 20, aot.table([found])
