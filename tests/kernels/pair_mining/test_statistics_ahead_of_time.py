"""The kernels of the pair statistics compile for their targets without spilling; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from tests.support import aot, combinations
from tests.support.aot import TYPES, Recorder, name_of, needs_triton
from tests.support.launchers import launchers

pytestmark = pytest.mark.aot
STATISTICS = {  # moments, extremes, transform
    "extremes": (False, True, "none"),
    "moments": (True, False, "none"),
    "linear": (False, False, "linear"),
    "both": (False, True, "linear"),
    "circle": (False, False, "circle"),
    "softplus": (False, False, "softplus"),
    "everything": (True, True, "linear"),
}


def launches(
    monkeypatch, target, dtype, n=65536, m=65536, d=512, select="negative", similarity="dot", asked="extremes",
    window=False, ids=False, labels=torch.int32, columns=False, backward=False,
):  # fmt: skip
    """Every kernel of one call. The tensors have no memory: a launcher that read one would raise."""
    from hyperkernels.kernels.pair_mining.op import Tile
    from hyperkernels.kernels.pair_mining.reference import accumulate_dtype
    from hyperkernels.kernels.pair_mining.triton import backward as triton_backward
    from hyperkernels.kernels.pair_mining.triton import forward as triton_forward
    from hyperkernels.kernels.pair_mining.triton import kernels as triton_kernels
    from hyperkernels.kernels.pair_mining.triton import product as triton_product

    def new(*shape, dtype=accumulate_dtype(dtype)):
        return torch.empty(*shape, dtype=dtype, device="meta")

    moments, extremes, transform = STATISTICS[asked]
    ref = None if m is None else new(m, d, dtype=dtype)
    m = m or n
    label = [new(size, dtype=labels) for size in (n, m)]
    id = [new(size if ids else 0, dtype=torch.int32) for size in (n, m)]
    bounds, ref_bounds = ([new(size) if window else None for _ in range(2)] for size in (n, m))
    given = transform != "none"
    scale, ref_scale = (new(size) if given else None for size in (n, m))
    problem = (new(n, d, dtype=dtype), ref, *label, *id, *bounds, select, similarity)
    of_columns = (columns, *ref_bounds, ref_scale, None) if columns else (False, None, None, None, None)
    noted = []
    with monkeypatch.context() as patch:
        patch.setattr(triton_kernels, "architecture", aot.architecture(target))
        for module in (triton_kernels, triton_forward, triton_backward, triton_product):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, Recorder(getattr(module, name), noted))
        if backward:
            ref_numbers = (new(4, m), new(m) if given else new(0)) if columns else (None, None)
            value = new(n) if given else new(0)
            launchers.pair_statistics_backward(
                *problem,
                new(4, n),
                scale,
                None,
                value,
                *of_columns,
                *ref_numbers,
                transform,
                0.1,
                0.2,
                *Tile(),
                True,
                True,
            )
        else:
            options = (moments, extremes, transform, 0.1, 0.2, *Tile())
            launchers.pair_statistics(*problem, scale, None, *of_columns, *options)
    return noted


def check(monkeypatch, target, dtype, only=(), **problem):
    seen = set()
    for kernel, signature, constants, options in launches(monkeypatch, target, dtype, **problem):
        name = kernel.__name__.removesuffix("_kernel")
        seen.add(name)
        if only and name not in only:
            continue
        found = aot.compile_triton(kernel, target, signature, constants, **options)
        named = aot.named_constants(constants)
        tile = " ".join(f"{key[6:].lower()} {value}" for key, value in named.items() if key.startswith("BLOCK"))
        report = aot.table([found._replace(kernel=f"{name} {TYPES[dtype]} {problem} {tile} {options}")])
        print(report)
        assert found.stack <= aot.SPILLED[target], report
        assert found.shared <= aot.SHARED[target], report
        if target == "sm_90" and dtype.itemsize == 2 and name in ("forward", "gradient", "product"):
            assert named["BLOCK_ROWS"] < 64 or "wgmma.mma_async" in found.text, report
            assert problem.get("d", 512) < 128 or "cp.async" in found.text, report
    assert set(only) <= seen


DTYPES = (torch.bfloat16, torch.float32)
HEAVY = {"similarity": "euclidean", "window": True, "ids": True, "labels": torch.int64}


def every_day(target, dtype):
    return target == "sm_90" and dtype == torch.bfloat16


@needs_triton
@pytest.mark.parametrize(("target", "dtype"), combinations(aot.TARGETS, DTYPES, everyday=every_day), ids=name_of)
def test_every_target(target, dtype, monkeypatch):
    check(monkeypatch, target, dtype, asked="both", similarity="euclidean")
    check(monkeypatch, target, dtype, asked="linear", similarity="euclidean", backward=True)


@pytest.mark.slow
@needs_triton
def test_float64(monkeypatch):
    check(monkeypatch, "sm_90", torch.float64, asked="both", similarity="euclidean")
    check(monkeypatch, "sm_90", torch.float64, asked="linear", similarity="euclidean", backward=True)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("asked", ["both", "softplus"])
def test_the_most_numbers_on_sm_100(asked, monkeypatch):
    check(monkeypatch, "sm_100", torch.float16, ("forward",), asked=asked)
    check(monkeypatch, "sm_100", torch.float16, ("forward",), asked=asked, **HEAVY)
    check(monkeypatch, "sm_100", torch.float16, ("gradient",), asked=asked, backward=True, columns=True, **HEAVY)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("asked", STATISTICS)
def test_every_statistic_on_sm_90(asked, monkeypatch):
    forward, backward = ("forward",), ("gradient",)
    check(monkeypatch, "sm_90", torch.bfloat16, forward, asked=asked)
    check(monkeypatch, "sm_90", torch.bfloat16, forward, asked=asked, **HEAVY)
    check(monkeypatch, "sm_90", torch.bfloat16, backward, asked=asked, backward=True, columns=True, **HEAVY)
    check(monkeypatch, "sm_90", torch.bfloat16, backward, asked=asked, backward=True, m=None, ids=True)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("problem", [{"n": 1, "d": 64}, {"d": 500}, {"d": 2048}, {"select": "positive", "m": None}])
def test_other_sizes(problem, monkeypatch):
    check(monkeypatch, "sm_90", torch.float16, ("forward",), **problem)
    if problem.get("d", 64) > 64:
        check(monkeypatch, "sm_90", torch.float16, ("product",), backward=True, **problem)
