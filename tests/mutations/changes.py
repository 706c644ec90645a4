"""Mistakes in Python, made in this process: no build and no new interpreter, so that each term of a formula has one."""

import contextlib
import importlib
import io
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

import hyperkernels
from tests.support.causes import VALUES, cause_of

PACKAGE = Path(hyperkernels.__file__).parent
TESTS = Path(__file__).parent.parent


class Change(NamedTuple):
    """`new` instead of `old` in a file of hyperkernels, which the test must notice.

    The test is `file::name[case]`, the file from tests/ on; or the beginning of that, of which one must notice."""

    name: str
    old: str
    new: str
    test: str


def functions(namespace: dict[str, Any], module: str) -> dict[str, types.FunctionType]:
    """The functions that the module defines, methods of its classes among them, by their qualified names."""
    found: dict[str, types.FunctionType] = {}

    def take(value: Any) -> None:
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "__func__", value)
        while hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, type) and value.__module__ == module and value.__qualname__ not in seen:
            seen.add(value.__qualname__)
            for member in list(vars(value).values()):
                take(member)
        elif isinstance(value, types.FunctionType) and value.__module__ == module:
            found.setdefault(value.__qualname__, value)

    seen: set[str] = set()
    for value in list(namespace.values()):
        take(value)
    return found


@contextlib.contextmanager
def applied(file: str, change: Change) -> Iterator[None]:
    """The functions of the file do what those of the changed text do, also where other modules have taken them out."""
    path = PACKAGE / file
    text = path.read_text()
    assert text.count(change.old) == 1, f"{change.old!r} stands {text.count(change.old)} times in {file}"
    module = importlib.import_module(".".join(("hyperkernels", *Path(file).with_suffix("").parts)))
    changed = dict(vars(module))
    exec(compile(text.replace(change.old, change.new), str(path), "exec"), changed)
    ours, theirs = functions(vars(module), module.__name__), functions(changed, module.__name__)
    before = {name: function.__code__ for name, function in ours.items()}
    different = [name for name in ours if theirs[name].__code__ != before[name]]
    assert different, f"no function of {file} is another one"
    for name in different:
        ours[name].__code__ = theirs[name].__code__
    try:
        yield
    finally:
        for name in different:
            ours[name].__code__ = before[name]


class Loop:
    """A pytest plugin: in place of the session's tests, each change of a file with the test that is to notice it."""

    def __init__(self, file: str, changes: Sequence[Change]) -> None:
        self.file, self.changes = file, changes
        self.faults: dict[str, str] = {}  # by the names of changes
        self.ran = False
        self.last = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert not session.testsfailed, "the tests cannot be collected"
        for change in self.changes:
            items = [item for item in session.items if named(item).startswith(change.test)]
            with applied(self.file, change):
                causes = [self.cause(item) for item in items]
            if VALUES not in causes:
                self.faults[change.name] = f"{change.test} stays green" if items else f"there is no {change.test}"
            if set(causes) - {"", VALUES}:
                self.faults[change.name] = f"{change.test} is red by {causes}, not by an assertion about values"
        self.ran = True
        return True

    def cause(self, item: pytest.Item) -> str:
        """What the test dies of; nothing where it passes."""
        self.last = ""
        runtestprotocol(item, nextitem=None, log=False)
        return self.last

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            self.last = cause_of(call)


def named(item: pytest.Item) -> str:
    """`file::name[case]`"""
    return f"{item.path.relative_to(TESTS).with_suffix('')}::{item.nodeid.partition('::')[2]}"


def faults(file: str, changes: Sequence[Change]) -> dict[str, str]:
    """The changes that are not noticed by an assertion about values, and why. Each file of tests is collected once."""
    loop, said = Loop(file, changes), io.StringIO()
    paths = sorted({f"{TESTS / change.test.partition('::')[0]}.py" for change in changes})
    with contextlib.redirect_stdout(said):
        pytest.main(["--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", *paths], plugins=[loop])
    assert loop.ran, said.getvalue()
    return loop.faults
