"""``python -m hyperkernels``: what was built, what was found, and which backend each op would use where."""

from __future__ import annotations

import os
import platform

import torch

from . import __version__, _backend, _native


def _build() -> list[tuple[str, str]]:
    if _native.OBSTACLE is not None:
        return [("extension", f"none: {_native.OBSTACLE}")]
    facts = _native.build_info()
    return [
        ("extension", str(_native.PATH)),
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
    print(f"hyperkernels {__version__}")
    for title, rows in (("built", _build()), ("found", _found()), ("backends", _choices())):
        print(f"\n{title}")
        for name, value in rows:
            print(f"  {name:<24}{value}")


if __name__ == "__main__":
    main()
