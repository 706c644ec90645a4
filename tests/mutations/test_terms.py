"""The tests can fail: each change drops one term of a formula, and the named test goes red, by its values."""

import importlib
from pathlib import Path

import pytest

from .changes import Change, faults

pytestmark = pytest.mark.mutants

GROUPS = {
    path.stem: importlib.import_module(f"{__package__}.{path.stem}").CHANGES
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "changes", "test_terms")
}
FILES = {file: changes for group in GROUPS.values() for file, changes in group.items()}
TEST = "margins/test_margins::test_cosface_subtracts"


@pytest.mark.parametrize("group", ["class_statistics", "losses_softmax", "mining", "sphere"])
def test_a_term(group):
    file, changes = next(iter(GROUPS[group].items()))
    assert not faults(file, changes[:2])


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_term(file):
    assert not faults(file, FILES[file])


def test_names_are_distinct():
    names = [change.name for changes in FILES.values() for change in changes]
    assert len({*names}) == len(names)


@pytest.mark.parametrize(
    ("new", "test", "fault"),
    [
        ("return target_cos - self.m - 0", TEST, "stays green"),
        ("raise TypeError", TEST, "not by an assertion about values"),
        ("return target_cos", "margins/test_margins::test_nothing", "there is no"),
        ("return target_cos", TEST, None),
    ],
)
def test_only_an_assertion_about_values_counts(new, test, fault):
    found = faults("margins/additive.py", [Change("of the test", "return target_cos - self.m", new, test)])
    assert fault in found["of the test"] if fault else not found
