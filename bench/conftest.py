"""`python -m bench` is pytest with pytest-benchmark, these options and this report."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from . import peers, plots, report
from .harness import CLOCK, LEVELS, OURS, Case, Row, Settings, measure
from .progress import PROGRESS

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu")
    group.addoption("--dtype", action="append", choices=DTYPES, default=[], help="only cases of this dtype")
    group.addoption("--level", choices=LEVELS, default="default")
    group.addoption("--checkpoint", type=Path, metavar="DIR", help="the demo's report folder: time its trained head")
    group.addoption("--json", type=Path, help="write the rows there")
    group.addoption("--plots", type=Path, metavar="DIR", help="draw pictures there")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device cuda needs a CUDA device, and torch {torch.__version__} sees none")
    config.option.benchmark_timer = f"{CLOCK.__module__}.CLOCK"
    CLOCK.device = config.option.device
    config.stash[REPORT] = Report(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        option = metafunc.config.option
        settings = Settings(option.device, option.level, tuple(map(DTYPES.get, option.dtype)), option.checkpoint)
        metafunc.parametrize("case", settings.wanted(metafunc.module.cases(settings)), ids=str)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    return ("passed", "", "") if report.passed else None  # the tables are what is seen


class Report:
    """Rows as they come: printed, written every time, so that an interrupted run keeps what it measured, and drawn at
    the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.option = config.option
        self.rows: list[Row] = []
        self.figures: dict[str, plots.Figure] = {}
        self.facts = report.environment(self.option.device, peers.names(self.option.device))

    def head(self) -> str:
        facts = dict(self.facts)
        absent = [name for name, version in facts.pop("peers").items() if version is None]
        text = ", ".join(f"{key} {value}" for key, value in facts.items())
        return text + (f"\nnot installed, and so not compared: {', '.join(absent)}" if absent else "")

    def add(self, rows: list[Row]) -> None:
        print(report.table(rows), end="\n\n", flush=True)
        self.rows += rows
        if self.option.json:
            report.write_json(self.option.json, self.rows, self.facts, "python -m bench " + " ".join(sys.argv[1:]))

    def draw(self) -> None:
        machine = report.machine(self.facts)
        for figure in self.figures.values():
            path = plots.draw(figure, self.rows, self.option.plots, machine, self.option.device)
            if path is not None:
                print(path)


REPORT = pytest.StashKey[Report]()


def pytest_sessionstart(session: pytest.Session) -> None:
    PROGRESS.clear()
    print(session.config.stash[REPORT].head(), end="\n\n", flush=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    found = session.config.stash[REPORT]
    if found.option.plots:
        found.draw()


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark, case: Case):
    """Measure the case and report it; a contender of ours that computes something else than its peers fails."""

    def run() -> None:
        found, items = request.config.stash[REPORT], request.session.items
        PROGRESS.start(f"[{items.index(request.node) + 1}/{len(items)}] {case}")
        found.figures |= {figure.name: figure for figure in getattr(request.module, "FIGURES", ())}
        rows = measure(case, benchmark, CLOCK)
        benchmark.extra_info["rows"] = [asdict(row) for row in rows]
        found.add(rows)
        errors = {row.name: row.error for row in rows if row.error is not None}
        others = [error for name, error in errors.items() if name != OURS and not name.startswith(" ")]
        if others and case.dtype != torch.float64:  # there the truth is one of the peers
            assert errors[OURS] <= 2 * max(others) + torch.finfo(case.dtype).eps, f"{case}: {errors}"

    return run
