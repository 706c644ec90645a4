"""Every production configuration of the class softmax compiles for its targets without spilling; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.margin_softmax.problem import Options, plan_triton
from tests.support import aot, combinations
from tests.support.aot import TYPES, Recorder, name_of, needs_triton
from tests.support.launchers import launchers

pytestmark = pytest.mark.aot


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
        sizes = {key: size for key, size in aot.named_constants(constants).items() if key.startswith("BLOCK")}
        tile = " ".join(f"{key[6:].lower()} {size}" for key, size in sizes.items())
        where = f"{TYPES[dtype]} {problem} {tile} {options}"
        blocks = (
            f"{min(65536 // (32 * options['num_warps'] * max(found.registers, 1)), 2**18 // (found.shared + 1024))}"
        )
        report = aot.table([found._replace(kernel=f"{blocks} blocks  {name} {where}")])
        print(report)
        assert found.stack <= aot.SPILLED[target], report
        assert found.shared <= aot.SHARED[target], report
        rows = sizes["BLOCK_CLASSES" if name == "weight" else "BLOCK_ROWS"]
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
@pytest.mark.parametrize(("target", "case"), combinations(aot.TARGETS, PLAIN, everyday=every_day), ids=name_of)
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
@pytest.mark.parametrize("case", SAMPLED, ids=name_of)
@pytest.mark.parametrize("target", aot.TARGETS)
def test_sampled_classes_of_margin_softmax_in_triton(target, case, monkeypatch):
    """The kernels that read the weight by index, at the same tiles."""
    dtype, problem = case
    only = TILED if dtype == torch.bfloat16 or target == "sm_90" else TILED[:1]
    margin_softmax_check(monkeypatch, target, dtype, ALL if case == PLAIN_SAMPLED else only, **problem)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("problem", [{"n": 1, "d": 64}, {"d": 500}, {"d": 3}, {"c": 10**8}], ids=name_of)
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
@pytest.mark.parametrize(("dtype", "only", "problem"), MORE, ids=name_of)
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
