"""torch.compile where Triton is forced."""

import pytest

from tests.support import forced_compile_cases as cases

# numpy reports what the kernels let happen on purpose: an empty row over its norm.
pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]


@pytest.mark.parametrize("family", cases.FUNCTIONS)
def test_a_forced_block_compiles(family, monkeypatch):
    cases.check(family, "triton", "block", monkeypatch)


def test_a_forced_environment_compiles(monkeypatch):
    cases.check("margin_softmax", "triton", "environment", monkeypatch)
