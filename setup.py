"""Builds `hyperkernels/libhyperkernels.so`: the C++ kernels, and the CUDA ones where nvcc and a CUDA torch are.

The library uses libtorch's stable ABI and nothing of Python: what is built once serves every Python and every torch
from 2.10 on. HYPERKERNELS_BUILD=0 leaves it out; otherwise the build stops where a compiler or torch is missing.
HYPERKERNELS_NATIVE=1 adds -march=native. HYPERKERNELS_CXXFLAGS is given to compiler and linker after all other flags,
so that it wins. TORCH_CUDA_ARCH_LIST chooses the CUDA targets as usual.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020a000000000000"  # the oldest torch that the library runs beside: 2.10


def sources(cuda: bool) -> list[str]:
    """Every file of csrc; those of CUDA are called cuda*."""
    kinds = ("*.cpp", "*.cu") if cuda else ("*.cpp",)
    found = sorted(path for kind in kinds for path in (ROOT / "csrc").rglob(kind))
    return [path.relative_to(ROOT).as_posix() for path in found if cuda or not path.name.startswith("cuda")]


def say(text: str) -> None:
    print(f"hyperkernels: {text}", file=sys.stderr)


def refused(reason: str) -> dict:
    """Arguments of setup() with which the metadata can be had, and no build."""

    class Refuses(build_ext):
        def run(self) -> None:
            raise SystemExit(
                f"hyperkernels: the kernels cannot be built: {reason}.\n"
                "To install the package without them (plain PyTorch, and Triton where it is) set HYPERKERNELS_BUILD=0."
            )

    return {"ext_modules": [Extension("hyperkernels.libhyperkernels", [])], "cmdclass": {"build_ext": Refuses}}


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


class Wheel(bdist_wheel):
    """Of any Python 3; of this platform where it carries the library."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2] if self.distribution.has_ext_modules() else "any"


def library() -> dict:
    """Arguments of setup() that build the library; none where it is left out."""
    if os.environ.get("HYPERKERNELS_BUILD") == "0":
        say("the C++ and CUDA kernels are left out (HYPERKERNELS_BUILD=0): plain PyTorch and Triton do their work.")
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return refused(
            "torch is not installed where the build runs (pip install --no-build-isolation takes the one that you have)"
        )
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 10):
        return refused(f"torch {torch.__version__} is older than 2.10")
    if compiler() is None:
        return refused("no C++ compiler was found (g++ or clang++)")

    # Python's own flags may ask for debug information, which doubles the time of the build.
    flags = ["-O3", "-g0", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas"]
    flags += ["-std=c++20", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    if os.environ.get("HYPERKERNELS_NATIVE") == "1":
        flags.append("-march=native")
    last = shlex.split(os.environ.get("HYPERKERNELS_CXXFLAGS", ""))
    flags += last
    obstacle, targets = cuda_support(torch.version.cuda, cpp_extension.CUDA_HOME)
    make, compile_args = cpp_extension.CppExtension, {"cxx": flags}
    if obstacle is not None:
        say(f"the CUDA kernels are left out: {obstacle}")
    else:
        os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or targets
        compiled = architectures(cpp_extension._get_cuda_arch_flags())
        flags.append(f"-DHK_CUDA_ARCHITECTURES={compiled}")
        make, compile_args = cpp_extension.CUDAExtension, {"cxx": flags, "nvcc": ["-O3", "--threads=4"]}
    extension = make(
        "hyperkernels.libhyperkernels",
        sources(cuda=obstacle is None),
        extra_compile_args=compile_args,
        extra_link_args=["-Wl,--as-needed", *last],
        py_limited_api=True,  # nothing of libtorch_python
    )
    build = cpp_extension.BuildExtension.with_options(
        use_ninja=shutil.which("ninja") is not None, no_python_abi_suffix=True
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": build}}


arguments = library()
setup(**arguments | {"cmdclass": {"bdist_wheel": Wheel, **arguments.get("cmdclass", {})}})
