"""Rows at the ends of the dtypes' ranges in the Triton kernels."""

import pytest

from tests.support import extreme_rows_cases as cases

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]


@pytest.mark.parametrize("rows", cases.ROWS)
@pytest.mark.parametrize("name", cases.FUNCTIONS)
def test_extreme_rows(name, rows):
    cases.check(name, rows, True, "triton")
    cases.check(name, rows, False, "triton")
