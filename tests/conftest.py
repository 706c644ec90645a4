import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench/ and examples/ are tested from the checkout

_REPORT: list[str] = []


def report(line: str) -> None:
    """A line for the end of the run, of what a test found beyond its being green."""
    _REPORT.append(line)


def pytest_terminal_summary(terminalreporter):
    if _REPORT:
        terminalreporter.section("found")
        for line in _REPORT:
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
        if "gpu" in item.keywords:
            item.add_marker(skip)
