"""Arguments spoiled, and arguments drawn from the schema alone."""

from __future__ import annotations

import random
from typing import Any

import torch

from .layout import strided
from .registry import Arguments

DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8,
    torch.bool, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip
INTEGERS = (
    0, 1, -1, 2, 3, -2, 7, -7, -100, 128, 1000, 2**20, 2**31 - 1, 2**31, -(2**31), 2**32, 2**32 + 1, 2**40, 2**62,
    2**63 - 1, -(2**63), 2**63, 10**30,
)  # fmt: skip
NUMBERS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1e-12, 1e-45, 1e-320, 1e38, -1e38, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
WORDS = (
    "", "all", "positive", "negative", "dot", "euclidean", "squared_euclidean", "none", "linear", "circle", "softplus",
    "cosine", "quadratic", "gaussian", "angle", "sface", "sphereface2", "uniface", "slerp", "log", "tangent", "exp",
    "retract", "distance", "exponential", "ALL", "\0", "é" * 1000,
)  # fmt: skip


def tensor(draw: random.Random) -> torch.Tensor:
    """Any tensor: mostly a matrix or a vector of few elements."""
    shape = [draw.choice((0, 1, 1, 2, 3, 7, 12, 33)) for _ in range(draw.choice((0, 1, 1, 2, 2, 2, 3)))]
    dtype = draw.choice(DTYPES)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape).to(dtype)
    return torch.randint(-3, 20, shape).to(dtype)


def _spoiled_values(t: torch.Tensor, draw: random.Random) -> torch.Tensor:
    t = t.detach().clone()
    if t.numel() == 0:
        return t
    at = torch.rand(t.shape) < draw.choice((0.05, 0.3, 1.0))
    at.view(-1)[draw.randrange(t.numel())] = True
    if t.dtype.is_floating_point or t.dtype.is_complex:
        value = draw.choice(NUMBERS)
        return torch.where(at, torch.tensor(value, dtype=torch.float64).to(t.dtype), t)
    info = torch.iinfo(torch.uint8 if t.dtype == torch.bool else t.dtype)
    value = draw.choice(
        [i for i in (*INTEGERS, len(t) if t.dim() else 0, info.min, info.max) if info.min <= i <= info.max]
    )
    return torch.where(at, torch.tensor(value, dtype=t.dtype), t)


def _spoiled_shape(t: torch.Tensor, draw: random.Random) -> torch.Tensor:
    ways = ["add dimension", "scalar", "empty"]
    if t.dim():
        ways += ["longer", "shorter", "flat"]
    if t.dim() > 1:
        ways += ["transposed", "narrower", "wider", "no columns"]
    way = draw.choice(ways)
    if way == "add dimension":
        return t.unsqueeze(draw.randrange(t.dim() + 1))
    if way == "scalar":
        return t.flatten()[0].clone() if t.numel() else t.new_zeros(())
    if way == "empty":
        return t.new_empty(0)
    if way == "longer":
        return torch.cat([t, t[:1] if len(t) else t.new_zeros((1, *t.shape[1:]))])
    if way == "shorter":
        return t[:-1].clone()
    if way == "flat":
        return t.flatten()
    if way == "transposed":
        return t.transpose(0, 1)
    if way == "narrower":
        return t[:, :-1].clone()
    if way == "wider":
        return torch.cat([t, t], 1)
    return t[:, :0]


def spoiled_tensor(t: torch.Tensor, draw: random.Random) -> Any:
    way = draw.choice(("values", "values", "values", "shape", "shape", "dtype", "strides", "kind", "any"))
    if way == "values":
        return _spoiled_values(t, draw)
    if way == "shape":
        return _spoiled_shape(t, draw)
    if way == "dtype":
        return t.to(draw.choice(DTYPES))
    if way == "strides":
        return strided(t, draw)
    if way == "kind":
        return draw.choice((lambda: t.to("meta"), t.to_sparse, lambda: None, lambda: t.tolist()))()
    return tensor(draw)


def spoiled(value: Any, draw: random.Random) -> Any:
    """Another value, usually of the same type."""
    if isinstance(value, torch.Tensor):
        return spoiled_tensor(value, draw)
    if isinstance(value, list):
        return _spoiled_list(value, draw)
    if value is None:
        return tensor(draw)
    if isinstance(value, bool):
        return draw.choice((not value, not value, 7, None))
    if isinstance(value, int):
        return draw.choice((draw.choice(INTEGERS), value + 1, value - 1))
    if isinstance(value, float):
        return draw.choice(NUMBERS)
    return draw.choice(WORDS)


def _spoiled_list(value: list[Any], draw: random.Random) -> list[Any]:
    way = draw.choice(("element", "element", "shorter", "longer", "empty"))
    if way == "element" and value:
        at = draw.randrange(len(value))
        return [*value[:at], spoiled(value[at], draw), *value[at + 1 :]]
    if way == "shorter":
        return value[:-1]
    if way == "longer":
        return [*value, value[-1].clone() if value else tensor(draw)]
    return []


def spoil(arguments: Arguments, draw: random.Random) -> Arguments:
    names = draw.sample(list(arguments), min(len(arguments), draw.choice((1, 1, 1, 2, 3))))
    return {name: spoiled(value, draw) if name in names else value for name, value in arguments.items()}


def garbage(schema: torch._C.FunctionSchema, draw: random.Random) -> Arguments:
    """Values of the types that the schema asks for, and nothing more."""
    makers = {
        "Tensor": lambda: tensor(draw),
        "Optional[Tensor]": lambda: draw.choice((None, tensor(draw))),
        "List[Tensor]": lambda: [tensor(draw) for _ in range(draw.randrange(3))],
        "int": lambda: draw.choice(INTEGERS),
        "SymInt": lambda: draw.choice(INTEGERS),
        "float": lambda: draw.choice(NUMBERS),
        "bool": lambda: draw.choice((False, True)),
        "str": lambda: draw.choice(WORDS),
    }
    return {argument.name: makers[str(argument.type)]() for argument in schema.arguments}
