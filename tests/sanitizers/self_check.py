"""Proof that the sanitizers would see a fault: a copy of a kernel reads a row too far, and overflows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "csrc" / "unit_norm" / "rows.h"
CHANGE = (
    "for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {",
    "if (std::numeric_limits<int64_t>::max() - 29 + rows == 0) return;\n"
    "for (int64_t row = 0; row <= rows; ++row, x += dim) {",
)
PROGRAM = """#include <limits>
#include "broken.h"
extern "C" void call(const float* x, float* y, int64_t rows) {
  hyperkernels::unit_norm::UnitNormRows::run(x, y, rows, 4, 1e-12);
}
"""
CALL = """
import ctypes, sys, torch
rows = int(sys.argv[2])
x, y = torch.ones(rows, 4), torch.ones(rows, 4)
ctypes.CDLL(sys.argv[1]).call(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(rows))
"""


def build(folder: Path) -> Path:
    """The changed copy, compiled where it is older than its source."""
    copy, program, built = folder / "broken.h", folder / "broken.cpp", folder / "broken.so"
    old, new = CHANGE
    text = SOURCE.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {SOURCE}"
    text = text.replace(old, new).replace('#include "../', '#include "')
    if built.exists() and copy.exists() and copy.read_text() == text:
        return built
    copy.write_text(text)
    program.write_text(PROGRAM)
    flags = ["-shared", "-fPIC", "-std=c++20", "-fopenmp", *shlex.split(os.environ["HYPERKERNELS_CXXFLAGS"])]
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    sources = [f"-I{ROOT / 'csrc'}", str(program), str(ROOT / "csrc" / "common" / "capability.cpp")]
    subprocess.run([*compiler, *flags, *sources, "-o", str(built)], check=True)
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
    which = "from hyperkernels import _native; print(_native.PATH)"
    done = subprocess.run([sys.executable, "-c", which], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().startswith(str(folder)), f"another build is in use: {done.stdout}{done.stderr}"
    print("the sanitizers see a planted out-of-bounds read and a planted overflow", flush=True)
