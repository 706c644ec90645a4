"""The library of C++ kernels: it takes what the schemas say, and asks no more of torch than the stable ABI."""

import platform
import re
import shutil
import subprocess

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _native
from hyperkernels._ops import OPERATIONS
from tests.support import need_cpp_kernels

need_cpp_kernels()


def words(types):
    """Types of a schema, without names and aliases; a size that may be symbolic is an int to a kernel."""
    plain = {"SymInt": "int", "List[Tensor]": "Tensor[]", "Optional[Tensor]": "Tensor?"}
    return ", ".join(plain.get(str(type_), str(type_)) for type_ in types)


def schema_words(name):
    schema = getattr(torch.ops.hyperkernels, name).default._schema
    return f"{words(a.type for a in schema.arguments)} -> {words(r.type for r in schema.returns)}"


def test_every_kernel_takes_what_its_schema_says():
    """libtorch compares the number of arguments alone: an int that is read as a double is silent garbage."""
    taken = _native.signatures()
    assert {*taken} == {*OPERATIONS}
    assert taken == {name: schema_words(name) for name in taken}


def test_another_type_in_a_schema_is_noticed():
    with torch.library._scoped_library("hyperkernels_other", "DEF") as library:
        library.define("unit_norm(Tensor x, int eps) -> Tensor")
        schema = torch.ops.hyperkernels_other.unit_norm.default._schema
        assert words(a.type for a in schema.arguments) == "Tensor, int"
    assert schema_words("unit_norm") == _native.signatures()["unit_norm"] == "Tensor, float -> Tensor"


def test_no_symbol_of_torch_outside_the_stable_abi():
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    said = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", _native.PATH], capture_output=True, text=True, check=True
    )
    names = [line.split(maxsplit=1)[1] for line in said.stdout.splitlines()]
    ours = [name for name in names if name.startswith(("at::", "c10::", "torch::", "caffe2::", "Py", "_Py"))]
    assert not ours and any(name.startswith("aoti_torch_") for name in names)


def test_it_runs_beside_an_old_glibc():
    """Of 2.28, which manylinux_2_28 means, on x86-64."""
    if shutil.which("nm") is None or platform.machine() != "x86_64":
        pytest.skip("needs nm, and x86-64")
    said = subprocess.run(
        ["nm", "-D", "--undefined-only", _native.PATH], capture_output=True, text=True, check=True
    ).stdout
    needed = {tuple(map(int, version.split("."))) for version in re.findall(r"@GLIBC_([0-9.]+)", said)}
    assert needed and max(needed) <= (2, 28)
    assert all(tuple(map(int, v.split("."))) <= (3, 4, 24) for v in re.findall(r"@GLIBCXX_([0-9.]+)", said))


def test_the_instruction_set_can_be_changed():
    before = _native.cpu_capability()
    try:
        assert _native.use_cpu_capability("baseline") == "baseline" == _native.cpu_capability()
        x = torch.randn(5, 33)
        assert torch.allclose(hk.unit_norm(x), torch.nn.functional.normalize(x), atol=1e-6)
        assert _native.use_cpu_capability("avx512") in ("baseline", "avx2", "avx512")  # what the processor has
        with pytest.raises(ValueError, match="must be baseline, avx2 or avx512; got sse"):
            _native.use_cpu_capability("sse")
    finally:
        assert _native.use_cpu_capability(before) == before
