"""What setup.py decides to build, with a CUDA toolkit made of empty files."""

import runpy
import sys

import pytest
import setuptools
import torch
from setuptools import Distribution
from torch.utils import cpp_extension

from tests.support import ROOT


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A folder with an nvcc of CUDA 13.0 and its header, which torch takes for its own."""
    for name in ("bin", "include", "lib64"):
        (tmp_path / name).mkdir()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88\n")
    nvcc.chmod(0o755)
    (tmp_path / "include/cuda_runtime.h").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    # Set and taken away, so that what setup.py writes there goes as well.
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    return tmp_path


def handed_over(monkeypatch):
    """The arguments that setup.py hands to setuptools."""
    arguments = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def built(monkeypatch):
    monkeypatch.delenv("HYPERKERNELS_BUILD", raising=False)
    (extension,) = handed_over(monkeypatch)["ext_modules"]
    return extension


@pytest.mark.parametrize(
    ("named", "compiled"),
    [
        (None, "8.0,9.0,10.0,12.0+PTX"),
        ("Hopper", "9.0+PTX"),
        ("Ampere Ada", "8.0,8.6+PTX,8.9+PTX"),
        ("8.6;9.0a;12.0+PTX", "8.6,9.0a,12.0+PTX"),
    ],
)
def test_architectures_are_numbers_whatever_names_them(named, compiled, toolkit, monkeypatch):
    if named is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    extension = built(monkeypatch)
    assert "csrc/unit_norm/cuda.cu" in extension.sources
    assert f"-DHK_CUDA_ARCHITECTURES={compiled}" in extension.extra_compile_args["cxx"]


def test_cuda_is_left_out_where_its_header_is_missing(toolkit, monkeypatch, capsys):
    """nvcc alone may be a wrapper of one that lies elsewhere."""
    (toolkit / "include/cuda_runtime.h").unlink()
    assert "csrc/unit_norm/cuda.cu" not in built(monkeypatch).sources
    assert f"the CUDA kernels are left out: {toolkit}/include/cuda_runtime.h was not found" in capsys.readouterr().err


def test_every_source_is_built(monkeypatch):
    every = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.cpp")}
    assert {*built(monkeypatch).sources} == {path for path in every if "/cuda" not in path}


@pytest.mark.parametrize("missing", ["torch", "a compiler", "a new torch"])
def test_a_build_that_cannot_be_says_what_to_type(missing, monkeypatch):
    """And the metadata can be had all the same."""
    if missing == "torch":
        monkeypatch.setitem(sys.modules, "torch", None)
    elif missing == "a compiler":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setattr(torch, "__version__", "2.9.1")
    monkeypatch.delenv("HYPERKERNELS_BUILD", raising=False)
    command = handed_over(monkeypatch)["cmdclass"]["build_ext"](Distribution())
    with pytest.raises(SystemExit, match=r"(?s)cannot be built.*HYPERKERNELS_BUILD=0"):
        command.run()


def test_the_kernels_can_be_left_out(monkeypatch):
    monkeypatch.setenv("HYPERKERNELS_BUILD", "0")
    assert "ext_modules" not in handed_over(monkeypatch)


@pytest.mark.parametrize(("library", "tag"), [(True, ("py3", "none", "linux_x86_64")), (False, ("py3", "none", "any"))])
def test_a_wheel_serves_every_python(library, tag, monkeypatch):
    wheel = handed_over(monkeypatch)["cmdclass"]["bdist_wheel"](Distribution())
    wheel.plat_name, wheel.plat_name_supplied, wheel.root_is_pure = "linux_x86_64", True, not library
    monkeypatch.setattr(wheel.distribution, "has_ext_modules", lambda: library)
    assert wheel.get_tag() == tag


@pytest.mark.parametrize(("variable", "needs"), [(None, ["torch>=2.10"]), ("0", [])])
def test_an_isolated_build_asks_for_torch_where_it_builds(variable, needs, monkeypatch):
    monkeypatch.delenv("HYPERKERNELS_BUILD", raising=False)
    if variable is not None:
        monkeypatch.setenv("HYPERKERNELS_BUILD", variable)
    monkeypatch.setattr("setuptools.build_meta.get_requires_for_build_wheel", lambda settings: [])
    backend = runpy.run_path(str(ROOT / "tools" / "build_backend.py"))
    assert backend["get_requires_for_build_wheel"]() == needs
