"""Triton's own JIT on tensors of the CPU, with a CUDA driver that executes nothing.

The argument specialiser, the compiler, ptxas and the launcher are Triton's, and so is every line of a launcher of ours;
`stub_libcuda.c` stands for the driver of an H200. What the kernels would have written stays zero.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import importlib
import inspect
import math
import os
import pkgutil
import subprocess
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

CAPABILITY = (9, 0)

stub: ctypes.CDLL
compiled: dict[str, dict[str, Any]] = {}  # by kernel and hash, what Triton has launched


def _library() -> ctypes.CDLL:
    """The stub, in the process and where Triton's build of its helpers looks for the driver."""
    from triton import knobs

    source = Path(__file__).with_name("stub_libcuda.c")
    folder = Path(knobs.cache.dir) / "pretend_driver"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libcuda.so.1"
    new = folder / f"{os.getpid()}.so"  # another process may have the library open
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", str(new), str(source)]
    subprocess.run(command, check=True)
    new.rename(library)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _driver() -> Any:
    from triton.backends.nvidia import driver

    class PretendDriver(driver.CudaDriver):
        def __init__(self) -> None:  # CudaDriver's asks torch for its GPU
            self.utils = driver.CudaUtils()
            self.launcher_cls = driver.CudaLauncher
            self.get_device_capability = lambda device=0: CAPABILITY
            self.get_current_stream = lambda device=0: 0
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    return PretendDriver()


def _recording(run: Any) -> Any:
    def record(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        before = stub.stub_launches()
        handle = run(self, *arguments, grid=grid, warmup=warmup, **options)
        if stub.stub_launches() == before:
            # Triton leaves out a grid without programs, and takes one of more than 2^31 for such a one.
            raise ValueError(f"{self.__name__} was not launched: its grid is {grid}, {math.prod(grid)} programs")
        compiled.setdefault(name_of(self), {})[handle.hash] = handle
        return handle

    return record


def _zeroed(make: Any) -> Any:
    return functools.wraps(make)(lambda *arguments, **named: make(*arguments, **named).zero_())


def install() -> None:
    """Make Triton launch through the stub, and the Triton backend take tensors of the CPU."""
    assert not torch.cuda.is_available(), "there is a GPU here: it needs no rehearsal"
    global stub
    stub = _library()
    stub.stub_launches.restype = ctypes.c_long

    import triton
    from triton.runtime.jit import JITFunction

    from hyperkernels import _backend

    triton.runtime.driver.set_active(_driver())
    JITFunction.run = _recording(JITFunction.run)
    _backend._interpreting = lambda: True
    # Indices that no kernel has written must still be indices.
    torch.empty, torch.empty_like, torch.Tensor.new_empty = map(
        _zeroed, (torch.empty, torch.empty_like, torch.Tensor.new_empty)
    )


def name_of(function: Any) -> str:
    return f"{function.module}.{function.__name__}"


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if "triton" in found.name.split("."):
            yield importlib.import_module(found.name)


def _named(function: Any) -> Iterator[Any]:
    """The values of the global names and of their attributes that stand in a JIT function."""
    scope = function.fn.__globals__
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function.fn)))):
        if isinstance(node, ast.Name):
            yield scope.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield getattr(scope.get(node.value.id), node.attr, None)


def kernels_of(modules: Iterable[ModuleType]) -> set[str]:
    """The JIT functions that no other one calls: those are for launchers."""
    from triton.runtime.jit import JITFunction

    own = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, JITFunction) and value.module == module.__name__
    ]
    called = {name_of(value) for f in own for value in _named(f) if isinstance(value, JITFunction) and value is not f}
    return {name_of(f) for f in own} - called
