"""Each test is run by `make test` or by `make test-rest`: by one command of one of them."""

import itertools
import re

import pytest
from _pytest.mark.expression import Expression

from tests.support import ROOT

MARKERS = re.findall(r'^  "(\w+): ', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
ELSEWHERE = {"gpu", "rehearsal"}  # make gpu and make rehearse run them
TARGETS = dict(re.findall(r"^(test|test-rest): .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
COMMANDS = [
    (target, "TRITON_INTERPRET=1" in command, Expression.compile(re.search(r'-m "(.+?)"', command)[1]))
    for target, commands in TARGETS.items()
    for command in commands.splitlines()
]


def chosen_by(marked):
    """The targets that run a test with these marks, once for each command that does."""
    return [
        target
        for target, interpreted, expression in COMMANDS
        if interpreted == ("interpreter" in marked) and expression.evaluate(lambda name: name in marked)
    ]


def test_one_command_runs_a_test():
    own = sorted({*MARKERS} - ELSEWHERE)
    assert len(own) == len(MARKERS) - len(ELSEWHERE)
    for count in range(len(own) + 1):
        for marked in itertools.combinations(own, count):
            assert chosen_by(marked) == ["test-rest" if "slow" in marked else "test"], marked


@pytest.mark.parametrize("elsewhere", sorted(ELSEWHERE))
def test_what_other_targets_run_is_left_to_them(elsewhere):
    assert not chosen_by({elsewhere}) and not chosen_by({elsewhere, "slow"})


def test_what_measures_time_is_in_the_file_that_the_makefile_names():
    mark = re.compile(r"pytest\.mark\.alone")
    assert [path.name for path in ROOT.glob("tests/**/test_*.py") if mark.search(path.read_text())] == ["test_speed.py"]
