"""Runs tests on mutants of a kernel family: each drops one piece of the mathematics, and a test must go red for it.

C++ mutants are compiled from the changed source and loaded over the registered kernels; Python mutants are patched in
(tests/mutations/ has those that are a change of a line).
Compiling is most of the work. So it is for one instruction set, and what does not include the changed file is compiled
once for all. `make clean` forgets what has been compiled.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperkernels import _native
from tests.support import ROOT, report
from tests.support.causes import VALUES

UNCHANGED = "nothing changed"  # the mutant that stays green
COMPILER = os.environ.get("CXX", "c++")
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # as in setup.py
KEPT = ROOT / "build" / "mutants"

# A failing example is enough: none is made smaller. The summary says what every red test died of.
PLUGIN = """
import os, warnings
import hypothesis
import pytest
import torch
import hyperkernels
from tests.support.causes import cause_of

red = []

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        red.append((item.nodeid, cause_of(call)))

def pytest_terminal_summary(terminalreporter):
    for node, by in red:
        terminalreporter.write_line(f"RED by {by}: {node}")

phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
hypothesis.settings.register_profile("mutants", phases=phases, database=None)
hypothesis.settings.load_profile("mutants")
if os.environ.get("MUTANT_LIBRARY"):
    warnings.simplefilter("ignore")
    torch.ops.load_library(os.environ["MUTANT_LIBRARY"])
exec(os.environ.get("MUTANT_PYTHON", ""))
"""


@dataclass(frozen=True)
class Mutant:
    """`new` instead of `old` in a file of csrc/<family>; or Python code."""

    name: str
    file: str = ""
    old: str = ""
    new: str = ""
    python: str = ""
    units: Sequence[str] = ()  # the C++ files that the change reaches; empty: all that include it
    caught_by: Sequence[str] = ()  # tests of which all must go red; empty: any of the family's

    def change(self, path: Path) -> str:
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.old!r} stands {text.count(self.old)} times in {self.file}"
        return text.replace(self.old, self.new)


class Compiler:
    """Compiles files of csrc for one instruction set. What it makes is kept under a hash of all that it is made of."""

    def __init__(self) -> None:
        from torch.utils import cpp_extension

        self.links = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu"]
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        self.flags = ["-std=c++20", "-O1", "-fopenmp-simd", "-fPIC", TARGET, *includes]
        self.version = f"{run([COMPILER, '--version'])} {torch.__version__} {torch.version.git_version}"

    def compile(self, unit: Path) -> Path:
        parts = [self.version, *self.flags, *(path.read_text() for path in sorted(included(unit)))]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
        path = KEPT / key / f"{unit.stem}.o"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
            if not path.exists():
                partial = path.with_suffix(".partial")
                run([COMPILER, *self.flags, "-x", "c++", "-c", str(unit), "-o", str(partial)])
                partial.replace(path)
        return path


def library(family: str, mutant: Mutant, folder: Path) -> Path | None:
    """The family's kernels with the change; what they share with others is in the package's library."""
    if mutant.python:
        return None
    compiler = Compiler()
    csrc = shutil.copytree(ROOT / "csrc", folder / "csrc")
    dispatch = csrc / "common" / "dispatch.h"
    text = dispatch.read_text()
    assert text.count("#if defined(__x86_64__)") == 1
    dispatch.write_text(text.replace("#if defined(__x86_64__)", "#if 0"))
    units = sorted(path for path in (csrc / family).glob("*.cpp") if not path.name.startswith("cuda"))
    reached: list[Path] = []
    if mutant.name != UNCHANGED:
        changed = (csrc / family / mutant.file).resolve()
        reached = [u for u in units if changed in included(u) and (not mutant.units or u.name in mutant.units)]
        assert reached, "no kernel would be another one"
    objects = [compiler.compile(unit) for unit in units if unit not in reached]
    if reached:
        changed.write_text(mutant.change(changed))
        objects += map(compiler.compile, reached)
    made = folder / "mutant.so"
    run([COMPILER, "-shared", *map(str, objects), str(_native.PATH), *compiler.links, "-o", str(made)])
    return made


def included(source: Path) -> set[Path]:
    """The file, and those of csrc that it includes, itself or through others."""
    found, waiting = set(), [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r'^#include "([\w./]+)"', path.read_text(), flags=re.MULTILINE)
            beside = ((path.parent / name).resolve() for name in names)
            waiting += [other for other in beside if other.exists()]
    return found


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def run_tests(library: Path | None, python: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "MUTANT_LIBRARY": str(library or ""),
        "MUTANT_PYTHON": python,
        "OMP_NUM_THREADS": "1",  # as many mutants as cores run at once
    }
    command = [sys.executable, "-m", "pytest", "-p", "mutant_plugin", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def check(family: str, mutant: Mutant, arguments: Sequence[str], folder: Path) -> None:
    """Runs the mutant's tests on it; `arguments` choose those of the family."""
    if _native.OBSTACLE is not None:
        pytest.skip(_native.OBSTACLE)
    if shutil.which(COMPILER) is None:
        pytest.skip("no C++ compiler")
    (folder / "mutant_plugin.py").write_text(PLUGIN)
    made = library(family, mutant, folder)
    assert_caught(mutant, run_tests(made, mutant.python, mutant.caught_by or arguments, folder))


def parameters(mutants: Iterable[Mutant]) -> list[Any]:
    """Compiling takes minutes: `make test-rest` has them. Every day tests/mutations/ has mistakes in Python."""
    return [pytest.param(mutant, id=mutant.name, marks=pytest.mark.slow) for mutant in mutants]


def assert_caught(mutant: Mutant, result: subprocess.CompletedProcess) -> None:
    """By assertions about values: a mutant that cannot run proves nothing. The summary says which test caught which."""
    if mutant.name == UNCHANGED:
        assert result.returncode == 0, result.stdout + result.stderr
        return
    assert result.returncode == 1, f"the tests stay green: {result.stdout}{result.stderr}"
    causes = dict(reversed(line) for line in re.findall(r"^RED by (.+?): (.+)$", result.stdout, flags=re.MULTILINE))
    assert causes, result.stdout + result.stderr
    others = {test: cause for test, cause in causes.items() if cause != VALUES}
    assert not others, f"not red by an assertion about values: {others}\n{result.stdout}"
    missing = [test for test in mutant.caught_by if not any(found.startswith(test) for found in causes)]
    assert not missing, f"green: {missing}\n{result.stdout}"
    red = dict.fromkeys(test.split("::")[-1].split("[")[0] for test in causes)
    report(f"{mutant.name}: {', '.join(red)} went red")
