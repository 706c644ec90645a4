"""What several test files share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

REPORT: list[str] = []


def report(line: str) -> None:
    """A line for the end of the run, of what a test found beyond its being green."""
    REPORT.append(line)
