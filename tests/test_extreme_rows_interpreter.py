"""Rows at the ends of the dtypes' ranges in the Triton kernels."""

import pytest

from tests.support import combinations
from tests.support import extreme_rows_cases as cases

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]


def is_of_every_day(name, rows):
    """Half of them, in which each function and each kind of row occurs."""
    return ([*cases.FUNCTIONS].index(name) + [*cases.ROWS].index(rows)) % 2 == 0


@pytest.mark.parametrize(("name", "rows"), combinations(cases.FUNCTIONS, cases.ROWS, everyday=is_of_every_day))
def test_extreme_rows(name, rows):
    cases.check(name, rows, True, "triton")
    cases.check(name, rows, False, "triton")
