"""The benchmark measures what it says: turns, memory that runs out, slow peers, wrong results, its files."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from bench import docs, harness, memory, report
from bench.harness import OURS, Case, Comparison, Contender, Stopwatch
from bench.progress import Progress
from tests.support import ROOT


class Rounds:
    """What the harness uses of pytest-benchmark's fixture."""

    def pedantic(self, target, setup, rounds, warmup_rounds):
        for _ in range(rounds + warmup_rounds):
            setup()
            target()


def measured(contenders, samples=5, error=None):
    case = Case("op", "N=1", torch.float32, lambda: Comparison(contenders, 1e9, "GFLOP/s", 2, 0, error), samples)
    return {row.name: row for row in harness.measure(case, Rounds(), Stopwatch())}


def test_contenders_take_turns_on_inputs_that_rotate():
    calls = []
    names = [OURS, "peer", "floor"]
    contenders = [Contender(name, lambda i, n=name: calls.append((n, i)), name == "floor") for name in names]
    rows = measured(contenders, samples=4)
    in_turn = calls[6:]  # after the two calls that each makes at first
    rounds = range(-harness.WARM_UP, 4)
    assert in_turn == [(name, i % 2) for i in rounds for name in ("peer", "floor", OURS)]
    assert {row.samples for row in rows.values()} == {4}


def test_ratios_follow_the_times():
    def sleep(seconds):
        return lambda i: time.sleep(seconds)

    rows = measured(
        [Contender(OURS, sleep(0.02)), Contender("peer", sleep(0.06)), Contender("floor", sleep(0.01), True)]
    )
    assert 2.5 < rows["peer"].over_ours < 3.5
    assert 1.5 < rows[OURS].over_floor < 2.5
    assert rows[OURS].rate == pytest.approx(1e3 / rows[OURS].median_ms)
    assert rows[OURS].p20_ms <= rows[OURS].median_ms <= rows[OURS].p80_ms


def test_a_peer_that_runs_out_of_memory_has_its_row():
    greedy = Contender("peer", lambda i: torch.ones(memory.machine_bytes("cpu")))  # four times the machine's memory
    rows = measured([Contender(OURS, lambda i: None), greedy])
    assert rows["peer"].out_of_memory
    assert rows["peer"].median_ms is None
    assert "out of memory" in report.table(list(rows.values()))


def test_our_own_failure_and_any_other_error_are_not_hidden():
    def fail(i):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measured([Contender(OURS, lambda i: None), Contender("peer", fail)])
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        measured([Contender(OURS, lambda i: torch.ones(memory.machine_bytes("cpu")))])


def test_a_slow_peer_is_timed_in_three_rounds(monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 0.05)
    rows = measured([Contender(OURS, lambda i: None), Contender("peer", lambda i: time.sleep(0.1))])
    assert rows["peer"].samples == 3
    assert rows["peer"].median_ms >= 100
    assert rows[OURS].samples == 5


def test_peak_memory_is_seen():
    keep = memory.peak_bytes(lambda: torch.ones(25_000_000).sum())
    assert 90e6 < keep < 150e6


@pytest.mark.slow
def test_the_command_writes_rows_and_pictures(tmp_path):
    command = [sys.executable, "-m", "bench", "unit_norm", "--quick"]
    options = ["--json", str(tmp_path / "rows.json"), "--plots", str(tmp_path)]
    uncompiled = os.environ | {"TORCHDYNAMO_DISABLE": "1"}  # so is the peer torch.compile: that takes most of the time
    done = subprocess.run([*command, *options], env=uncompiled, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "rows.json").read_text())
    assert {"processor", "torch", "commit", "peers"} <= set(content["environment"])
    assert content["command"].startswith("python -m bench unit_norm --quick")
    ours = [row for row in content["rows"] if row["name"] == OURS]
    assert len(ours) >= 3
    for row in ours:
        assert row["samples"] >= 10
        assert row["median_ms"] > 0
        assert row["over_floor"] > 0
        assert 0 <= row["error"] < 1e-6
    assert (tmp_path / "unit_norm_cpu.png").stat().st_size > 10_000
    assert "time / hyperkernels" in done.stdout


@pytest.mark.slow
def test_each_case_is_named_before_it_is_measured():
    command = [sys.executable, "-m", "bench", "unit_norm", "--quick", "-k", "forward"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "finding out what is installed"
    named = [line for line in lines if line.startswith("[")]
    tables = [line for line in lines if "samples)" in line]
    assert named
    assert [f"[{i + 1}/{len(tables)}] {' '.join(table.split()[:-2])}" for i, table in enumerate(tables)] == named
    order = [line for line in lines if line in {*named, *tables}]
    assert order == [line for pair in zip(named, tables, strict=True) for line in pair]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_is_written_over():
    terminal = Terminal()
    progress = Progress(terminal)
    progress.start("[1/2] case")
    progress.step("first calls of peer")
    progress.clear()
    shown = terminal.getvalue()
    assert shown.split("\r\x1b[K") == ["", "[1/2] case", "[1/2] case: first calls of peer", ""]
    assert "\n" not in shown


def test_a_family_that_is_not_there_is_named():
    done = subprocess.run([sys.executable, "-m", "bench", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nonsense: not among" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line():
    command = [sys.executable, "-m", "bench", "unit_norm", "--quick", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert "--device cuda needs a CUDA device" in line


def test_tables_in_the_documents_are_those_of_the_results():
    for page in docs.pages():
        text = page.read_text()
        assert docs.written(text) == text, f"{page.name}: run python -m bench.docs"


def test_a_changed_figure_in_a_document_is_noticed():
    text = (ROOT / "README.md").read_text()
    start = text.index("| ", text.index("-->"))
    assert docs.written(text[:start] + "| 1 " + text[start:]) == text
