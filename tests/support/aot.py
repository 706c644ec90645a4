"""Ahead-of-time compilation: what the compilers say about a kernel, on a machine without a GPU.

Every day each kernel is compiled for sm_90 in bfloat16.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

TARGETS = ("sm_90", "sm_80", "sm_100", "sm_120", "gfx942")
# Bytes of shared memory that one block can have.
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "sm_120": 99 * 1024, "gfx942": 64 * 1024}
# Bytes that a thread may spill: sm_120 takes the tiles of sm_80, and the compiler needs more registers there.
SPILLED = {"sm_80": 0, "sm_90": 0, "sm_100": 0, "sm_120": 136, "gfx942": 0}
# As torch.utils.cpp_extension compiles: the half types without their operators and conversions.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
]
NVCC = shutil.which("nvcc")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")

TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


FOUND: list[dict[str, Any]] = []  # what was compiled, for `--compiled FILE`


class Resources(NamedTuple):
    """Of one kernel: registers of a thread, its stack (spills included) and the shared memory of a block, in bytes."""

    kernel: str
    target: str
    registers: int
    stack: int
    shared: int
    text: str  # PTX, AMD assembly, or SASS


def architecture(target: str) -> Callable[[Any], str]:
    """Stands for `_gpu.architecture` in launchers whose tensors are on no device: as if they were on the target's."""
    from hyperkernels.kernels.triton import gpu as _gpu

    return lambda device: "gfx" if target.startswith("gfx") else _gpu.table(int(target[3:]) // 10)


def _field(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern!r} in the compiler's report:\n{text[:2000]}"
    return int(match.group(1))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _cuobjdump() -> str:
    """Triton's wheel carries one; else the one of the CUDA toolkit."""
    import triton

    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump") or "cuobjdump"


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and its stack in bytes, of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = _run(_cuobjdump(), "-res-usage", file.name)
    return _field(r"REG:(\d+)", said), _field(r"STACK:(\d+)", said)


def _leaves(path: tuple[int, ...], kind: Any, value: Any) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    """(path, Triton type, value) of an argument, or of everything in a tuple."""
    if not isinstance(kind, tuple):
        yield path, kind, value
        return
    for i, (inner, own) in enumerate(zip(kind, value, strict=True)):
        yield from _leaves((*path, i), inner, own)


def constants_of(value: Any) -> Any:
    """The types of a tuple of constants."""
    return type(value)(*["constexpr"] * len(value))


def named_constants(constants: Mapping[str, Any]) -> dict[str, Any]:
    """The constants of a kernel, those in tuples among them."""
    named = {}
    for name, value in constants.items():
        found = value._asdict() if isinstance(value, tuple) else {name: value}
        named |= {key: getattr(v, "value", v) for key, v in found.items() if v is not None}
    return named


def compile_triton(
    kernel: Any,
    target: str,
    signature: Mapping[str, Any],
    constants: Mapping[str, Any],
    **options: Any,
) -> Resources:
    """Compile one specialisation as the launcher would.

    Args:
        kernel: the function under `triton.jit`.
        target: "sm_80", "sm_90", ..., or "gfx942".
        signature: Triton type by argument name, such as ``{"x_ptr": "*bf16", "rows": "i32"}``. Pointers are taken to be
            16-byte aligned: otherwise no access is vectorised and the report lies. For an argument that is a tuple, a
            tuple of the same class, with "constexpr" for its constants.
        constants: the tl.constexpr arguments; for a tuple one of the same class, with None where it has no constant.
        options: num_warps, num_stages; what every launch asks for is added.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hyperkernels.kernels.triton.launch import FP_FUSION

    options = {"enable_fp_fusion": FP_FUSION} | options
    order = kernel.arg_names
    types = {name: signature.get(name, "constexpr") for name in order}
    pointed: list[str] = []
    values: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], Any] = {}
    for i, (argument, types_of) in enumerate(types.items()):
        for path, kind, value in _leaves((i,), types_of, constants.get(argument, types_of)):
            if kind == "constexpr":
                values[path] = value
            elif kind.startswith("*"):
                aligned[path] = [["tt.divisibility", 16]]
                pointed.append(kind[1:])
    source = ASTSource(kernel, types, values, aligned)
    pointers = sorted({types[argument] for argument in signature if isinstance(types[argument], str)})
    name = f"{kernel.__name__} {' '.join(pointers)} {named_constants(constants)} {options}"
    if target.startswith("gfx"):
        compiled = triton.compile(source, target=GPUTarget("hip", target, 64), options=options)
        text = compiled.asm["amdgcn"]
        registers = _field(r"\.vgpr_count:\s+(\d+)", text)
        stack = _field(r"\.private_segment_fixed_size:\s+(\d+)", text)
    else:
        compiled = triton.compile(source, target=GPUTarget("cuda", int(target[3:]), 32), options=options)
        text = compiled.asm["ptx"]
        registers, stack = usage(compiled.asm["cubin"])
    _note(
        f"{kernel.__module__.removeprefix('hyperkernels.').split('.')[0]}.{kernel.__name__.removesuffix('_kernel')}",
        target,
        next((kind for kind in pointed if "f" in kind), ""),
        " x ".join(str(value) for key, value in named_constants(constants).items() if key.startswith("BLOCK")),
        options.get("num_warps", 4),
        (registers, stack, compiled.metadata.shared),
    )
    return Resources(name, target, registers, stack, compiled.metadata.shared, text)


_MANGLED = {"d": "fp64", "f": "fp32", "13__nv_bfloat16": "bf16", "6__half": "fp16", "": ""}


def _note(kernel: str, target: str, dtype: str, tile: str, warps: int, used: tuple[int, int, int]) -> None:
    registers, stack, shared = used
    entry = {"kernel": kernel, "target": target, "dtype": dtype, "tile": tile, "warps": warps}
    entry |= {"registers": registers, "stack": stack, "shared": shared}
    if target == "sm_90" and warps:
        entry["blocks"] = blocks_per_multiprocessor(registers, shared, warps)
    if entry not in FOUND:
        FOUND.append(entry)


def blocks_per_multiprocessor(registers: int, shared: int, warps: int) -> int:
    """How many blocks are at once on a multiprocessor of sm_90; registers are given out by 8 a thread."""
    by_registers = 65536 // (32 * warps * max(-(-registers // 8) * 8, 8))
    return min(by_registers, 228 * 1024 // (shared + 1024), 64 // warps, 32)


def compile_cuda(source: Path, targets: Iterable[str], includes: Iterable[Path] = ()) -> list[Resources]:
    """Compile a .cu file as the build does and report every kernel in it."""
    found: list[Resources] = []
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for target in targets:
            cubin = str(Path(folder) / f"{target}.cubin")
            flags = [*NVCC_FLAGS, "-Xptxas", "-v", f"-arch={target}", *(f"-I{path}" for path in includes)]
            command = [str(NVCC), *flags, "-cubin", "-o", cubin, str(source)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running.append((target, cubin, process))
        for target, cubin, process in running:
            log, _ = process.communicate()
            assert process.returncode == 0, log
            sass = _sass_by_kernel(cubin)
            for entry in log.split("Compiling entry function '")[1:]:
                kernel = entry.split("'")[0]
                spilled = _field(r"(\d+) bytes spill stores", entry) + _field(r"(\d+) bytes spill loads", entry)
                stack = _field(r"(\d+) bytes stack frame", entry) + spilled
                registers = _field(r"Used (\d+) registers", entry)
                shared = sum(map(int, re.findall(r"(\d+) bytes smem", entry)))
                found.append(Resources(kernel, target, registers, stack, shared, sass[kernel]))
                name, letter = re.search(r"\d([a-z_]+)_kernelI(d|f|13__nv_bfloat16|6__half|)", kernel).groups()
                _note(f"{source.parent.name}.{name}, CUDA C++", target, _MANGLED[letter], "", 0, found[-1][2:5])
    return found


def _sass_by_kernel(cubin: str) -> dict[str, str]:
    parts = _run(_cuobjdump(), "-sass", cubin).split("Function : ")[1:]
    return {part.split(maxsplit=1)[0]: part for part in parts}


def table(resources: Iterable[Resources]) -> str:
    line = "{1:7s} {2:4d} registers {3:4d} stack {4:6d} shared  {0}"
    return "\n".join(line.format(*r[:5]) for r in resources)


def name_of(value):
    """Of a target, a dtype, or what else a case consists of."""
    if isinstance(value, tuple):
        return " ".join(map(name_of, value))
    if isinstance(value, dict):
        return " ".join(f"{key} {v}" for key, v in value.items()) or "plain"
    return TYPES.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


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
