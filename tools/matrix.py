"""``python -m tools.matrix [--check]``: one wheel beside every supported Python, torch and Triton.

For each row an environment is made and the wheel in dist/ (``make wheels``) installed, the same file in each; then the
suite below runs from a copy of tests/ that has no hyperkernels beside it. The results are in
bench/results/compatibility.json, and the tables of docs/compatibility.md are written from it. What has run with a wheel
of the same content is not run again: a run that was stopped goes on, and rows that are named by --row run anew.

pip is called as it is set up. Where its configuration holds torch down, PIP_CONSTRAINT=/dev/null lifts that.
"""

from __future__ import annotations

import argparse
import base64
import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
TABLE = re.compile(r"(<!-- matrix -->\n).*(<!-- end -->)", re.DOTALL)
LIMIT = 3600  # seconds for one kind of test, on however busy a machine


class Row(NamedTuple):
    python: str
    torch: str
    triton: str  # the one that this torch asks for

    @property
    def name(self) -> str:
        return f"python{self.python}-torch{self.torch}-triton{self.triton}"


# Newest first, because torches of one CUDA share the libraries that the first of them asks for.
ROWS = [
    Row("3.13", "2.15.0", "3.9.0"),
    Row("3.12", "2.14.1", "3.8.0"),
    Row("3.11", "2.13.0", "3.7.1"),
    Row("3.13", "2.12.1", "3.7.1"),
    Row("3.12", "2.11.0", "3.6.0"),
    Row("3.10", "2.10.0", "3.6.0"),
]


class Kind(NamedTuple):
    """A part of the suite: arguments of pytest. One runs in Triton's interpreter, all others with the C++ kernels."""

    name: str
    arguments: tuple[str, ...]
    interpreted: bool = False


RANKS = "test_ranks_agree_with_one_process[2]"
EVERYDAY = ("-m", "not (slow or gpu or ranks)")
KINDS = [
    Kind(
        "ops",
        (
            *EVERYDAY, "tests/test_fuzz.py", "tests/test_ops.py", "tests/test_op_sizes.py", "tests/test_arguments.py",
            "tests/kernels/test_library.py", "tests/kernels/unit_norm/test_unit_norm.py",
            "tests/kernels/pair_mining/test_statistics_op.py",
        ),
    ),
    Kind("heads", (*EVERYDAY, "tests/heads/test_heads.py", "tests/heads/test_sum_losses.py", "tests/margins")),
    Kind("losses", (*EVERYDAY, "tests/losses", "-k", "not gradcheck")),
    Kind("miners", (*EVERYDAY, "tests/mining")),
    Kind("optimisers", (*EVERYDAY, "tests/optim")),
    Kind("sphere", (*EVERYDAY, "tests/sphere/test_sphere.py", "tests/sphere/test_functions.py")),
    Kind("torch.compile", ("tests/usage/test_compile.py", "-k", "test_a_training_step_of_a_compiled_module")),
    Kind("two ranks", tuple(f"tests/distributed/test_{name}.py::{RANKS}" for name in ("pair_losses", "partial_fc"))),
    Kind(
        "interpreter",
        (
            *EVERYDAY, "-k", "extreme_rows_interpreter or scratch or public or segment or last_step or optimisers",
            "tests/kernels", "tests/test_extreme_rows_interpreter.py", "tests/test_scratch_interpreter.py",
        ),
        interpreted=True,
    ),
    Kind("ahead of time", ("-m", "aot and not slow", "tests/kernels")),
]  # fmt: skip

# Says what runs, and that it is the wheel's: the library of C++ kernels is loaded from the environment, byte by byte.
PROBE = """
import hashlib, json, pathlib, platform, sys
import torch, triton
import hyperkernels
from hyperkernels import _native
for path in (hyperkernels.__file__, _native.PATH):
    assert pathlib.Path(path).resolve().is_relative_to(pathlib.Path(sys.prefix).resolve()), path
assert _native.OBSTACLE is None, _native.OBSTACLE
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
    "instructions": _native.cpu_capability(), "glibc": platform.libc_ver()[1], "machine": platform.machine(),
    "library": hashlib.sha256(pathlib.Path(_native.PATH).read_bytes()).hexdigest()}))
"""


def python_of(version: str) -> str:
    """pyenv's, because its names on the path stop where another version is chosen; else the one on the path."""
    home = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    found = sorted(glob.glob(f"{home}/versions/{version}.*/bin/python{version}")) or [shutil.which(f"python{version}")]
    if found[-1] is None:
        raise SystemExit(f"Python {version} was not found: put python{version} on the PATH")
    return found[-1]


def record_of(wheel: Path) -> tuple[str, str]:
    """The digest of all files in a wheel, by their names and not by their times; and that of the library in it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        lines = sorted(archive.read(name).decode().splitlines())
    digests = {line[0]: line[1] for line in csv.reader(io.StringIO("\n".join(lines)))}
    library = digests["hyperkernels/libhyperkernels.so"].removeprefix("sha256=")
    return (
        hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        base64.urlsafe_b64decode(library + "=" * (-len(library) % 4)).hex(),
    )


def requirements() -> list[str]:
    """What the suite needs beside torch and Triton, in the versions of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if re.match(r"(numpy|pytest|hypothesis)==", line)]


class Environment:
    """A virtual environment for a row."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.home = folder / row.name
        self.log = folder / f"{row.name}.log"
        self.python = self.home / "bin" / "python"

    def run(self, *command: str | Path) -> None:
        with self.log.open("a") as log:
            if subprocess.run([str(part) for part in command], stdout=log, stderr=log).returncode:
                raise SystemExit(f"{' '.join(map(str, command))} failed: {self.log}")

    def pip(self, *arguments: str | Path) -> None:
        self.run(self.python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", *arguments)

    def make(self) -> None:
        """torch, Triton and what the suite needs. A second call finishes what a first began."""
        if not self.python.exists():
            self.run(python_of(self.row.python), "-m", "venv", self.home)
        self.pip("--no-deps", f"torch=={self.row.torch}", f"triton=={self.row.triton}")
        wanted = subprocess.run(
            [self.python, "-c", "import importlib.metadata as m; print(*m.requires('torch'), sep='\\n')"],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        wanted = [line for line in wanted if "extra ==" not in line and not line.startswith("triton")]
        cuda = [line for line in wanted if line.startswith(("nvidia-", "cuda-"))]
        self.pip(*(line for line in wanted if line not in cuda), *requirements())
        if cuda:
            self.link_cuda(cuda)

    def link_cuda(self, wanted: list[str]) -> None:
        """The default build of torch cannot be imported without its gigabytes of CUDA libraries, of which nothing runs
        here. They keep their names within a major version, so that torches of the same one share them."""
        (site,) = self.home.glob("lib/python*/site-packages")
        (major,) = re.findall(r"^cuda: .*= '(\d+)\.", (site / "torch" / "version.py").read_text(), flags=re.MULTILINE)
        shared = self.folder / f"cuda{major}"
        if not (shared / "ready").exists():
            older = [] if "curand" in " ".join(wanted) else ["nvidia-curand"]  # torch 2.15 asks for none, older ones do
            self.pip("--target", shared, *wanted, *older)
            (shared / "ready").touch()
        if not (site / "nvidia").exists():
            (site / "nvidia").symlink_to((shared / "nvidia").resolve())

    def test(self, wheel: Path) -> dict[str, Any]:
        """Versions, and what each kind of test came to."""
        self.pip("--no-deps", "--force-reinstall", wheel)
        environment = {k: v for k, v in os.environ.items() if not re.match("PYTHON|HYPERKERNELS|TRITON|TORCH|OMP_", k)}
        environment |= {"OMP_WAIT_POLICY": "passive", "PYTHONNOUSERSITE": "1"}
        with tempfile.TemporaryDirectory() as name:
            tree = Path(name)
            for part in ("tests", "docs"):
                shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "images"))
            shutil.copy(ROOT / "pyproject.toml", tree)
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(tree / "inductor")
            said = subprocess.run(
                [self.python, "-c", PROBE], cwd=tree, env=environment, capture_output=True, text=True
            )  # fmt: skip
            if said.returncode:
                raise SystemExit(f"{self.row.name}: {said.stderr}")
            found = json.loads(said.stdout)
            asked = {"python": self.row.python, "torch": self.row.torch, "triton": self.row.triton}
            assert all(found[key].startswith(value) for key, value in asked.items()), (found, asked)
            with ThreadPoolExecutor(2) as pool:
                # The last ones take longest, and begin first.
                running = [pool.submit(self.run_kind, kind, tree, environment) for kind in reversed(KINDS)]
        kinds = {kind.name: future.result() for kind, future in zip(KINDS, reversed(running), strict=True)}
        return {"row": self.row.name, **found, "kinds": kinds}

    def run_kind(self, kind: Kind, tree: Path, environment: dict[str, str]) -> dict[str, Any]:
        log = self.folder / f"{self.row.name}.{kind.name.replace(' ', '_')}.log"
        report = tree / f"{kind.name}.xml"
        options = ("-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}")
        if kind.interpreted:
            environment = environment | {"TRITON_INTERPRET": "1"}
        start = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(
                [self.python, "-m", "pytest", *options, *kind.arguments],
                cwd=tree, env=environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
            stop = threading.Timer(LIMIT, process.kill)
            stop.start()
            _, status, used = os.wait4(process.pid, 0)
            stop.cancel()
        process.returncode = code = os.waitstatus_to_exitcode(status)
        seconds = {"seconds": round(time.monotonic() - start), "cpu_seconds": round(used.ru_utime + used.ru_stime)}
        return outcome(report, code) | seconds


def outcome(report: Path, code: int) -> dict[str, Any]:
    """The counts of a run of pytest, and for each failure the test and the line that says why."""
    if not report.exists():
        return {"passed": 0, "skipped": 0, "failed": 1, "failures": [f"pytest ended with {code}"]}
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    failures = []
    for case in suite.iter("testcase"):
        for problem in (*case.iter("failure"), *case.iter("error")):
            (first, *_) = (problem.get("message") or "").strip().splitlines() or [""]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {first[:200]}")
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - skipped - len(failures)
    if not failures and (code or not passed):
        failures.append(f"pytest ended with {code}")
    return {"passed": passed, "skipped": skipped, "failed": len(failures), "failures": failures}


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"command": "python -m tools.matrix", "rows": []}


def save(found: dict[str, Any]) -> None:
    order = [row.name for row in reversed(ROWS)]
    found["rows"].sort(key=lambda entry: order.index(entry["row"]) if entry["row"] in order else -1)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def cell(kind: dict[str, Any]) -> str:
    parts = [f"{kind['passed']:,}"]
    parts += [f"{kind['skipped']} skipped"] if kind["skipped"] else []
    parts += [f"**{kind['failed']} failed**"] if kind["failed"] else []
    return ", ".join(parts)


def ran_on(entry: dict[str, Any]) -> str:
    where = f"{entry['machine']} Linux with glibc {entry['glibc']} and the {entry['instructions']} kernels"
    return f"On {where}, from a library whose SHA-256 begins with {entry['library'][:16]}."


def table(found: dict[str, Any]) -> str:
    """The results as text for the page."""
    head = ["Python", "torch", "Triton", *(kind.name for kind in KINDS), "processor seconds"]
    lines = [head, ["---"] * len(head)]
    failures: dict[str, list[str]] = {}
    for entry in found["rows"]:
        kinds = entry["kinds"]
        total = sum(kind["cpu_seconds"] for kind in kinds.values())
        versions = [entry[key] for key in ("python", "torch", "triton")]
        lines.append([*versions, *(cell(kinds[kind.name]) for kind in KINDS), f"{total:,}"])
        for name, kind in kinds.items():
            for failure in kind["failures"]:
                test, _, said = failure.partition(": ")
                failures.setdefault(f"torch {entry['torch']}, {name}, `{test.split('[')[0]}`", []).append(said[:100])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text += "".join(f"\n{said}\n" for said in dict.fromkeys(map(ran_on, found["rows"])))
    text += "\n" if failures else ""
    return text + "".join(f"- {len(said)} of {test}: `{said[0]}`\n" for test, said in failures.items())


def disagreements(found: dict[str, Any]) -> list[str]:
    """What keeps the page, the results and the bounds in pyproject.toml from being one."""
    said = []
    if len({(entry["wheel"], entry["library"]) for entry in found["rows"]}) != 1:
        said.append("the rows are not all of one wheel: python -m tools.matrix runs what is older")
    if {entry["row"] for entry in found["rows"]} != {row.name for row in ROWS}:
        said.append(f"{RESULTS.name} has other rows than tools/matrix.py")
    if TABLE.sub(lambda block: block[1] + table(found) + block[2], PAGE.read_text()) != PAGE.read_text():
        said.append(f"{PAGE.name} is not what {RESULTS.name} says: python -m tools.matrix --write")
    project = (ROOT / "pyproject.toml").read_text()
    lowest = [min(tuple(map(int, row[i].split(".")[:2])) for row in ROWS) for i in (0, 1)]
    for bound, (major, minor) in zip(('requires-python = ">={}.{}"', '"torch>={}.{}"'), lowest, strict=True):
        if bound.format(major, minor) not in project:
            said.append(f"pyproject.toml does not say {bound.format(major, minor)}, which is the lowest that is tested")
    return said


def write_page(found: dict[str, Any]) -> None:
    PAGE.write_text(TABLE.sub(lambda block: block[1] + table(found) + block[2], PAGE.read_text()))


def run(rows: list[Row], wheel: Path, folder: Path, keep: bool, again: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content, library = record_of(wheel)
    for row in rows:
        found = results()
        if not again and any(e["row"] == row.name and e["wheel"] == content for e in found["rows"]):
            print(f"{row.name}: has run with this wheel")
            continue
        environment, start = Environment(row, folder), time.monotonic()
        environment.make()
        print(f"{row.name}: made in {time.monotonic() - start:.0f} s", flush=True)
        entry = environment.test(wheel)
        assert entry["library"] == library, "another library than the wheel's"
        entry["wheel"] = content
        found["rows"] = [other for other in found["rows"] if other["row"] != row.name] + [entry]
        save(found)
        write_page(found)
        print(f"{row.name}: {', '.join(f'{name} {cell(kind)}' for name, kind in entry['kinds'].items())}", flush=True)
        if not keep:
            shutil.rmtree(environment.home)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", type=Path, help="the one manylinux wheel in dist/ where not given")
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="for environments and logs")
    parser.add_argument("--keep", action="store_true", help="leave the environments, of 1 to 2 GB each beside CUDA's")
    parser.add_argument("--row", action="append", default=[], metavar="TORCH", help="run this row alone, and again")
    parser.add_argument("--write", action="store_true", help="the page from the results, and run nothing")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where page, results or bounds disagree")
    options = parser.parse_args()
    if options.check:
        print(*(said := disagreements(results())), sep="\n", end="\n" if said else "")
        return bool(said)
    if options.write:
        write_page(results())
        return 0
    wheels = [options.wheel] if options.wheel else [*(ROOT / "dist").glob("*manylinux*.whl")]
    if len(wheels) != 1:
        parser.error("dist/ has no manylinux wheel, or several: make wheels, or name one with --wheel")
    rows = [row for row in ROWS if not options.row or any(row.torch.startswith(torch) for torch in options.row)]
    run(rows, wheels[0].resolve(), options.folder.resolve(), options.keep, bool(options.row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
