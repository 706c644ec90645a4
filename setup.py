"""Builds `hyperkernels._C` where a C++ compiler is found, with its CUDA kernels where nvcc and a CUDA torch are.

HYPERKERNELS_BUILD=0 leaves the extension out; =1 makes a missing compiler an error. HYPERKERNELS_NATIVE=1 adds
-march=native. HYPERKERNELS_CXXFLAGS is given to compiler and linker after all other flags, so that it wins.
TORCH_CUDA_ARCH_LIST chooses the CUDA targets as usual.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

SOURCES = [
    "csrc/bindings.cpp",
    "csrc/interrupt.cpp",
    "csrc/simd.cpp",
    "csrc/unit_norm/cpu.cpp",
    "csrc/optim/cpu.cpp",
    *(f"csrc/sphere/{part}.cpp" for part in ("points", "vectors", "residual", "scaled_unit_norm", "segments")),
    "csrc/optim/sphere.cpp",
    *(f"csrc/margin_softmax/{part}.cpp" for part in ("problem", "gemm_bf16", "products", "forward", "backward")),
    *(f"csrc/pair_mining/{part}.cpp" for part in ("problem", "schedule", "statistics", "statistics_backward")),
    *(f"csrc/pair_mining/{part}.cpp" for part in ("top_k", "lists", "sample", "bins", "bins_backward", "values")),
]
CUDA_SOURCES = ["csrc/bindings_cuda.cpp", "csrc/unit_norm/cuda.cu"]


def say(text: str) -> None:
    print(f"hyperkernels: {text}", file=sys.stderr)


def leave_out(reason: str) -> dict:
    if os.environ.get("HYPERKERNELS_BUILD") == "1":
        raise SystemExit(f"hyperkernels: cannot build the extension: {reason}")
    say(f"the C++ and CUDA kernels are LEFT OUT of this install: {reason}.")
    say("the reference and Triton backends work without them.")
    return {}


def compiler() -> str | None:
    return (
        shutil.which(os.environ.get("CXX", "").split(" ")[0] or "c++") or shutil.which("g++") or shutil.which("clang++")
    )


def cuda_support(torch_cuda: str | None, cuda_home: str | None) -> tuple[str | None, str]:
    """(why the CUDA kernels cannot be built, or None; the architectures to build for, in torch's notation)."""
    if torch_cuda is None:
        return "this torch has no CUDA", ""
    nvcc = Path(cuda_home or "", "bin", "nvcc")
    if cuda_home is None or not nvcc.exists():
        return "nvcc was not found (CUDA_HOME)", ""
    header = Path(cuda_home, "include", "cuda_runtime.h")
    if not header.exists():  # nvcc may be a wrapper of one that lies elsewhere
        return f"{header} was not found (CUDA_HOME must be the folder of a whole CUDA toolkit)", ""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found is None or found[1] != torch_cuda.split(".")[0]:
        return f"nvcc is of CUDA {found[1] if found else '?'}, torch of CUDA {torch_cuda}", ""
    blackwell = (int(found[1]), int(found[2])) >= (12, 8)
    return None, "8.0;9.0;10.0;12.0+PTX" if blackwell else "8.0;9.0+PTX"


def architectures(flags: list[str]) -> str:
    """The compute capabilities that torch's -gencode flags compile for, as "8.0,9.0+PTX": users may have named GPUs."""
    codes = re.findall(r"code=(sm|compute)_(\d+)(\d[af]?)", " ".join(flags))
    portable = {(int(major), minor) for kind, major, minor in codes if kind == "compute"}
    every = sorted({(int(major), minor) for _, major, minor in codes})
    return ",".join(f"{v[0]}.{v[1]}{'+PTX' if v in portable else ''}" for v in every)


def extension() -> dict:
    """Arguments of setup() that build the extension, or none with the reason on stderr."""
    if os.environ.get("HYPERKERNELS_BUILD") == "0":
        return leave_out("HYPERKERNELS_BUILD=0")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return leave_out("torch is not importable by the build; install it first and pass --no-build-isolation")
    if compiler() is None:
        return leave_out("no C++ compiler was found (g++ or clang++)")

    # Python's own flags may ask for debug information, which doubles the time of the build.
    flags = ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas"]
    if os.environ.get("HYPERKERNELS_NATIVE") == "1":
        flags.append("-march=native")
    last = shlex.split(os.environ.get("HYPERKERNELS_CXXFLAGS", ""))
    flags += last
    arguments = {"sources": SOURCES, "extra_compile_args": {"cxx": flags}, "extra_link_args": ["-fopenmp", *last]}
    make = cpp_extension.CppExtension
    obstacle, targets = cuda_support(torch.version.cuda, cpp_extension.CUDA_HOME)
    if obstacle is not None:
        say(f"the CUDA kernels are left out: {obstacle}")
    else:
        os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or targets
        compiled = architectures(cpp_extension._get_cuda_arch_flags())
        arguments["sources"] = SOURCES + CUDA_SOURCES
        arguments["extra_compile_args"] = {
            "cxx": [*flags, f"-DHK_CUDA_ARCHITECTURES={compiled}"],
            "nvcc": ["-O3", "--threads=4"],
        }
        make = cpp_extension.CUDAExtension
    return {
        "ext_modules": [make("hyperkernels._C", **arguments)],
        "cmdclass": {
            "build_ext": cpp_extension.BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None)
        },
    }


setup(**extension())
