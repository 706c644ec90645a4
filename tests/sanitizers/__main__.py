"""python -m tests.sanitizers FOLDER [--budget SECONDS]: FOLDER holds the build; its reports are put there too."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from .environment import environment, explained
from .self_check import check

ROOT = Path(__file__).resolve().parents[2]
# Every op with C++ kernels is reached by one of these.
TESTS = [
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "kernels").rglob("test_*kernels.py")),
    "tests/kernels/unit_norm/test_unit_norm.py",
    "tests/optim/test_rows.py",
    "tests/optim/test_sphere.py",
]
# What measures memory means nothing here, and compilers take minutes.
LEFT_OUT = "not memory and not compile"
# It computes its truth in plain PyTorch once for each tile of classes: half an hour under the sanitizers.
TOO_LONG = "tests/kernels/margin_softmax/test_kernels.py::test_skipped_tiles"
CAPABILITIES = ("baseline", "avx2", "avx512")  # lowered where the processor has less


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitizers")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", type=float, default=120, metavar="SECONDS", help="of the fuzz")
    given = parser.parse_args()
    folder = given.folder.resolve()
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    env = environment(folder)
    check(folder, env)
    failed = []
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", LEFT_OUT, "--deselect", TOO_LONG, *TESTS]
    if subprocess.run(pytest, env=env, cwd=ROOT).returncode:
        failed.append("tests")
    for capability in CAPABILITIES:
        fuzz = [sys.executable, "-m", "tests.fuzz", "--budget", str(given.budget / len(CAPABILITIES))]
        if subprocess.run(fuzz, env=env | {"HYPERKERNELS_CPU_CAPABILITY": capability}, cwd=ROOT).returncode:
            failed.append(f"fuzz at {capability}")
    for report in explained(reports):
        failed.append("a report")
        print(report)
    print(f"failed: {', '.join(failed)}" if failed else "clean: no sanitizer has reported anything")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
