"""Argument checks: a wrong argument is named, with what it was and what it must be, before any kernel runs."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

LARGEST = sys.float_info.max
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Function = TypeVar("Function", bound=Callable[..., Any])


def of_data(function: Function) -> Function:
    """Refuse tensors on the device "meta", which have no data, by the name of the function: the data decide how many
    pairs it lists."""

    @functools.wraps(function)
    def checked(*args: Any, **named: Any) -> Any:
        tensors = [value for value in (*args, *named.values()) if isinstance(value, torch.Tensor)]
        if tensors and all(value.is_meta for value in tensors):
            raise NotImplementedError(
                f"{function.__name__} lists pairs, as many as the data say, and tensors on the device 'meta' have none"
            )
        return function(*args, **named)

    return checked  # type: ignore[return-value]


def tensor(
    name: str, value: Any, dtypes: tuple[torch.dtype, ...] | None = None, dim: int | None = None
) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {str(value.layout).removeprefix('torch.')}")
    if dtypes is not None and value.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must have dtype {names}; got {str(value.dtype).removeprefix('torch.')}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimension(s); got shape {tuple(value.shape)}")
    return value


def same_device(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name} ({other.device}); got {value.device}")


def state_on_device(name: str, value: Any, other_name: str, other: torch.Tensor) -> None:
    """Raise where parameters or buffers of a module lie elsewhere; what is no module has none."""
    if isinstance(value, torch.nn.Module):
        for own_name, own in itertools.chain(value.named_parameters(), value.named_buffers()):
            if own.device != other.device:
                raise ValueError(
                    f"{name} must be on the device of {other_name} ({other.device}), where "
                    f"{name}.to({other_name}.device) puts it; got {own_name} on {own.device}"
                )


def integer(name: str, value: Any, minimum: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if not -(2**63) <= value < 2**63:  # one of thousands of digits cannot be printed
        raise ValueError(f"{name} must be within 64 bits, with its sign; got one of {value.bit_length()} bits")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def number(
    name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf, above: float = -math.inf
) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not -LARGEST <= value <= LARGEST:  # traceable by torch.compile, unlike math.isfinite
        shown = value if isinstance(value, float) else f"an int of {value.bit_length()} bits"
        raise ValueError(f"{name} must be finite, as a float; got {shown}")
    if value <= above:
        raise ValueError(f"{name} must be greater than {above}; got {value}")
    if not minimum <= value <= maximum:
        bounds = f"at least {minimum}" if maximum == math.inf else f"in [{minimum}, {maximum}]"
        raise ValueError(f"{name} must be {bounds}; got {value}")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return str(value)
