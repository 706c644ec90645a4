"""Every Triton kernel is launched in one way: on the device of its tensors, in a grid of one dimension.

A launch is only noted and the tensors have no memory: their device, "meta", stands for that of a second GPU.
"""

import ast
import importlib.util

import pytest
import torch

from hyperkernels.kernels.margin_softmax.problem import Options
from tests.support import ROOT
from tests.support.launchers import launchers

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

MODULES = sorted((ROOT / "hyperkernels" / "kernels").glob("*/triton/*.py"))
DEVICE = torch.device("meta")
TILE = (8, 64)  # of the C++ kernels


def number(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device=DEVICE)


def integer(*shape):
    return number(*shape, dtype=torch.int64)


def unit_norm():
    for dim in (8, 70000):
        x = number(3, dim)
        launchers.unit_norm(x, 1e-12)
        launchers.unit_norm_(x, 1e-12)
        launchers.unit_norm_backward(x, x, 1e-12)


def sphere():
    for dim in (8, 70000):
        x, y, alpha, scale = number(4, dim), number(4, dim), number(dim), number(2, dim)
        launchers.sphere_points(x, y, number(4), "slerp")
        launchers.sphere_points_backward(x, x, y, number(4), "slerp", True, True, True)
        launchers.sphere_vectors(x, y, "exp")
        launchers.sphere_vectors_backward(x, x, y, "exp", True, True)
        launchers.sphere_residual(x, y, alpha)
        launchers.sphere_residual_backward(x, x, y, alpha, True, True, True)
        launchers.scaled_unit_norm(x, scale)
        launchers.scaled_unit_norm_backward(x, x, scale, True, True)
        launchers.segment_sum(x, integer(4), integer(4), integer(3))


def optim():
    x, step, no_tensors = number(5, 8), number(5, dtype=torch.int32), (None, None, None)
    launchers.sgd_rows_(x, x, step, x, None, *no_tensors, 0.1, 0.9, 0.0, 0.0, False, False)
    launchers.adamw_rows_(x, x, x, step, x, None, *no_tensors, 0.1, 0.9, 0.99, 1e-8, 0.0, False)
    launchers.sphere_sgd_([x], [x], [step], [x], *no_tensors, 0.1, 0.9, 0.0, False, False)
    launchers.sphere_adam_([x], [x], [number(5)], [number(5)], [step], [x], *no_tensors, 0.1, 0.9, 0.99, 1e-8, False)


def margin_softmax():
    problem = (number(5, 8), number(70, 8), integer(5), number(5), number(70), number(70), None, None)
    constants = (*Options("cosine"), 32, 0)
    out = launchers.class_statistics(*problem, *constants, 0.1, None)
    saved = (out[2], out[6], out[9], out[10], out[12], out[14], number(1, 3, dtype=torch.uint8))
    launchers.class_statistics_backward(*(number(5) for _ in range(4)), *problem, *saved, *constants, *[True] * 4)


def pairs(n=20, m=30):
    """The first arguments of an op that looks at pairs."""
    labels = [number(size, dtype=torch.int32) for size in (n, m)]
    return (number(n, 8), number(m, 8), *labels, *labels, None, None, "negative", "euclidean")


def pair_statistics():
    scales, nothing = (number(20), number(30)), (None, None)
    of_columns = (True, *nothing, scales[1], None)
    launchers.pair_statistics(*pairs(), scales[0], None, *of_columns, True, True, "linear", 0.1, 0.2, *TILE)
    launchers.pair_statistics_backward(
        *pairs(), number(4, 20), scales[0], None, number(20), *of_columns, number(4, 30), number(30), "linear", 0.1,
        0.2, *TILE, True, True,
    )  # fmt: skip


def pair_selections():
    edges, offsets, at = number(40), integer(21), (integer(9), integer(9))
    launchers.pair_top_k(*pairs(), 5, *TILE)
    launchers.pair_top_k(*pairs(m=100), 80, *TILE)  # more than a list in registers holds
    launchers.pair_count(*pairs(), *TILE)
    launchers.pair_list(*pairs(), offsets, 60, *TILE)
    launchers.pair_sample(*pairs(), 300_000, 7, "exponential", 1.0, 0.0, 1.0, *TILE)
    launchers.pair_bins(*pairs(), edges, offsets, *TILE)
    launchers.pair_bins_backward(*pairs(), edges, offsets, number(60), *TILE, True, True)
    launchers.pair_values(number(5, 8), number(6, 8), *at, "euclidean")
    # As many columns as give more blocks of them than the second dimension of a grid has places.
    wide = number(2, 512 * 70_000)
    launchers.pair_values_backward(number(9), wide, wide, *at, "euclidean", True, True)


FAMILIES = (unit_norm, sphere, optim, margin_softmax, pair_statistics, pair_selections)


def kernels():
    """The names, with their modules', of all kernels of the package."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                yield ".".join((*file.relative_to(ROOT).with_suffix("").parts, node.name))


@pytest.fixture
def noted(monkeypatch):
    """(name, grid, options, device of the guard, devices of the tensors) of every launch."""
    from triton.runtime.jit import JITFunction

    launches, guards = [], []

    class Guard:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            guards.append(self.device)

        def __exit__(self, *_):
            guards.pop()

    def tensors(values):
        for value in values:
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, tuple):
                yield from tensors(value)

    def run(self, *args, grid, warmup, **named):
        own = {name: value for name, value in named.items() if name not in self.arg_names}
        devices = {tensor.device for tensor in tensors(args)}
        launches.append((f"{self.__module__}.{self.__name__}", grid, own, guards[-1:], devices))

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    monkeypatch.setattr(JITFunction, "run", run)
    return launches


def test_every_kernel_is_launched_on_the_device_of_its_tensors(noted):
    for family in FAMILIES:
        family()
    for name, grid, options, guard, devices in noted:
        assert devices == {DEVICE}, name
        assert guard == [DEVICE], f"{name} is launched outside of the guard"
        assert len(grid) == 1 and 0 < grid[0] < 2**31, f"{name} has the grid {grid}"
        assert options["enable_fp_fusion"] is True, name
    assert {name for name, *_ in noted} == set(kernels())


def test_no_kernel_is_launched_in_another_way():
    """A launch is a call of something subscripted: `launch` holds the only one."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Subscript, ast.Attribute)):
                called = ast.unparse(node.func)
                assert "kernel" not in called.split("[")[0].split(".")[-1], f"{file.name}: {called}"
                assert called.split(".")[-1] not in ("run", "warmup"), f"{file.name}: {called}"
