"""Every production configuration of the GPU kernels compiles for its targets without spilling; no GPU is needed.

Everyday, in this file and its neighbours, each kernel is compiled for sm_90 in bfloat16.
"""

from __future__ import annotations

import importlib.util
import re

import aot
import pytest
import torch
from launchers import launchers
from support import ROOT, combinations

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.margin_softmax.problem import Options, plan_triton

TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

pytestmark = pytest.mark.aot
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_nvcc = pytest.mark.skipif(aot.NVCC is None, reason="nvcc is not on the PATH")


def name(value):
    """Of a target, a dtype, or what else a case consists of."""
    if isinstance(value, tuple):
        return " ".join(map(name, value))
    if isinstance(value, dict):
        return " ".join(f"{key} {v}" for key, v in value.items()) or "plain"
    return TYPES.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


# Every line of the table in unit_norm's configuration; 511 for rows that are not aligned, 3 for very short ones.
UNIT_NORM_WIDTHS = (3, 64, 128, 256, 511, 512, 1024, 2048, 4096, 8192, 16384, 65536)


def unit_norm_resources(target: str, dtype: torch.dtype, dim: int) -> list[aot.Resources]:
    from hyperkernels.kernels.unit_norm.triton import kernels as family

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


def unit_norm_case_is_of_every_day(target, dtype, dim):
    return target == "sm_90" and dtype == torch.bfloat16 and dim in (511, 512, 8192)


# float16 and float64 differ from their neighbours in a conversion and in width: the full table is for sm_90.
UNIT_NORM_CASES = [
    case for case in combinations(aot.TARGETS, TYPES, UNIT_NORM_WIDTHS, everyday=unit_norm_case_is_of_every_day)
    if case.values[0] == "sm_90" or case.values[1] in (torch.float32, torch.bfloat16)
    or case.values[2] in (3, 512, 8192, 65536)
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize(("target", "dtype", "dim"), UNIT_NORM_CASES, ids=name)
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
@pytest.mark.parametrize(
    "target", combinations(("sm_90", "sm_80", "sm_100", "sm_120"), everyday=lambda t: t == "sm_90")
)
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


NAMES = TYPES | {torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}


def _type_of(value):
    if isinstance(value, tuple):
        return type(value)(*map(_type_of, value))
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    if isinstance(value, int):
        return "i32" if abs(value) < 2**31 else "i64"
    return "constexpr"


class Recorder:
    """Stands for a kernel: notes what it would be compiled for, once each, and runs nothing."""

    def __init__(self, kernel, noted):
        self.kernel, self.noted = kernel, noted

    def __getitem__(self, grid):
        assert all(isinstance(size, int) and 0 < size < 2**31 for size in grid)
        return self.note

    def note(self, *arguments, **named):
        order = self.kernel.arg_names
        signature, constants = {}, {name: value for name, value in named.items() if name in order}
        for name, value in zip(order, arguments, strict=False):
            kind = _type_of(value)
            if kind != "constexpr":
                signature[name] = kind
            if isinstance(value, tuple):
                constants[name] = type(value)(
                    *(v if k == "constexpr" else None for v, k in zip(value, kind, strict=True))
                )
            elif kind == "constexpr":
                constants[name] = value
        assert set(order) == set(signature) | set(constants), self.kernel.__name__
        options = {name: value for name, value in named.items() if name not in order}
        entry = (self.kernel, signature, constants, options)
        if entry not in self.noted:
            self.noted.append(entry)


def margin_softmax_launches(
    monkeypatch,
    target,
    dtype,
    n=1024,
    c=1_000_000,
    d=512,
    kind="cosine",
    sub_centers=1,
    per_class=False,
    skip=False,
    sampled=None,
):
    """Every kernel of one forward and backward. The tensors have no memory: a launcher that read one would raise."""
    from hyperkernels.kernels.margin_softmax.negatives import KINDS
    from hyperkernels.kernels.margin_softmax.triton import kernels as family

    def new(*shape, dtype=accumulate_dtype(dtype)):
        return torch.empty(*shape, dtype=dtype, device="meta")

    noted = []
    with monkeypatch.context() as patch:
        patch.setattr(family, "architecture", aot.architecture(target))
        for name in [name for name in vars(family) if name.endswith("_kernel")]:
            patch.setattr(family, name, Recorder(getattr(family, name), noted))
        problem = (
            new(n, d, dtype=dtype),
            new(c * sub_centers, d, dtype=dtype),
            new(n, dtype=torch.int64),
            new(n),
            *([new(sampled or c), new(sampled or c)] if per_class else [None, None]),
            new(n, len(KINDS[kind])) if KINDS[kind] else None,
            new(sampled, dtype=torch.int64) if sampled else None,
        )
        count = sampled or c
        block, kept_blocks = plan_triton(n, count, sub_centers, d, dtype, None)
        constants = (*Options(kind, sub_centers), block, kept_blocks)
        out = launchers.class_statistics(*problem, *constants, 0.1 if skip else 0.0, None)
        plan = new(*((-(-n // 128), -(-count // block)) if skip else (0,)), dtype=torch.uint8)
        saved = (out[2], out[6], out[9], out[10], out[12], out[14], plan)
        incoming = [new(n) for _ in range(4)]
        launchers.class_statistics_backward(*incoming, *problem, *saved, *constants, True, True, per_class, per_class)
    assert {kernel.__name__ for kernel, *_ in noted} == {n for n in vars(family) if n.endswith("_kernel")}
    return noted


TILED = ("forward", "gradient", "weight", "input")


def margin_softmax_check(monkeypatch, target, dtype, only=TILED, **problem):
    for kernel, signature, constants, options in margin_softmax_launches(monkeypatch, target, dtype, **problem):
        name = kernel.__name__.removesuffix("_kernel")
        if only and name not in only:
            continue
        found = aot.compile_triton(kernel, target, signature, constants, **options)
        tile = " ".join(f"{key[6:].lower()} {value}" for key, value in constants.items() if key.startswith("BLOCK"))
        where = f"{TYPES[dtype]} {problem} {tile} {options}"
        blocks = (
            f"{min(65536 // (32 * options['num_warps'] * max(found.registers, 1)), 2**18 // (found.shared + 1024))}"
        )
        report = aot.table([found._replace(kernel=f"{blocks} blocks  {name} {where}")])
        print(report)
        assert found.stack <= aot.SPILLED[target], report
        assert found.shared <= aot.SHARED[target], report
        rows = constants["BLOCK_CLASSES" if name == "weight" else "BLOCK_ROWS"]
        if target == "sm_90" and dtype.itemsize == 2 and name in TILED:
            assert rows < 64 or "wgmma.mma_async" in found.text, report
            assert problem.get("d", 512) < 128 or "cp.async" in found.text, report


ALL = ()
HEADS = [(kind, per_class) for kind in ("quadratic", "gaussian", "angle", "sface", "sphereface2", "uniface")
         for per_class in (False, True)]  # fmt: skip


DTYPES = (torch.bfloat16, torch.float64, torch.float32, torch.float16)
# A dtype and a problem: the plain head in every dtype, skipping tiles, with three sub-centres, at few rows and at other
# widths.
PLAIN = [(dtype, {}) for dtype in DTYPES]
PLAIN += [(torch.bfloat16, problem) for problem in ({"skip": True}, {"sub_centers": 3}, {"n": 1, "d": 64}, {"d": 500})]


def every_day(target, case):
    return target == "sm_90" and case == PLAIN[0]


@needs_triton
@pytest.mark.parametrize(("target", "case"), combinations(aot.TARGETS, PLAIN, everyday=every_day), ids=name)
def test_margin_softmax_in_triton(target, case, monkeypatch):
    dtype, problem = case
    only = TILED if problem else ALL if dtype == torch.bfloat16 else ("forward", "weight")
    margin_softmax_check(monkeypatch, target, dtype, only, **problem)


@pytest.mark.slow
@needs_triton
def test_the_largest_tiles_of_margin_softmax_on_sm_120(monkeypatch):
    margin_softmax_check(monkeypatch, "sm_120", torch.bfloat16, ("forward", "gradient"))


PLAIN_SAMPLED = (torch.bfloat16, {"sampled": 100_000})
SAMPLED = [PLAIN_SAMPLED, *((dtype, {"sampled": 1000}) for dtype in DTYPES[1:])]
SAMPLED += [
    (torch.bfloat16, {"sampled": 100_000, **problem})
    for problem in ({"skip": True}, {"sub_centers": 3}, {"kind": "quadratic", "per_class": True})
]


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("case", SAMPLED, ids=name)
@pytest.mark.parametrize("target", aot.TARGETS)
def test_sampled_classes_of_margin_softmax_in_triton(target, case, monkeypatch):
    """The kernels that read the weight by index, at the same tiles."""
    dtype, problem = case
    only = TILED if dtype == torch.bfloat16 or target == "sm_90" else TILED[:1]
    margin_softmax_check(monkeypatch, target, dtype, ALL if case == PLAIN_SAMPLED else only, **problem)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("problem", [{"n": 1, "d": 64}, {"d": 500}, {"d": 3}, {"c": 10**8}], ids=name)
def test_other_sizes_of_sampled_classes_of_margin_softmax_in_triton(problem, monkeypatch):
    margin_softmax_check(monkeypatch, "sm_90", torch.bfloat16, sampled=1000, **problem)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("kind", "per_class"), [("cosine", True), *HEADS])
def test_every_head_of_margin_softmax_in_triton(kind, per_class, monkeypatch):
    problem = {"kind": kind, "per_class": per_class}
    margin_softmax_check(monkeypatch, "sm_90", torch.bfloat16, ("forward", "gradient", "merge"), **problem)
    if kind in ("quadratic", "angle"):
        for target in ("sm_80", "sm_100", "gfx942"):
            margin_softmax_check(monkeypatch, target, torch.bfloat16, ("forward", "gradient"), **problem)


# On sm_90: other batches and widths, and classes past 2^31 / D; full float32 with its heads.
MORE = [
    *((torch.bfloat16, TILED, {"n": n}) for n in (16, 32, 64)),
    *((torch.bfloat16, TILED, {"d": d}) for d in (64, 128, 1024, 3, 1000)),
    (torch.bfloat16, TILED, {"sub_centers": 2, "kind": "quadratic", "per_class": True}),
    (torch.bfloat16, ("forward",), {"c": 10**8}),
    *(
        (torch.float32, ("forward", "gradient", "merge"), problem)
        for problem in ({"kind": "angle"}, {"kind": "angle", "per_class": True}, {"sub_centers": 3}, {"n": 1})
    ),
]


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("dtype", "only", "problem"), MORE, ids=name)
def test_more_of_margin_softmax_in_triton(dtype, only, problem, monkeypatch):
    margin_softmax_check(monkeypatch, "sm_90", dtype, only, **problem)


@pytest.mark.slow
@needs_triton
def test_margin_softmax_in_tf32(monkeypatch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        margin_softmax_check(monkeypatch, "sm_90", torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
