"""A fixed slice of the fuzz (`make fuzz` runs more of it), and that it reaches every op and would notice a fault."""

import subprocess
import sys

import pytest
import torch

from tests.fuzz import case, memory, processes, registry
from tests.support import ROOT, need_cpp_kernels

need_cpp_kernels()

OPS = registry.ops()
CPP = [name for name in OPS if not registry.is_triton(name)]


def test_every_op_has_a_maker_of_valid_problems():
    assert {registry.base(name) for name in OPS} == set(registry.VALID)
    assert len(OPS) >= 57


@pytest.mark.parametrize("name", CPP)
def test_an_op_takes_its_valid_problems_and_survives_spoiled_ones(name):
    verdicts = [case.run(name, seed, "valid") for seed in range(3)] + [case.run(name, seed) for seed in range(100, 112)]
    assert [fault for verdict in verdicts for fault in verdict.faults] == []
    assert all(verdict.ended == "returned" for verdict in verdicts[:3])


@pytest.mark.parametrize("name", CPP)
def test_tensors_on_the_meta_device_beside_others_are_refused(name):
    """The dispatcher takes such a call for one on the meta device: the results would be memory that nobody writes."""
    arguments = case.make(name, 5, "valid").arguments
    tensors = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
    for key in tensors if len(tensors) > 1 else ():
        with pytest.raises(ValueError, match="on the meta device"):
            OPS[name](*(arguments | {key: arguments[key].to("meta")}).values())


@pytest.fixture
def faulty(monkeypatch):
    """Ops made for the test, reached as those of the package are; define(schema, body)."""
    library = torch.library.Library("hyperkernels_faulty", "FRAGMENT")

    def define(body, maker=lambda c: {"x": torch.ones(4), "y": torch.ones(3)}):
        library.define("faulty(Tensor x, Tensor y) -> Tensor")
        library.impl("faulty", body, "CPU")
        monkeypatch.setattr(case, "ops", lambda: {"faulty": torch.ops.hyperkernels_faulty.faulty.default})
        monkeypatch.setattr(case, "base", lambda name: name)
        if maker is not None:
            monkeypatch.setitem(registry.VALID, "faulty", maker)

    yield define
    library._destroy()


def _beyond(x, y):
    # The guards of a placed argument are in its storage.
    for t in (x, y):
        if t.storage_offset():
            torch.as_strided(t, (1,), (1,), t.storage_offset() + t.numel()).fill_(0)
    return x.clone()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (lambda x, y: torch.empty(64), "depends on what was in memory: 0"),
        (lambda x, y: y.add_(1).clone(), "wrote into y"),
        (_beyond, "wrote beyond an argument"),
        (lambda x, y: [][7 + {}["missing"]], "raised KeyError"),
        (lambda x, y: torch.ones(2) @ torch.ones(3), "a valid problem is refused"),
    ],
)
def test_a_fault_is_found(faulty, body, fault):
    faulty(body)
    found = [f for seed in range(8) for f in case.run("faulty", seed, "valid").faults]
    assert any(fault in f for f in found), found


def test_a_case_is_the_same_each_time():
    for name in ("pair_top_k", "sphere_adam_", "class_statistics_backward"):
        for seed in range(6):
            first, second = case.make(name, seed), case.make(name, seed)
            assert first.kind == second.kind
            for a, b in zip(first.arguments.values(), second.arguments.values(), strict=True):
                pairs = zip(case._tensors(a), case._tensors(b), strict=True)
                assert all(case.same(s, t) for s, t in pairs) and (
                    isinstance(a, (torch.Tensor, list)) or repr(a) == repr(b)
                )


def test_memory_is_filled():
    """What is allocated begins with the pattern, also where small blocks were given back just before."""
    found = []
    for pattern in memory.PATTERNS:
        memory.fill(pattern)
        torch.ones(1000)
        found.append(torch.empty(1000))
    memory.fill(None)
    assert found[0].isnan().all() and not found[1].any()


@pytest.mark.parametrize(
    ("broken", "fault"),
    [("import ctypes; ctypes.string_at(0)", "the process died"), ("import time; time.sleep(99)", "has not returned")],
)
def test_the_parent_names_the_case_of_a_child_that_dies_or_hangs(monkeypatch, broken, fault):
    """A child that is not the real one: it announces case 3 and then goes wrong."""
    script = f"print('at 3', flush=True); {broken}"
    real = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", script], **options)
    )
    tally = processes.Tally()
    processes.worker(tally, ["a", "b"], 0, 1, 40, False, float("inf"), 2.0, last=4)
    assert [(found.op, found.seed) for found in tally.found] == [("b", 43)]
    assert fault in str(tally.found[0]) and "python -m tests.fuzz --op b --seed 43" in str(tally.found[0])


def test_the_command_line_runs_a_case_again():
    command = [sys.executable, "-m", "tests.fuzz", "--op", "unit_norm", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unit_norm, a call of kind" in done.stdout
