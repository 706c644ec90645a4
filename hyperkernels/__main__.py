"""``python -m hyperkernels``: what serves which device, what to type where kernels are missing, and the details."""

from __future__ import annotations

import os
import platform

import torch

from . import __version__, _backend, _native

NAMES = {"cpp": "C++ kernels", "cuda": "CUDA C++ kernels", "triton": "Triton kernels", "reference": "plain PyTorch"}


def _served(device: str) -> str:
    """What serves the families on that device; where it is not one for all, each with its families."""
    by_backend: dict[str, list[str]] = {}
    for family in _backend.KERNELS:
        by_backend.setdefault(_backend.choose(family, device).backend, []).append(family)
    if len(by_backend) == 1:
        return NAMES[next(iter(by_backend))]
    return ", ".join(f"{NAMES[backend]} ({', '.join(families)})" for backend, families in by_backend.items())


def _summary() -> list[str]:
    """A sentence for each device, and what to type where it has no kernels."""
    lines = []
    try:
        lines.append(f"The CPU is served by {_served('cpu')}.")
        gpus = torch.cuda.is_available()
        subject = "The GPU is" if gpus else "No GPU is visible; one would be"
        lines.append(f"{subject} served by {_served('cuda')}.")
    except RuntimeError as error:
        return [f"Error: {error}."]
    if _native.OBSTACLE is not None:
        faster = "C++ kernels are faster on a CPU and take less memory."
        lines.append(f"{faster} To build them, run in the source folder: {_native.BUILD_COMMAND}")
    if _backend.triton_obstacle() is not None and gpus:
        oldest = ".".join(map(str, _backend.OLDEST_TRITON))
        lines.append(f"Triton kernels are faster on a GPU and take less memory: pip install 'triton>={oldest}'")
    return lines


def _build() -> list[tuple[str, str]]:
    if _native.OBSTACLE is not None:
        return [("library", f"none: {_native.OBSTACLE}")]
    facts = _native.build_info()
    return [
        ("library", str(_native.PATH)),
        ("compiler", facts["compiler"]),
        ("instruction sets", facts["instruction_sets"]),
        ("CUDA architectures", facts["cuda_architectures"] or "none: built without CUDA"),
    ]


def _found() -> list[tuple[str, str]]:
    cpu = f"{torch.get_num_threads()} threads"
    if _native.OBSTACLE is None:
        cpu += f", {_native.cpu_capability()} kernels in use"
    rows = [("python", platform.python_version()), ("torch", torch.__version__), ("cpu", cpu)]
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        rows.append(("cuda", f"{torch.version.cuda}, {torch.cuda.get_device_name()}, sm_{major}{minor}"))
    else:
        rows.append(
            ("cuda", f"no device ({'torch built without it' if torch.version.cuda is None else 'none visible'})")
        )
    triton = _backend.triton_obstacle()
    if triton is None:
        import triton as module

        triton = module.__version__
    rows.append(("triton", triton))
    if os.environ.get(_backend.ENV_VARIABLE):
        rows.append((_backend.ENV_VARIABLE, os.environ[_backend.ENV_VARIABLE]))
    return rows


def _choices() -> list[tuple[str, str]]:
    rows = []
    for family in _backend.KERNELS:
        for device in ("cpu", "cuda"):
            try:
                backend, reason = _backend.choose(family, device)
            except RuntimeError as error:
                backend, reason = "error", str(error)
            rows.append((f"{family} on {device}", f"{backend:<10} {reason}"))
    return rows


def main() -> None:
    print(f"hyperkernels {__version__}\n")
    print(*_summary(), sep="\n")
    for title, rows in (("built", _build()), ("found", _found()), ("backends", _choices())):
        print(f"\n{title}")
        for name, value in rows:
            print(f"  {name:<24}{value}")


if __name__ == "__main__":
    main()
