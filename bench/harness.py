"""What is compared, and how: contenders that take turns, on inputs that rotate, beside the physical floor."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import memory
from .progress import PROGRESS

OURS = "hyperkernels"
WARM_UP = 2  # rounds thrown away
PATIENCE = 3.0  # seconds: a peer that takes longer is timed in three rounds only, and its row says so
PATIENT_ROUNDS = 3
CUDA_CALLS = 10  # in one sample: the queue stays full, so the gaps of single launches are not charged to the kernel
LEVELS = ("quick", "default", "full")


@dataclass(frozen=True)
class Contender:
    """One way to do the work. ``run(i)`` does it on input set i and returns what it computed: it is compared with the
    truth where it is ``judged``."""

    name: str
    run: Callable[[int], Any]
    is_floor: bool = False
    judged: bool = True


@dataclass(frozen=True)
class Comparison:
    """The contenders of a case, ours first and the floor last.

    ``work`` is what one call must do at least, in flops or bytes, and ``unit`` its rate, "GFLOP/s" or "GB/s".
    ``owned_bytes`` are results that no contender can do without: they are not charged as memory. ``error`` judges what
    a contender computed from input set 0.
    """

    contenders: Sequence[Contender]
    work: float
    unit: str
    input_sets: int = 3
    owned_bytes: int = 0
    error: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Case:
    """One row of contenders: ``build`` makes its inputs, when its turn comes."""

    op: str
    shape: str  # "N=256 C=1000 D=512"
    dtype: torch.dtype
    build: Callable[[], Comparison]
    samples: int = 11

    def __str__(self) -> str:
        return f"{self.op} {self.shape} {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Row:
    """One contender in one case; times are None where it ran out of memory."""

    op: str
    shape: str
    dtype: str
    name: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    samples: int = 0
    rate: float | None = None
    rate_unit: str = ""
    peak_mb: float | None = None
    error: float | None = None
    over_floor: float | None = None
    over_ours: float | None = None
    is_floor: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class Settings:
    """What the command line asks for; a family answers with its cases."""

    device: str = "cpu"
    level: str = "default"
    dtypes: tuple[torch.dtype, ...] = ()  # none: each case's own
    checkpoint: Path | None = None  # time the head that was trained there, nothing else

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def full(self) -> bool:
        return self.level == "full"

    @property
    def quick(self) -> bool:
        return self.level == "quick"

    def wanted(self, cases: Iterator[Case]) -> list[Case]:
        return [case for case in cases if not self.dtypes or case.dtype in self.dtypes]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Stopwatch:
    """A clock that moves while a contender runs: by wall time on the CPU, by events on a GPU."""

    device: str = "cpu"
    now: float = field(default=0.0)

    def __call__(self) -> float:
        return self.now

    def time(self, run: Callable[[int], Any], i: int, input_sets: int) -> float:
        """Seconds of one call on input set i; on a GPU of several calls in a row on sets that rotate, per call."""
        if self.device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for k in range(CUDA_CALLS):
                run((i + k) % input_sets)
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3 / CUDA_CALLS
        else:
            begin = time.perf_counter()
            run(i % input_sets)
            seconds = time.perf_counter() - begin
        self.now += seconds
        return seconds


CLOCK = Stopwatch()


def measure(case: Case, benchmark: Any, clock: Stopwatch) -> list[Row]:
    """Rows of all contenders. ``benchmark`` is pytest-benchmark's fixture, under ``clock`` as its timer: it times our
    rounds; every other contender is timed in the same round, before ours, so that a noisy machine favours none."""
    PROGRESS.step("inputs")
    comparison = case.build()
    facts, slow = _first_calls(case, comparison, clock)
    in_turn = [c for c in comparison.contenders if c.name in slow]
    times: dict[str, list[float]] = {c.name: [] for c in in_turn}
    rounds = itertools.count(-WARM_UP)
    turn = 0

    def take_turn(c: Contender) -> None:
        if slow[c.name] and not 0 <= turn < PATIENT_ROUNDS:
            return
        seconds = clock.time(c.run, turn, comparison.input_sets)
        if turn >= 0:
            times[c.name].append(seconds)

    def others() -> None:
        nonlocal turn
        turn = next(rounds)
        bar.update()
        for c in in_turn[1:]:
            take_turn(c)

    def ours() -> None:
        take_turn(in_turn[0])

    PROGRESS.clear()
    benchmark.group = f"{case.op} {dtype_name(case.dtype)}"
    with tqdm(total=case.samples + WARM_UP, desc=str(case), leave=False, disable=None) as bar:
        benchmark.pedantic(ours, setup=others, rounds=case.samples, warmup_rounds=WARM_UP)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    floor = min((medians[c.name] for c in comparison.contenders if c.is_floor), default=None)
    return [
        Row(
            op=case.op,
            shape=case.shape,
            dtype=dtype_name(case.dtype),
            name=c.name,
            is_floor=c.is_floor,
            **facts[c.name],
            **(_times(times[c.name], comparison, floor, medians[OURS]) if c.name in times else {}),
        )
        for c in comparison.contenders
    ]


def _times(seconds: list[float], comparison: Comparison, floor: float | None, ours: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    deciles = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [median] * 9
    return {
        "median_ms": median * 1e3,
        "p20_ms": deciles[1] * 1e3,
        "p80_ms": deciles[7] * 1e3,
        "samples": len(seconds),
        "rate": comparison.work / median / 1e9,
        "rate_unit": comparison.unit,
        "over_floor": median / floor if floor else None,
        "over_ours": median / ours,
    }


def _first_calls(
    case: Case, comparison: Comparison, clock: Stopwatch
) -> tuple[dict[str, dict[str, Any]], dict[str, bool]]:
    """What the first calls tell of every contender (memory, error), and which of them fit into the machine's memory:
    those have an entry, whether they are too slow to wait for."""
    facts: dict[str, dict[str, Any]] = {}
    slow: dict[str, bool] = {}
    for c in comparison.contenders:
        PROGRESS.step(f"first calls of {c.name.strip()}")
        known = facts[c.name] = {}
        try:
            with memory.limited(clock.device):
                result = c.run(0)  # compiles, too, and fills the caches of libraries
                if comparison.error is not None and c.judged and not c.is_floor:
                    known["error"] = comparison.error(result)
                del result
                begin = time.perf_counter()
                peak = memory.peak_bytes(lambda c=c: c.run(1 % comparison.input_sets), clock.device)
                seconds = time.perf_counter() - begin
                if not c.is_floor:
                    known["peak_mb"] = (peak - comparison.owned_bytes) / 1e6
        except Exception as problem:
            if c.name == OURS or c.is_floor or not memory.exhausted(problem):
                raise
            known["out_of_memory"] = True
            continue
        slow[c.name] = seconds > PATIENCE and c.name != OURS and not c.is_floor
    return facts, slow
