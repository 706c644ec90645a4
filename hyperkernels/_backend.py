"""Which backend runs an op: the device's own by default, another when the user forces it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch

from . import _native

BACKENDS = ("reference", "cpp", "triton", "cuda")
ENV_VARIABLE = "HYPERKERNELS_BACKEND"
OLDEST_TRITON = (3, 5)

# What each family has hand-written kernels for. `python -m hyperkernels` and `select` both read it.
KERNELS = {
    "unit_norm": ("cpp", "triton", "cuda"),
    "sphere": ("cpp", "triton"),
    "margin_softmax": ("cpp", "triton"),
    "pair_mining": ("cpp", "triton"),
    "optim": ("cpp", "triton"),
}

_forced: list[str] = []  # the innermost block's last


class Choice(NamedTuple):
    backend: str
    reason: str


def _check_name(name: str, argument: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend inside a ``with`` block.

    Args:
        name: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: ``name`` is none of these.

    An op that has no kernel of that backend for its device raises ``RuntimeError`` when it is called. The setting
    belongs to the process, so that autograd's own threads see it; it wins over the environment variable
    ``HYPERKERNELS_BACKEND``.
    """
    _forced.append(_check_name(name, "backend name"))
    try:
        yield
    finally:
        # Blocks of several threads may end in any order: each takes away an entry of its own name, the latest.
        del _forced[len(_forced) - 1 - _forced[::-1].index(name)]


Function = TypeVar("Function", bound=Callable[..., Any])


def _untraced(function: Function) -> Function:
    """Mark a fact of the machine: a compiler calls the function and traces nothing. The mark is the one that
    torch.compiler.assume_constant_result makes, which would import the whole compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@cache
def triton_obstacle() -> str | None:
    """Why Triton cannot run the kernels; None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    version = importlib.import_module("triton").__version__
    # An older one cannot take named tuples as arguments, or spills registers.
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TRITON:
        return f"Triton {version} is too old: the kernels need {'.'.join(map(str, OLDEST_TRITON))} or later"
    return None


def has_triton() -> bool:
    return triton_obstacle() is None


@cache
def has_cuda_kernels() -> bool:
    return _native.OBSTACLE is None and bool(_native.build_info()["cuda_architectures"])


def _runs_on(device: tuple[int, int], architectures: str) -> bool:
    """Whether a GPU of that compute capability runs one of a build's architectures, such as "8.0,9.0a,12.0+PTX"."""
    for major, minor, only, portable in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        built = int(major), int(minor)
        # "a" runs on its own capability alone, "f" on later ones of its family, PTX on all later ones.
        later = {"a": False, "f": built[0] == device[0], "": built[0] == device[0] or bool(portable)}[only]
        if built == device or (built < device and later):
            return True
    return False


@cache
def _built_for_these_gpus() -> bool:
    """Whether every visible GPU, of which tensors may be on any, can run the machine code or the PTX of the build; True
    where there is no GPU to ask."""
    if _native.OBSTACLE is not None or not torch.cuda.is_available():
        return True
    architectures = _native.build_info()["cuda_architectures"]
    devices = range(torch.cuda.device_count())
    return all(_runs_on(torch.cuda.get_device_capability(device), architectures) for device in devices)


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@_untraced
def _unavailable(family: str, name: str, device_type: str) -> str | None:
    """Why backend `name` cannot run `family` on that device; None when it can."""
    if name == "reference":
        return None
    if name not in KERNELS[family]:
        return f"{family} has no {name} kernels"
    if name == "cpp":
        if _native.OBSTACLE is not None:
            return _native.OBSTACLE
        return None if device_type == "cpu" else f"cpp kernels run on cpu, not on {device_type}"
    if name == "cuda":
        if _native.OBSTACLE is not None:
            return _native.OBSTACLE
        if not has_cuda_kernels():
            return "the library was built without CUDA kernels"
        if not _built_for_these_gpus():
            return f"the library was not built for every visible GPU ({_native.build_info()['cuda_architectures']})"
        return None if device_type == "cuda" else f"cuda kernels run on cuda, not on {device_type}"
    if not has_triton():
        return triton_obstacle()
    if device_type == "cpu" and not _interpreting():
        return "Triton runs on the cpu only in its interpreter (TRITON_INTERPRET=1)"
    return None if device_type in ("cpu", "cuda") else f"triton kernels run on cuda, not on {device_type}"


def choose(family: str, device_type: str) -> Choice:
    """The backend that would run `family` on tensors of that device, and why; a forced misfit raises."""
    forced, source = (_forced[-1] if _forced else None), "hyperkernels.backend()"
    if forced is None and os.environ.get(ENV_VARIABLE):
        forced, source = _check_name(os.environ[ENV_VARIABLE], ENV_VARIABLE), ENV_VARIABLE
    if forced is not None:
        obstacle = _unavailable(family, forced, device_type)
        if obstacle is not None:
            raise RuntimeError(f"{source} forces the backend {forced!r} for {family} on {device_type}, but {obstacle}")
        return Choice(forced, f"forced by {source}")
    return _default(family, device_type)


@cache
def _default(family: str, device_type: str) -> Choice:
    """The first of the device's own backends that can run the family."""
    if device_type == "meta":
        return Choice("cpp", "the ops know their shapes, for which no kernel runs")
    obstacles: list[str] = []
    for name in {"cpu": ("cpp",), "cuda": ("cuda", "triton")}.get(device_type, ()):
        obstacle = _unavailable(family, name, device_type)
        if obstacle is None:
            return Choice(name, "; ".join([*obstacles, f"{name} kernels serve {device_type}"]))
        obstacles.append(obstacle)
    return Choice("reference", "; ".join(obstacles) or f"no kernels for {device_type}")


@cache
def _warn_once(family: str, device_type: str, reason: str) -> None:
    frame: FrameType | None = sys._getframe()
    depth = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("hyperkernels"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(
        f"hyperkernels runs {family} on {device_type} in plain PyTorch: {reason}", RuntimeWarning, stacklevel=depth
    )


@_untraced
def _default_backend(family: str, device_type: str) -> str:
    """The device's own backend, with one warning per process where that is the reference for want of kernels."""
    choice = _default(family, device_type)
    if choice.backend == "reference" and device_type in ("cpu", "cuda"):
        _warn_once(family, device_type, choice.reason)
    return choice.backend


def select(family: str, device: torch.device) -> str:
    """The backend that runs `family` on tensors of that device."""
    if _forced or os.environ.get(ENV_VARIABLE):
        return choose(family, device.type).backend
    return _default_backend(family, device.type)
