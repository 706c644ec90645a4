"""The ops of the dispatcher, and who makes valid problems for them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import hyperkernels  # noqa: F401  registers the ops

Arguments = dict[str, Any]


class Context(NamedTuple):
    """What a maker of problems draws from. PyTorch's own generator is seeded as well."""

    random: random.Random
    triton: bool  # the op runs in Triton's interpreter

    def choice(self, *values: Any) -> Any:
        return self.random.choice(values)

    def chance(self, probability: float = 0.5) -> bool:
        return self.random.random() < probability

    def dtype(self) -> torch.dtype:
        """One that the op's kernels compute with; the interpreter's bfloat16 is garbage."""
        halves = (torch.float16,) if self.triton else (torch.float16, torch.bfloat16)
        return self.choice(torch.float64, torch.float32, *halves)

    def size(self) -> int:
        return self.choice(0, 1, 2, 3, 7, 12) if self.triton else self.choice(0, 1, 2, 3, 7, 31, 70, 300)

    def dim(self) -> int:
        return self.choice(1, 3, 17) if self.triton else self.choice(1, 2, 3, 8, 17, 33, 130)


VALID: dict[str, Callable[[Context], Arguments]] = {}


def valid(*names: str) -> Callable[[Callable[..., Arguments]], Callable[..., Arguments]]:
    """Marks a maker of arguments that ops of these names, Triton's twins included, must take without an error."""

    def register(maker: Callable[..., Arguments]) -> Callable[..., Arguments]:
        for name in names:
            VALID[name] = maker
        return maker

    return register


@functools.cache
def ops() -> dict[str, torch._ops.OpOverload]:
    """By name, of every overload under hyperkernels::."""
    found = {}
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, name = qualified.partition("::")
        if namespace == "hyperkernels":
            packet, _, overload = name.partition(".")
            found[name] = getattr(getattr(torch.ops.hyperkernels, packet), overload or "default")
    return dict(sorted(found.items()))


def is_triton(name: str) -> bool:
    return name.endswith("triton")


@functools.cache
def base(name: str) -> str:
    """The op of which this is the Triton twin, or the op itself."""
    short = name.removesuffix("triton")
    return short.removesuffix("_") if short.removesuffix("_") in ops() else short
