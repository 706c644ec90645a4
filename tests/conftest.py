import sys

import pytest
import torch
from support import REPORT, ROOT

sys.path.insert(0, str(ROOT))  # bench/ and examples/ are tested from the checkout


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
        if "gpu" in item.keywords:
            item.add_marker(skip)
