"""Which backend runs, what is said about it, and that forcing one is obeyed or refused."""

import importlib.machinery
import os
import re
import subprocess
import sys
import types
import warnings

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _backend, _native
from hyperkernels.__main__ import main
from tests.support import ROOT, forced_compile_cases


def run(code, **environment):
    """A fresh interpreter in an empty folder of imports but the checkout; returns its output."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("family", _backend.KERNELS)
def test_each_device_has_its_kernels(family):
    assert _backend.choose(family, "cpu").backend == "cpp"
    assert _backend.choose(family, "xpu") == ("reference", "no kernels for xpu")


def test_the_native_op_really_runs(monkeypatch):
    """The default backend on the CPU is the C++ kernel, not the reference in disguise."""
    from hyperkernels.kernels.margin_softmax import reference as softmax_reference
    from hyperkernels.kernels.unit_norm import reference as norm_reference

    def forbidden(*args):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(softmax_reference, "class_statistics", forbidden)
    monkeypatch.setattr(norm_reference, "unit_norm", forbidden)
    x, weight, target = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 4, 2])
    hk.unit_norm(x)
    hk.margin_softmax_loss(x, weight, target)
    with hk.backend("reference"), pytest.raises(AssertionError, match="the reference ran"):
        hk.unit_norm(x)
    with hk.backend("reference"), pytest.raises(AssertionError, match="the reference ran"):
        hk.margin_softmax_loss(x, weight, target)


def test_forcing_nests_and_ends():
    with hk.backend("reference"):
        with hk.backend("cpp"):
            assert _backend.choose("unit_norm", "cpu").backend == "cpp"
        assert _backend.choose("unit_norm", "cpu").backend == "reference"
    assert _backend.choose("unit_norm", "cpu").reason == "cpp kernels serve cpu"


def test_blocks_of_several_threads_may_end_in_any_order():
    first, second = hk.backend("reference"), hk.backend("cpp")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _backend.choose("unit_norm", "cpu").reason == "forced by hyperkernels.backend()"
    second.__exit__(None, None, None)
    assert _backend.choose("unit_norm", "cpu").reason == "cpp kernels serve cpu"


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("8.0,9.0", [(8, 0), (8, 6), (9, 0)], [(7, 5), (10, 0), (12, 0)]),
        ("8.0,9.0+PTX", [(8, 9), (9, 0), (10, 0), (12, 1)], [(7, 5)]),
        ("9.0a", [(9, 0)], [(8, 0), (9, 1), (10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("Hopper", [], [(9, 0)]),
        ("", [], [(9, 0)]),
    ],
)
def test_the_gpus_that_a_build_serves(architectures, runs, does_not):
    assert all(_backend._runs_on(device, architectures) for device in runs)
    assert not any(_backend._runs_on(device, architectures) for device in does_not)


@pytest.mark.parametrize(("gpus", "serves"), [([(9, 0), (8, 6)], True), ([(9, 0), (12, 0)], False), ([], True)])
def test_a_build_serves_every_gpu_or_none(gpus, serves, monkeypatch):
    """Whichever is the current one."""
    monkeypatch.setattr(_native, "OBSTACLE", None)
    monkeypatch.setattr(_native, "build_info", lambda: {"cuda_architectures": "8.0,9.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: gpus[device or 0])
    for name in ("_built_for_these_gpus", "has_cuda_kernels"):
        monkeypatch.setattr(_backend, name, getattr(_backend, name).__wrapped__)
    obstacle = _backend._unavailable("unit_norm", "cuda", "cuda")
    if serves:
        assert obstacle is None
    else:
        assert obstacle == "the library was not built for every visible GPU (8.0,9.0)"


def test_an_unknown_instruction_set_is_refused():
    code = "try: import hyperkernels\nexcept ValueError as e: print(e)"
    assert "must be baseline, avx2 or avx512; got scalar" in run(code, HYPERKERNELS_CPU_CAPABILITY="scalar")


def test_a_forced_misfit_is_refused():
    with hk.backend("cuda"), pytest.raises(RuntimeError, match="forces the backend 'cuda' for margin_softmax on cpu"):
        hk.margin_softmax_loss(torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1]))
    with hk.backend("cpp"), pytest.raises(RuntimeError, match="cpp kernels run on cpu, not on meta"):
        hk.unit_norm(torch.empty(2, 3, device="meta"))
    wanted = "must be one of reference, cpp, triton, cuda; got 'numba'"
    with pytest.raises(ValueError, match=wanted), hk.backend("numba"):
        pass


@pytest.mark.parametrize("forced_by", ["block", "environment"])
def test_a_forced_backend_compiles(forced_by, monkeypatch):
    forced_compile_cases.check("unit_norm", "cpp", forced_by, monkeypatch)


def test_the_environment_forces_too():
    code = "import hyperkernels._backend as b; print(b.choose('unit_norm', 'cpu'))"
    assert "forced by HYPERKERNELS_BACKEND" in run(code, HYPERKERNELS_BACKEND="reference")
    code = "import torch, hyperkernels as hk\ntry: hk.unit_norm(torch.ones(3))\nexcept ValueError as e: print(e)"
    assert "HYPERKERNELS_BACKEND must be one of" in run(code, HYPERKERNELS_BACKEND="fast")


@pytest.fixture
def triton_of(monkeypatch):
    """Puts a Triton of that version in the place of the one installed."""

    def forget():
        _backend.triton_obstacle.cache_clear()
        _backend._default.cache_clear()

    def install(version):
        module = types.ModuleType("triton")
        module.__spec__, module.__version__ = importlib.machinery.ModuleSpec("triton", None), version
        monkeypatch.setitem(sys.modules, "triton", module)
        forget()

    yield install
    forget()


@pytest.mark.parametrize("version", ["2.3.1", "3.4.0", "3.4.0+git5389ed79"])
def test_triton_that_is_too_old_is_refused(version, triton_of, monkeypatch, capsys):
    triton_of(version)
    wanted = f"Triton {version} is too old: the kernels need 3.5 or later"
    assert not _backend.has_triton()
    with hk.backend("triton"), pytest.raises(RuntimeError, match=f"forces the backend 'triton'.*{re.escape(wanted)}"):
        hk.unit_norm(torch.ones(3))
    main()
    assert wanted in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  triton "))


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1+git1", "3.10.0", "4.0"])
def test_triton_that_is_new_enough(version, triton_of):
    triton_of(version)
    assert _backend.has_triton()


def test_without_the_library_everything_still_works_with_one_warning():
    code = """
import warnings
import torch
import hyperkernels as hk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        hk.unit_norm(torch.ones(2, 3))
        hk.nn.MarginSoftmax(4, 5)(torch.randn(2, 4), torch.tensor([0, 1])).backward()
    print(sorted(str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)))
"""
    said = run(code, HYPERKERNELS_LIBRARY="nowhere.so")
    assert said.count("hyperkernels runs unit_norm on cpu in plain PyTorch") == 1
    assert said.count("hyperkernels runs margin_softmax on cpu in plain PyTorch") == 1
    assert _native.BUILD_COMMAND in said


def test_a_broken_library_is_reported(tmp_path):
    library = tmp_path / "broken.so"
    library.write_text("no library" * 100)
    code = "import hyperkernels._backend as b; print(b.choose('unit_norm', 'cpu'))"
    said = run(code, HYPERKERNELS_LIBRARY=str(library))
    assert "do not load" in said and "invalid ELF header" in said and _native.BUILD_COMMAND in said


def test_import_is_light_and_silent():
    code = """
import sys, torch
before = set(sys.modules)
import hyperkernels
new = set(sys.modules) - before
print(sorted(m for m in new if m.split(".")[0] in ("triton", "numpy", "matplotlib", "torch._inductor")))
"""
    assert run(code, PYTHONWARNINGS="error").strip() == "[]"


def test_the_report_says_what_serves_which_device_and_what_mends_it():
    report = "import runpy; runpy.run_module('hyperkernels', run_name='__main__')"
    said, kernels = run(report), _native.OBSTACLE is None
    assert ("The CPU is served by C++ kernels." in said, "To build them" in said) == (kernels, not kernels)
    said = run(report, HYPERKERNELS_LIBRARY="nowhere.so")
    assert "The CPU is served by plain PyTorch." in said and _native.BUILD_COMMAND in said
    said = run(report, HYPERKERNELS_BACKEND="cuda")
    assert "Error: HYPERKERNELS_BACKEND forces the backend 'cuda'" in said


def test_the_report_names_every_family_and_device():
    said = run("import runpy; runpy.run_module('hyperkernels', run_name='__main__')")
    for line in ("compiler", "instruction sets", "unit_norm on cpu", "margin_softmax on cuda", "triton"):
        assert line in said


@pytest.mark.parametrize(
    "capability", ["baseline", *(pytest.param(c, marks=pytest.mark.slow) for c in ("avx2", "avx512"))]
)
def test_every_instruction_set_is_right(capability):
    """The kernels of each set that this processor has, against the reference in float64."""
    code = """
import torch, hyperkernels as hk
from hyperkernels import _native
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    x = (torch.randn(50, 77) * 1e-3).to(dtype)
    wanted = torch.nn.functional.normalize(x.double()).to(dtype)
    torch.testing.assert_close(hk.unit_norm(x), wanted)
every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
kept = hk.unit_norm(every[:, None].expand(-1, 2).contiguous())
right = torch.nn.functional.normalize(every[:, None].expand(-1, 2).double()).half()
torch.testing.assert_close(kept, right, equal_nan=True, rtol=0, atol=5e-4)
for dtype, rtol in ((torch.float32, 2e-4), (torch.float64, 1e-10)):
    x, w = torch.randn(37, 50, dtype=dtype, requires_grad=True), torch.randn(999, 50, dtype=dtype, requires_grad=True)
    t = torch.randint(999, (37,))
    got = torch.autograd.grad(hk.margin_softmax_loss(x, w, t), (x, w))
    with hk.backend("reference"):
        a, b = (v.detach().double().requires_grad_() for v in (x, w))
        wanted = torch.autograd.grad(hk.margin_softmax_loss(a, b, t), (a, b))
    for mine, right in zip(got, wanted):
        torch.testing.assert_close(mine.double(), right, rtol=rtol, atol=rtol * 1e-2)
print("in use:", _native.cpu_capability())
"""
    said = run(code, HYPERKERNELS_CPU_CAPABILITY=capability)
    in_use = said.split("in use:")[1].strip()
    order = ["baseline", "avx2", "avx512"]
    widest = order.index(_native.cpu_capability())
    assert in_use == order[min(order.index(capability), widest)]


def test_no_warning_when_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hk.unit_norm(torch.ones(2, 3))


@pytest.mark.parametrize("left_out", [False, True])
def test_a_build_without_a_compiler(left_out, tmp_path):
    """It stops and says what to type, and that makes a package without the kernels."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v", "-w", str(tmp_path), "."]
    asked = {k: v for k, v in os.environ.items() if k != "HYPERKERNELS_BUILD"} | (
        {"HYPERKERNELS_BUILD": "0"} if left_out else {}
    )
    environment = {**asked, "CXX": "no-such-compiler", "PATH": str(tmp_path)}
    result = subprocess.run(wheel, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    said, built = result.stdout + result.stderr, [path.name for path in tmp_path.glob("*.whl")]
    if left_out:
        assert result.returncode == 0 and "are left out (HYPERKERNELS_BUILD=0)" in said
        assert len(built) == 1 and built[0].endswith("-py3-none-any.whl")
    else:
        assert result.returncode and not built
        assert "cannot be built: no C++ compiler was found" in said and "set HYPERKERNELS_BUILD=0" in said
