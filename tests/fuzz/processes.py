"""Cases in child processes, and a parent that knows which case a child was at when it died or stopped."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MEMORY = 2**30  # bytes that a child may take for its cases
# Of a sanitizer: an allocation too large for operator new, which is bad_alloc elsewhere.
TOO_LARGE = ("allocation-size-too-big", "out-of-memory", "exceeds maximum supported size", "rss-limit-exceeded")


@dataclass
class Found:
    op: str
    seed: int
    fault: str
    details: str = ""

    def __str__(self) -> str:
        again = f"python -m tests.fuzz --op {self.op} --seed {self.seed}"
        return f"{self.op}: {self.fault}\n  again: {again}\n{self.details}"


@dataclass
class Tally:
    """What came of the cases, over all children."""

    ended: dict[str, Counter[str]] = field(default_factory=dict)  # by op: the kinds that returned, and the exceptions
    found: list[Found] = field(default_factory=list)
    cases: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, op: str, kind: str, ended: str) -> None:
        with self.lock:
            self.cases += 1
            self.ended.setdefault(op, Counter())[f"{kind} {ended}"] += 1

    def find(self, found: Found) -> None:
        with self.lock:
            self.found.append(found)
        print(found, flush=True)


def child(names: list[str], first: int, stride: int, seed: int) -> None:
    """Case after case, each announced before it begins and judged after, until the pipe closes."""
    import faulthandler

    from . import case, memory

    faulthandler.enable()
    out = sys.stdout
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer reserves terabytes, and has a limit of its own
        memory.limit(MEMORY)
    number = first
    while True:
        name = names[number % len(names)]
        print(f"at {number}", file=out, flush=True)
        verdict = case.run(name, seed + number)
        print("done", verdict.kind, verdict.ended, *[repr(f) for f in verdict.faults], sep="\t", file=out, flush=True)
        number += stride


class Child:
    """A child process that is at one case at a time."""

    def __init__(self, names: list[str], first: int, stride: int, seed: int, triton: bool) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the object
        code = f"from tests.fuzz.processes import child; child({names!r}, {first}, {stride}, {seed})"
        environment = os.environ | {"TRITON_INTERPRET": str(int(triton))}
        # Without the caches of small blocks in front of it malloc fills these too.
        environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=self.errors, env=environment, cwd=ROOT
        )
        self.buffer = b""

    def line(self, until: float) -> str | None:
        """The next line; None where none came in time, empty where the child is dead."""
        assert self.process.stdout is not None
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                return ""
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def end(self) -> str:
        """What it said on stderr, and how it ended."""
        self.process.kill() if self.process.poll() is None else None
        self.process.wait()
        self.errors.seek(0)
        return self.errors.read()


def worker(
    tally: Tally, names: list[str], first: int, stride: int, seed: int, triton: bool, end: float, patience: float,
    last: int | None = None,
) -> None:  # fmt: skip
    """Cases first, first + stride, ... until the time is over, or up to `last`, in one child after another."""
    number: int | None = None
    while time.monotonic() < end and (last is None or first < last):
        process = Child(names, first, stride, seed, triton)
        number = None
        while True:
            # A start takes its time; the child may be stopped between two cases only when the time is over.
            line = process.line(time.monotonic() + (patience if number is not None else patience + 300))
            if line is None or line == "":
                _blame(tally, process, names, number, seed, line is None, patience)
                break
            if line.startswith("at "):
                number = int(line[3:])
                first = number
                if time.monotonic() >= end or (last is not None and number >= last):
                    process.end()
                    return
            elif line.startswith("done\t"):
                assert number is not None
                _, kind, ended, *faults = line.split("\t")
                name = names[number % len(names)]
                tally.add(name, kind, ended)
                for fault in faults:
                    tally.find(Found(name, seed + number, fault))
        first = (first if number is None else number) + stride


def _blame(
    tally: Tally, process: Child, names: list[str], number: int | None, seed: int, hangs: bool, patience: float
) -> None:
    code = process.process.poll()
    said = process.end()
    code = process.process.returncode if code is None and not hangs else code
    if number is None:
        raise RuntimeError(f"a child did not start:\n{said[-3000:]}")
    name = names[number % len(names)]
    if any(words in said for words in TOO_LARGE):
        tally.add(name, "any", "MemoryError")
        return
    fault = f"has not returned within {patience:.0f} s" if hangs else f"the process died ({code})"
    tally.find(Found(name, seed + number, fault, said[-6000:]))


def campaign(names: list[str], seed: int, budget: float, jobs: int, patience: float, last: int | None = None) -> Tally:
    """Cases of all these ops for so many seconds; the Triton kernels have children with the interpreter."""
    from .registry import is_triton

    tally = Tally()
    end = time.monotonic() + budget
    groups = [[n for n in names if is_triton(n) == triton] for triton in (False, True)]
    threads = []
    for triton, group in enumerate(groups):
        for job in range(jobs if group else 0):
            arguments = (tally, group, job, jobs, seed, bool(triton), end, patience, last)
            threads.append(threading.Thread(target=worker, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally
