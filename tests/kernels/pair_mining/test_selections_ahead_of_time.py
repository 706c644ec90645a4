"""The Triton kernels that return pairs compile for their targets without spilling; no GPU is needed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining.reference import PairProblem
from tests.support import aot
from tests.support.aot import TYPES, Recorder, needs_triton
from tests.support.launchers import launchers

pytestmark = [pytest.mark.aot, needs_triton]
TILE = (256, 512)
KERNELS = ("kernels", "top_k", "lists", "samples", "bins", "product", "values")
PRODUCTS = ("list", "key", "pair", "draw", "bin", "weight")  # kernels with a tile of similarities


def launches(monkeypatch, target, dtype, n=65536, m=65536, d=512, k=10, draws=4, select="negative", similarity="dot",
             bits=False, window=True, own=False, only=("top_k", "long", "list", "sample", "bins", "values"),
):  # fmt: skip
    """The kernels that the launchers of `only` would run. The tensors have no memory: nothing is computed."""

    def new(*shape, dtype=accumulate_dtype(dtype)):
        return torch.empty(*shape, dtype=dtype, device="meta")

    noted = []
    with monkeypatch.context() as patch:
        for name in KERNELS:
            module = importlib.import_module(f"hyperkernels.kernels.pair_mining.triton.{name}")
            for kernel in [v for v in vars(module) if v.endswith("_kernel")]:
                patch.setattr(module, kernel, Recorder(getattr(module, kernel), noted))
        kernels = importlib.import_module("hyperkernels.kernels.pair_mining.triton.kernels")
        patch.setattr(kernels, "architecture", aot.architecture(target))
        m = n if own else m
        label, id = torch.int64 if bits else torch.int32, torch.int32
        problem = PairProblem(
            new(n, d, dtype=dtype), None if own else new(m, d, dtype=dtype), new(n, dtype=label), new(m, dtype=label),
            new(n, dtype=id), new(m, dtype=id), *([new(n), new(n)] if window else [None, None]), select, similarity,
        )  # fmt: skip
        offsets = new(n + 1, dtype=torch.int64)
        if "top_k" in only:
            launchers.pair_top_k(*problem, k, *TILE)
        if "long" in only:
            launchers.pair_top_k(*problem, 100, *TILE)
        if "list" in only:
            launchers.pair_count(*problem, *TILE)
            launchers.pair_list(*problem, offsets, 1000, *TILE)
        if "sample" in only:
            weights = "distance" if similarity == "euclidean" else "exponential"
            launchers.pair_sample(*problem, draws, 2**40, weights, 1.0, 0.5, 2.0, *TILE)
        if "bins" in only:
            edges = new(10 * n)
            launchers.pair_bins(*problem, edges, offsets, *TILE)
            launchers.pair_bins_backward(*problem, edges, offsets, new(11 * n), *TILE, True, True)
        if "values" in only:
            pairs = [new(1000, dtype=torch.int64) for _ in range(2)]
            launchers.pair_values(*problem[:2], *pairs, similarity)
            launchers.pair_values_backward(new(1000), *problem[:2], *pairs, similarity, True, True)
    return noted


def check(monkeypatch, target, dtype, **problem):
    seen = set()
    for kernel, signature, constants, options in launches(monkeypatch, target, dtype, **problem):
        name = kernel.__name__.removesuffix("_kernel")
        seen.add(name)
        found = aot.compile_triton(kernel, target, signature, constants, **options)
        warps = options["num_warps"]
        blocks = min(65536 // (32 * warps * max(found.registers, 1)), 2**18 // (found.shared + 1024))
        named = aot.named_constants(constants)
        tile = " ".join(f"{key[6:].lower()} {value}" for key, value in named.items() if key.startswith("BLOCK"))
        report = aot.table(
            [found._replace(kernel=f"{blocks} blocks  {name} {TYPES[dtype]} {problem} {tile} {options}")]
        )
        print(report)
        assert found.stack <= aot.SPILLED[target], report
        assert found.shared <= aot.SHARED[target], report
        if target == "sm_90" and dtype.itemsize == 2 and name in PRODUCTS:
            assert "wgmma.mma_async" in found.text, report
            assert "cp.async" in found.text, report
    return seen


@pytest.mark.parametrize(
    ("launcher", "kernels"),
    {
        "top_k": {"list"},
        "long": {"key"},
        "list": {"pair"},
        "sample": {"draw"},
        "bins": {"bin", "weight", "product"},
        "values": {"values", "gather"},
    }.items(),
)
def test_every_kernel(launcher, kernels, monkeypatch):
    assert check(monkeypatch, "sm_90", torch.bfloat16, only=(launcher,)) - {"bound"} == kernels


@pytest.mark.slow
@pytest.mark.parametrize("only", ["top_k", "list", "sample", "bins"])
@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        ("sm_80", torch.bfloat16),
        ("sm_100", torch.float16),
        ("gfx942", torch.bfloat16),
        ("sm_90", torch.float32),
        ("sm_120", torch.bfloat16),
    ],
    ids=lambda v: TYPES.get(v, v),
)
def test_other_targets(target, dtype, only, monkeypatch):
    check(monkeypatch, target, dtype, similarity="euclidean", only=(only,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "dtype"), [("sm_80", torch.float32), ("gfx942", torch.float64)], ids=lambda v: TYPES.get(v, v)
)
def test_wide_numbers(target, dtype, monkeypatch):
    check(monkeypatch, target, dtype, only=("long", "list"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=TYPES.get)
def test_the_largest_lists(dtype, monkeypatch):
    check(monkeypatch, "sm_90", dtype, k=64 if dtype.itemsize == 2 else 32, draws=32, only=("top_k", "sample"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem",
    [
        {"bits": True, "d": 100},
        {"select": "all", "window": False, "d": 2048},
        {"own": True, "similarity": "squared_euclidean"},
        {"m": 2**24},
    ],
)
def test_other_problems(problem, monkeypatch):
    """On sm_90: sets of labels, no bounds, ref as x itself, other widths, more than 2^31 elements."""
    check(monkeypatch, "sm_90", torch.bfloat16, only=("top_k", "list"), **problem)
