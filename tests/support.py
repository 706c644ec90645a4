"""What several test files share."""

import contextlib
import resource
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

REPORT: list[str] = []


def report(line: str) -> None:
    """A line for the end of the run, of what a test found beyond its being green."""
    REPORT.append(line)


@contextlib.contextmanager
def room(size):
    """No file gets larger than so many bytes, which the system answers as it does a full disk. For no longer than what
    is tried takes: the tests' own output may be a larger file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
