"""Runs tests on mutants of a kernel family: each drops one piece of the mathematics, and a test must go red for it.

C++ mutants are compiled from the changed source and loaded over the registered kernels; Python mutants are patched in.
Compiling is most of the work. So it is for one instruction set, with PyTorch's headers compiled beforehand, and of
a mutant it is what includes the changed file; the rest is taken from the family without changes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, report

UNCHANGED = "nothing changed"  # the mutant that stays green
COMPILER = os.environ.get("CXX", "c++")

# A failing example is enough: none is made smaller. The summary says what every red test died of: hypothesis raises the
# assertion itself, or a group of them, and gradcheck an error of its own.
PLUGIN = """
import os, warnings
import hypothesis
import pytest
import torch
import hyperkernels
from torch.autograd.gradcheck import GradcheckError

red = []

def leaves(error):
    return [leaf for one in error.exceptions for leaf in leaves(one)] if hasattr(error, "exceptions") else [error]

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        values = (AssertionError, GradcheckError)
        others = {type(e).__name__ for e in leaves(call.excinfo.value) if not isinstance(e, values)}
        red.append((item.nodeid, "values" if call.when == "call" and not others else ", ".join(others) or call.when))

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
    """`new` instead of `old` in a file of csrc/<family> or, if it is Python, of hyperkernels/<family>; or Python code.

    The functions of a changed Python file do what the changed ones do, also where other modules have taken them out.
    """

    name: str
    file: str = ""
    old: str = ""
    new: str = ""
    python: str = ""
    units: Sequence[str] = ()  # the C++ files that are compiled with the change; empty: all that include it
    caught_by: Sequence[str] = ()  # tests of which all must go red; empty: any of the family's

    def change(self, path: Path) -> str:
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.old!r} stands {text.count(self.old)} times in {self.file}"
        return text.replace(self.old, self.new)

    def patch(self, family: str) -> str:
        """Python code that makes the change."""
        if not self.file.endswith(".py"):
            return self.python
        path = ROOT / "hyperkernels" / family / self.file
        module = ".".join(("hyperkernels", family, *Path(self.file).with_suffix("").parts))
        lines = (
            f"import importlib, types; module = importlib.import_module({module!r})",
            f"changed = dict(vars(module)); exec(compile({self.change(path)!r}, {str(path)!r}, 'exec'), changed)",
            "for name, old in vars(module).items():",
            "    if isinstance(old, types.FunctionType) and old.__module__ == module.__name__:",
            "        old.__code__ = changed[name].__code__",
        )
        return "\n".join(lines)


class Family:
    """The C++ of a family, compiled in a folder without changes."""

    def __init__(self, name: str, folder: Path) -> None:
        from torch.utils import cpp_extension

        self.name, self.folder = name, folder
        self.links = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        self.flags = ["-std=c++20", "-O1", "-fopenmp", "-fPIC", *includes]
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        simd = folder / "csrc" / "simd.h"
        text = simd.read_text()
        assert text.count("#if defined(__x86_64__)") == 1
        simd.write_text(text.replace("#if defined(__x86_64__)", "#if 0"))
        self.prefix = folder / "prefix.h"
        self.prefix.write_text("#include <ATen/ATen.h>\n#include <torch/library.h>\n")
        run([COMPILER, *self.flags, "-x", "c++-header", str(self.prefix), "-o", f"{self.prefix}.gch"])

    def sources(self) -> list[Path]:
        csrc = self.folder / "csrc"
        shared = (path for path in csrc.glob("*.cpp") if not path.stem.startswith("bindings"))
        return [*sorted((csrc / self.name).glob("*.cpp")), *sorted(shared)]

    def compile(self, source: Path) -> Path:
        made = source.with_suffix(".o")
        run([COMPILER, *self.flags, "-include", str(self.prefix), "-c", str(source), "-o", str(made)])
        return made

    def link(self, objects: Sequence[Path], library: Path) -> Path:
        run([COMPILER, "-shared", "-fopenmp", *map(str, objects), *self.links, "-o", str(library)])
        return library

    def library(self, mutant: Mutant) -> Path | None:
        """The kernels of the family alone, with the mutation."""
        if mutant.name == UNCHANGED:
            return self.link([source.with_suffix(".o") for source in self.sources()], self.folder / "unchanged.so")
        if mutant.python or mutant.file.endswith(".py"):
            return None
        folder = self.folder / re.sub(r"\W", "_", mutant.name)
        shutil.copytree(self.folder / "csrc", folder, ignore=shutil.ignore_patterns("*.o"))
        changed = folder / self.name / mutant.file
        changed.write_text(mutant.change(changed))
        units = [folder / self.name / unit for unit in mutant.units] or [
            unit for unit in (folder / self.name).glob("*.cpp") if includes(unit, mutant.file)
        ]
        rest = [source.with_suffix(".o") for source in self.sources() if source.name not in {u.name for u in units}]
        # Of a function that several of them hold the linker takes the first.
        return self.link([*map(self.compile, units), *rest], folder / "mutant.so")


def includes(source: Path, file: str) -> bool:
    """Whether the source is that file, or includes it, itself or through others of its folder."""
    if source.name == file:
        return True
    names = re.findall(r'^#include "([\w.]+)"', source.read_text(), flags=re.MULTILINE)
    return any(includes(source.parent / name, file) for name in names)


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


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


def outcomes(
    family: str, mutants: Sequence[Mutant], arguments: Sequence[str]
) -> dict[str, subprocess.CompletedProcess]:
    """The runs of the tests on each mutant; `arguments` choose the family's tests."""
    if shutil.which(COMPILER) is None:
        pytest.skip("no C++ compiler")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        (folder / "mutant_plugin.py").write_text(PLUGIN)
        whole = Family(family, folder)
        list(pool.map(whole.compile, whole.sources()))

        def outcome(mutant: Mutant) -> subprocess.CompletedProcess:
            chosen = mutant.caught_by or arguments
            return run_tests(whole.library(mutant), mutant.patch(family), chosen, folder)

        return dict(zip((m.name for m in mutants), pool.map(outcome, mutants), strict=True))


def assert_caught(mutant: Mutant, result: subprocess.CompletedProcess) -> None:
    """By assertions about values: a mutant that cannot run proves nothing. The summary says which test caught which."""
    if mutant.name == UNCHANGED:
        assert result.returncode == 0, result.stdout + result.stderr
        return
    assert result.returncode == 1, f"the tests stay green: {result.stdout}{result.stderr}"
    causes = dict(reversed(line) for line in re.findall(r"^RED by (.+?): (.+)$", result.stdout, flags=re.MULTILINE))
    assert causes, result.stdout + result.stderr
    others = {test: cause for test, cause in causes.items() if cause != "values"}
    assert not others, f"not red by an assertion about values: {others}\n{result.stdout}"
    missing = [test for test in mutant.caught_by if not any(found.startswith(test) for found in causes)]
    assert not missing, f"green: {missing}\n{result.stdout}"
    red = dict.fromkeys(test.split("::")[-1].split("[")[0] for test in causes)
    report(f"{mutant.name}: {', '.join(red)} went red")
