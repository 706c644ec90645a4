"""What setup.py decides to build, with a CUDA toolkit made of empty files."""

import runpy

import pytest
import setuptools
import torch
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


def built(monkeypatch):
    """The extension that setup.py hands to setuptools."""
    arguments = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.setenv("HYPERKERNELS_BUILD", "1")
    runpy.run_path(str(ROOT / "setup.py"))
    (extension,) = arguments["ext_modules"]
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
