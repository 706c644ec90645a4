"""Proof that the sanitizers would see a fault: a copy of a kernel reads a row too far, and overflows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "csrc" / "unit_norm" / "cpu.cpp"
CHANGES = (
    ('#include "../', '#include "'),
    (
        "for (int64_t row = 0; row < rows; ++row, x += dim, y += dim)",
        "for (int64_t row = 0; row <= rows; ++row, x += dim)",
    ),
    ("if (x.numel() == 0) return;", "if (std::numeric_limits<int64_t>::max() - 64 + x.numel() == 0) return;"),
    ("TORCH_LIBRARY_IMPL(hyperkernels,", "TORCH_LIBRARY_IMPL(broken,"),
)
CALL = """
import sys, torch
library = torch.library.Library("broken", "DEF")
for schema in ("unit_norm(Tensor x, float eps) -> Tensor", "unit_norm_(Tensor(a!) x, float eps) -> ()",
               "unit_norm_backward(Tensor grad, Tensor x, float eps) -> Tensor"):
    library.define(schema)
torch.ops.load_library(sys.argv[1])
torch.ops.broken.unit_norm(torch.ones(int(sys.argv[2]), 4), 1e-12)
"""


def build(folder: Path) -> Path:
    """The changed copy, compiled where it is older than its source."""
    import torch
    from torch.utils import cpp_extension

    copy, built = folder / "broken.cpp", folder / "broken.so"
    text = SOURCE.read_text()
    for old, new in CHANGES:
        assert text.count(old), f"{old!r} is not in {SOURCE}"
        text = text.replace(old, new)
    if built.exists() and copy.exists() and copy.read_text() == text:
        return built
    copy.write_text(text)
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), ROOT / "csrc")]
    flags = ["-shared", "-fPIC", "-std=c++20", "-fopenmp", *shlex.split(os.environ["HYPERKERNELS_CXXFLAGS"])]
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-lc10", "-ltorch_cpu"]
    sources = [str(copy), str(ROOT / "csrc" / "simd.cpp")]
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    subprocess.run([*compiler, *flags, *includes, *sources, *libraries, "-o", str(built)], check=True)
    return built


def check(folder: Path, env: dict[str, str]) -> None:
    """That both faults are reported, and that the package runs on the instrumented build."""
    library = str(build(folder))
    log = f":log_path={folder / 'expected'}"
    for rows, report in ((3, "heap-buffer-overflow"), (30, "signed integer overflow")):
        own = env | {name: env[name] + log for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
        for old in folder.glob("expected*"):
            old.unlink()
        done = subprocess.run([sys.executable, "-c", CALL, library, str(rows)], env=own, capture_output=True, text=True)
        said = "".join(path.read_text() for path in folder.glob("expected*")) + done.stderr
        assert done.returncode != 0 and report in said, f"the sanitizers do not see a planted {report}:\n{said}"
    which = "import hyperkernels._C as c; print(c.__file__)"
    done = subprocess.run([sys.executable, "-c", which], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().startswith(str(folder)), f"another build is in use: {done.stdout}{done.stderr}"
    print("the sanitizers see a planted out-of-bounds read and a planted overflow", flush=True)
