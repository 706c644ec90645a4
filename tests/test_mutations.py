"""The tests can fail: each mutant drops one piece of the mathematics, and a test must go red for it.

C++ mutants are compiled from the changed source and loaded over the registered kernels; Python mutants are patched in.
The summary of the run says which test caught which.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, report

TESTS = "double_loop or gradcheck or tile_size or cannot_poison or margins or dropped_never or nearest_and_ties"

PLUGIN = """
import os, warnings
import torch
import hyperkernels
if os.environ.get("MUTANT_LIBRARY"):
    warnings.simplefilter("ignore")
    torch.ops.load_library(os.environ["MUTANT_LIBRARY"])
exec(os.environ.get("MUTANT_PYTHON", ""))
"""


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str = ""  # of csrc/margin_softmax
    old: str = ""
    new: str = ""
    python: str = ""


MUTANTS = [
    Mutant("nothing changed"),
    Mutant("projection of dx dropped", "rows.h", "(v[k] - u * radial) * outer", "v[k] * outer"),
    Mutant("projection of dweight dropped", "rows.h", "v[k] - A(simd::load(w + k)) * inverse * radial", "v[k]"),
    Mutant(
        "margin dropped",
        python="from hyperkernels.margin_softmax import margins as m\nm.ArcFace.__call__ = lambda self, t, n: t",
    ),
    Mutant(
        "last ragged block dropped",
        "problem.h",
        "return (c + block - 1) / block;",
        "return std::max<int64_t>(1, c / block);",
    ),
    Mutant(
        "target not left out of the sum",
        "rows.h",
        "const int64_t own = tile.own(row[i]);",
        "const int64_t own = classes;",
    ),
    Mutant("target's gradient dropped", "rows.h", "mine[r.own_center] = r.target *", "mine[r.own_center] = 0 *"),
    Mutant("running sum not rescaled", "rows.h", "sum = sum * fade + other.sum;", "sum = sum + other.sum;"),
    Mutant(
        "second chunk of rows overwrites the first", "backward.cpp", "centre_sums(), r > 0)", "centre_sums(), false)"
    ),
    Mutant(
        "ignored rows take part", "problem.h", "row.active = target[i] != problem.ignore_index;", "row.active = true;"
    ),
    Mutant(
        "every centre gets the gradient",
        "rows.h",
        "winner[j] == number ? g[j] * inverse[at] : A(0)",
        "g[j] * inverse[at]",
    ),
    Mutant("skipped rows lose their target", "backward.cpp", "      add_strays(first);", "      ;"),
    Mutant(
        "tiles skipped beyond the budget",
        python="from hyperkernels.margin_softmax import op\nreal = op.skip_plan\n"
        "op.skip_plan = lambda d, n, b, r, budget: (real(d, n, b, r, 3 * budget)[0], real(d, n, b, r, budget)[1])",
    ),
]


def compile_mutant(mutant: Mutant, folder: Path) -> Path:
    """The kernels of the family alone, with the mutation, as a library."""
    from torch.utils import cpp_extension

    sources = folder / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    changed = sources / "margin_softmax" / mutant.file
    text = changed.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}"
    changed.write_text(text.replace(mutant.old, mutant.new))
    library = folder / "mutant.so"
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    links = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-fopenmp", "-fPIC", "-shared", *includes]
    files = [*map(str, sorted((sources / "margin_softmax").glob("*.cpp"))), str(sources / "simd.cpp")]
    subprocess.run([*command, *files, *links, "-o", str(library)], check=True, capture_output=True, text=True)
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Library of each C++ mutant, all compiled at once on the cores there are."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")
    compiled = [m for m in MUTANTS if m.file]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {
            m.name: pool.submit(compile_mutant, m, tmp_path_factory.mktemp(re.sub(r"\W", "_", m.name)))
            for m in compiled
        }
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_is_caught(mutant, libraries, tmp_path):
    (tmp_path / "mutant_plugin.py").write_text(PLUGIN)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "MUTANT_LIBRARY": str(libraries.get(mutant.name, "")),
        "MUTANT_PYTHON": mutant.python,
    }
    names = ("margin_softmax", "margin_softmax_edges", "margin_softmax_options", "margins", "skip_budget")
    files = [f"tests/test_{name}.py" for name in names]
    options = ["-p", "mutant_plugin", "-p", "no:cacheprovider", "--maxfail=3", "-k", TESTS]
    command = [sys.executable, "-m", "pytest", *options, *files]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    if mutant.name == "nothing changed":
        assert result.returncode == 0, result.stdout
        return
    assert result.returncode == 1, f"the tests stay green: {result.stdout}"
    red = list(dict.fromkeys(re.findall(r"^FAILED tests/\w+\.py::(?:\w+::)?(\w+)", result.stdout, flags=re.MULTILINE)))
    assert red, result.stdout + result.stderr
    report(f"{mutant.name}: {', '.join(red)} went red")
