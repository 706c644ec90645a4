import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from hyperkernels import _native
from tests.support import REPORT, ROOT, aot, interpreter

os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))  # by the hash of the source
# A process that a worker of pytest-xdist starts is no worker: pytest-benchmark would measure nothing in one.
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_WORKER")]:
    del os.environ[name]
SEEDS = json.loads((ROOT / "tests" / "support" / "seeds.json").read_text())
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED and importlib.util.find_spec("triton"):
    interpreter.hasten()


def pytest_ignore_collect(collection_path, config):
    """Triton's interpreter is chosen for a whole process, before Triton is imported. `-m gpu` imports what it runs and
    no more: the other tests ask for packages that a machine with a GPU may be without."""
    if collection_path.suffix != ".py" or not collection_path.is_file():
        return None
    text = collection_path.read_text()
    elsewhere = ("pytest.mark.interpreter" in text) != INTERPRETED
    return elsewhere or (config.option.markexpr == "gpu" and "pytest.mark.gpu" not in text) or None


def pytest_addoption(parser):
    parser.addoption("--compiled", type=Path, metavar="FILE", help="write what the compilers said of the GPU kernels")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"report": REPORT, "compiled": aot.FOUND}
    elif file := session.config.option.compiled:
        file.parent.mkdir(parents=True, exist_ok=True)
        kernels = sorted(aot.FOUND, key=lambda entry: [str(value) for value in entry.values()])
        command = "python -m pytest -m aot tests --compiled " + str(file)
        lines = ",\n".join("  " + json.dumps(entry) for entry in kernels)
        file.write_text(f'{{"command": {json.dumps(command)},\n "kernels": [\n{lines}\n]}}\n')


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker of pytest-xdist hands over what it found."""
    found = getattr(node, "workeroutput", {})
    REPORT.extend(found.get("report", []))
    aot.FOUND.extend(entry for entry in found.get("compiled", []) if entry not in aot.FOUND)


def pytest_terminal_summary(terminalreporter):
    if REPORT:
        terminalreporter.section("found")
        for line in REPORT:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _seed(request):
    """A seed of the test's own, so that inputs differ between tests and a failure can be run again. A file that moves
    keeps its seeds."""
    file = request.node.nodeid.partition("::")[0]
    seed = sum(map(ord, request.node.nodeid)) + SEEDS.get(file, 0)
    # torch.manual_seed would note, with its stack, to seed devices that are not there: milliseconds for each test.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@pytest.fixture
def poisoned_memory():
    """Fresh tensors start as NaN (or the largest integer), so that an unwritten element shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    _native.poison_memory(True)
    yield
    _native.poison_memory(False)
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def pytest_collection_modifyitems(items):
    for item in items:  # a keyword could be the name of a folder
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("interpreter") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1"))
