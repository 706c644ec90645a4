"""One case: an op and a seed, called twice over memory of two patterns, and what is wrong with what came of it."""

from __future__ import annotations

import random
import warnings
from typing import Any, NamedTuple

import torch

from . import hostile, memory, valid_heads, valid_optim, valid_pairs, valid_rows  # noqa: F401  they register
from .layout import Guards, strided
from .registry import VALID, Arguments, Context, base, is_triton, ops

KINDS = {"valid": 3, "layout": 2, "spoiled": 4, "garbage": 1}
ALLOWED = (TypeError, ValueError, IndexError, RuntimeError, MemoryError)


class Call(NamedTuple):
    kind: str
    arguments: Arguments
    guards: Guards


class Outcome(NamedTuple):
    error: Exception | None
    results: list[torch.Tensor]  # the outputs, then the arguments that the op writes
    faults: list[str]


class Verdict(NamedTuple):
    kind: str
    ended: str  # returned, or the name of the exception
    faults: list[str]


def make(name: str, seed: int, kind: str | None = None) -> Call:
    """The call of that op and seed; `kind` None: the seed chooses."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    chosen = draw.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    kind = kind or chosen
    maker = VALID.get(base(name))
    schema, guards = ops()[name]._schema, Guards()
    if maker is None or kind == "garbage":
        return Call("garbage", hostile.garbage(schema, draw), guards)
    made = maker(Context(draw, is_triton(name)))
    arguments = {argument.name: made[argument.name] for argument in schema.arguments}
    if kind == "spoiled":
        arguments = hostile.spoil(arguments, draw)
    if kind == "layout":
        arguments = _mapped(arguments, lambda t: strided(t, draw) if draw.random() < 0.5 else t)
    # The others have storages of exactly their size, whose ends a sanitizer watches.
    offset = draw.choice((0, 1, 3, 64))
    if kind != "layout" and draw.random() < 0.5:
        arguments = _mapped(arguments, lambda t: guards.place(t, offset) if _placeable(t) else t)
    return Call(kind, arguments, guards)


def _placeable(t: torch.Tensor) -> bool:
    return t.device.type == "cpu" and t.layout == torch.strided and t.is_contiguous()


def _mapped(arguments: Arguments, f: Any) -> Arguments:
    def mapped(value: Any) -> Any:
        if isinstance(value, list):
            return [mapped(v) for v in value]
        return f(value) if isinstance(value, torch.Tensor) else value

    return {name: mapped(value) for name, value in arguments.items()}


def _tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _readable(t: torch.Tensor) -> bool:
    return t.device.type == "cpu" and t.layout == torch.strided


def _bytes(t: torch.Tensor) -> torch.Tensor:
    """[elements, bytes of each]."""
    return t.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).view(t.numel(), -1)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in shape, dtype and every bit, but for the kind of NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or _readable(a) != _readable(b):
        return False
    if not _readable(a) or a.numel() == 0:
        return True
    equal = (_bytes(a) == _bytes(b)).all(1)
    if a.dtype.is_floating_point or a.dtype.is_complex:
        a, b = (t.to(torch.float64 if t.dtype.is_floating_point else t.dtype).flatten() for t in (a, b))
        equal |= a.isnan() & b.isnan()
    return bool(equal.all())


def _call(name: str, seed: int, kind: str | None) -> tuple[Call, Outcome]:
    call = make(name, seed, kind)
    op = ops()[name]
    written = {a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    read = [(n, t, t.clone()) for n, v in call.arguments.items() if n not in written for t in _tensors(v)]
    faults: list[str] = []
    try:
        out = op(*call.arguments.values())
    except ALLOWED as error:
        return call, Outcome(error, [], faults)
    except Exception as error:  # none of the kinds that a wrong argument may raise
        faults.append(f"raised {type(error).__name__}: {error}")
        return call, Outcome(error, [], faults)
    faults += [f"wrote into {n}, which its schema does not say" for n, t, before in read if not same(t, before)]
    if call.guards.touched():
        faults.append("wrote beyond an argument")
    results = _tensors(out) + [t for n in sorted(written) for t in _tensors(call.arguments[n])]
    return call, Outcome(None, results, faults)


def run(name: str, seed: int, kind: str | None = None) -> Verdict:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        outcomes = []
        for pattern in memory.PATTERNS:
            memory.fill(pattern)
            call, outcome = _call(name, seed, kind)
            outcomes.append(outcome)
        memory.fill(None)
    first, second = outcomes
    faults = list(dict.fromkeys(first.faults + second.faults))
    ended = "returned" if first.error is None else type(first.error).__name__
    if type(first.error) is not type(second.error):
        faults.append(f"raises or not by what was in memory: {first.error!r}; {second.error!r}")
    elif first.error is None:
        differ = [k for k, pair in enumerate(zip(first.results, second.results, strict=True)) if not same(*pair)]
        names = [r.name or str(k) for k, r in enumerate(ops()[name]._schema.returns)]
        wrong = [names[k] if k < len(names) else "a written argument" for k in differ]
        wrong = [w for w in wrong if w not in memory.SCRATCH.get(base(name), ())]
        if wrong:
            faults.append(f"depends on what was in memory: {', '.join(wrong)}")
    if call.kind == "valid" and first.error is not None:
        faults.append(f"a valid problem is refused: {first.error!r}")
    return Verdict(call.kind, ended, faults)
