import json
import sys
from pathlib import Path

import aot
import pytest
import torch
from support import REPORT, ROOT

sys.path.insert(0, str(ROOT))  # bench/ and examples/ are tested from the checkout


def pytest_addoption(parser):
    parser.addoption("--compiled", type=Path, metavar="FILE", help="write what the compilers said of the GPU kernels")


def pytest_sessionfinish(session):
    file = session.config.option.compiled
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        kernels = sorted(aot.FOUND, key=lambda entry: [str(value) for value in entry.values()])
        command = "python -m pytest tests/test_ahead_of_time*.py --compiled " + str(file)
        lines = ",\n".join("  " + json.dumps(entry) for entry in kernels)
        file.write_text(f'{{"command": {json.dumps(command)},\n "kernels": [\n{lines}\n]}}\n')


def pytest_terminal_summary(terminalreporter):
    if REPORT:
        terminalreporter.section("found")
        for line in REPORT:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _seed(request):
    """A seed of the test's own, so that inputs differ between tests and a failure can be run again."""
    torch.manual_seed(sum(map(ord, request.node.nodeid)))


@pytest.fixture
def poisoned_memory():
    """Fresh tensors start as NaN (or the largest integer), so that an unwritten element shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):  # a keyword could be the name of a folder
            item.add_marker(skip)
