"""Every public function on inputs that are always the same, and the bits of what it returns, to compare two commits.

    python -m tests.recorded write FILE [--backend reference cpp triton]
    python -m tests.recorded compare BEFORE AFTER

Losses, heads and functions of the sphere go with their gradients. The Triton kernels run with TRITON_INTERPRET=1, on
the smaller sizes. Bits depend on the machine: both files must come from the same one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import hyperkernels as hk
from hyperkernels._dtypes import widest_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Case = tuple[str, Callable[[], Any]]


def _bits(value: Any) -> Any:
    """Shape, dtype and a digest of each tensor in it, in order."""
    if isinstance(value, torch.Tensor):
        if value.layout == torch.sparse_coo:
            return [_bits(value.coalesce().indices()), _bits(value.coalesce().values())]
        plain = value.detach().contiguous().flatten()
        nan = plain.isnan() if plain.is_floating_point() else torch.zeros_like(plain, dtype=torch.bool)
        plain = torch.where(nan, torch.zeros_like(plain), plain)  # whichever NaN it is
        words = plain.view(torch.uint8).numpy().tobytes() + nan.numpy().tobytes()
        name = str(value.dtype).removeprefix("torch.")
        return f"{name}{list(value.shape)} {hashlib.sha1(words).hexdigest()[:16]}"
    if isinstance(value, (tuple, list)):
        return [_bits(v) for v in value]
    return repr(value)


def _with_gradients(function: Callable[..., Any], *leaves: torch.Tensor) -> Any:
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    out = function(*leaves)
    tensors = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
    reached = [t for t in tensors if t.requires_grad]
    if not reached:
        return out
    wide = widest_dtype(reached[0].device)
    total = sum((t.to(wide) * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum() for t in reached)
    total.backward()
    return out, [None if leaf.grad is None else leaf.grad for leaf in leaves]


def _rows(n: int, d: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def _labels(n: int, classes: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def _losses(n: int, d: int, dtype: torch.dtype) -> Iterator[Case]:
    x, ref = _rows(n, d, dtype, 1), _rows(n, d, dtype, 2)
    labels, ref_labels = _labels(n, 5), _labels(n, 5, 4)
    given = {
        "labels": labels, "ref": ref, "ref_labels": ref_labels, "temperature": 0.2, "beta": 1.1, "margin": 0.3,
        "proxies": ref[:5], "centers": _rows(10, d, dtype, 5), "y": ref, "fused": ref, "Tn": 10.0,
    }  # fmt: skip
    for name in hk.losses.__all__:
        function = getattr(hk.losses, name)
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        needed = {k for k, p in parameters.items() if p.default is inspect.Parameter.empty}
        needed |= {"labels"} & {*parameters}
        options: list[dict[str, Any]] = [{}]
        if "ref_labels" in parameters:
            options.append({"ref": ref, "ref_labels": ref_labels})
        if "ids" in parameters:
            options.append({"ids": _labels(n, n - 2, 6)})
        if "similarity" in parameters:
            options += [{"similarity": s} for s in ("dot", "euclidean", "squared_euclidean")]
        if "reduction" in parameters:
            options.append({"reduction": "none"})
        if name == "meow":
            given["labels"] = labels[:, None]
        for option in options:
            arguments = {k: given[k] for k in needed - {"x"} if k in given} | option
            if "labels" in arguments and "ref" in arguments and "ref_labels" in parameters:
                arguments["ref_labels"] = ref_labels[:, None] if name == "meow" else ref_labels
            learned = ref if arguments.get("ref") is ref or arguments.get("y") is ref else None

            def call(function=function, arguments=arguments, learned=learned) -> Any:
                def run(x: torch.Tensor, other: torch.Tensor | None = None) -> Any:
                    return function(x, **{k: other if v is learned is not None else v for k, v in arguments.items()})

                return _with_gradients(run, x, *(() if learned is None else (learned,)))

            yield f"losses.{name} {sorted(option)} {option.get('similarity', '')}", call
        given["labels"] = labels


def _miners(n: int, d: int, dtype: torch.dtype) -> Iterator[Case]:
    x, ref = _rows(n, d, dtype, 1), _rows(n, d, dtype, 2)
    labels, ref_labels = _labels(n, 5), _labels(n, 5, 4)
    for name in hk.mining.__all__:
        function = getattr(hk.mining, name)
        parameters = inspect.signature(function).parameters if inspect.isfunction(function) else {}
        if "labels" not in parameters:
            continue
        own = {"k": 3} if "k" in parameters else {}
        own |= {"bank": ref, "bank_labels": ref_labels} if "bank" in parameters else {}
        for option in ({}, {"ref": ref, "ref_labels": ref_labels}, {"similarity": "euclidean"}):
            if not {*option} <= {*parameters}:
                continue

            def call(function=function, option=own | option) -> Any:
                torch.manual_seed(7)
                return function(x, labels, **option)

            yield f"mining.{name} {sorted(option)}", call


def _heads(n: int, d: int, dtype: torch.dtype) -> Iterator[Case]:
    classes = 23
    x, weight, target = _rows(n, d, dtype, 1), _rows(classes, d, dtype, 2), _labels(n, classes)
    target[1] = -100
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    margins = [getattr(hk.margins, name) for name in hk.margins.__all__ if name not in ("Margin", "Rows")]
    for kind in margins:
        own = {"ClassMargin": (torch.linspace(0, 0.4, classes),), "AdaCos": (classes,)}.get(kind.__name__, ())

        def head(kind=kind, own=own) -> Any:
            torch.manual_seed(7)
            given = {"margin": kind(*own), "scale": 16.0, "normalize_x": kind.__name__ != "ASoftmax"}
            return _with_gradients(lambda x, w: hk.margin_softmax_loss(x, w, target, **given), x, weight)

        yield f"head {kind.__name__}", head
    options: dict[str, dict[str, Any]] = {
        "none": {"reduction": "none"},
        "smoothed": {"label_smoothing": 0.1},
        "others": {"label_smoothing": 0.1, "smoothing_over": "others"},
        "linear": {"normalize_x": False, "normalize_weight": False, "scale": 1.0, "margin": hk.margins.NormFace()},
        "no workspace": {"workspace": 0},
        "skipped": {"skip_budget": 0.05},
        "sampled": {"classes": torch.arange(0, classes)},
        "bias": {"bias": torch.linspace(-1, 1, classes, dtype=wide), "class_scale": torch.linspace(0.5, 2, classes)},
        "rows": {"scale": torch.linspace(4, 30, n, dtype=wide)},
        "callable": {"margin": lambda cos, norm: cos - 0.1 * norm / (1 + norm)},
    }
    for name, option in options.items():

        def loss(option=option) -> Any:
            given = {"margin": hk.margins.ArcFace(0.4), "scale": 16.0} | option
            return _with_gradients(lambda x, w: hk.margin_softmax_loss(x, w, target, **given), x, weight)

        yield f"head {name}", loss
    centers = _rows(3 * classes, d, dtype, 5)
    yield (
        "head sub-centres",
        lambda: _with_gradients(
            lambda x, w: hk.margin_softmax_loss(x, w, target, sub_centers=3, scale=16.0), x, centers
        ),
    )
    yield "class_statistics", lambda: _with_gradients(lambda x, w: tuple(hk.class_statistics(x, w, target)), x, weight)
    for name in ("sface_loss", "sphereface2_loss", "uniface_loss"):

        def sums(name=name) -> Any:
            function = getattr(hk, name)
            own = {"bias": torch.zeros((), dtype=wide)} if name != "sface_loss" else {}
            return _with_gradients(lambda x, w: function(x, w, target, **own), x, weight)

        yield name, sums


def _sphere(n: int, d: int, dtype: torch.dtype) -> Iterator[Case]:
    x, y = _rows(n, d, dtype, 1), _rows(n, d, dtype, 2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    t, labels = torch.linspace(0, 1, n, dtype=wide), _labels(n, 4)
    functions: dict[str, Callable[..., Any]] = {
        "unit_norm": lambda x, y: hk.unit_norm(x),
        "unit_norm_": lambda x, y: hk.unit_norm_(x.detach().clone()),
        "angle": hk.sphere.angle,
        "slerp": lambda x, y: hk.sphere.slerp(x, y, t),
        "log_map": hk.sphere.log_map,
        "exp_map": lambda x, y: hk.sphere.exp_map(x, 0.3 * y),
        "tangent": hk.sphere.tangent,
        "retract": lambda x, y: hk.sphere.retract(x, 0.3 * y),
        "transport": lambda x, y: hk.sphere.transport(x, y, 0.5 * y),
        "residual": lambda x, y: hk.sphere.residual(x, y, torch.full((d,), 0.1, dtype=wide)),
        "scaled_unit_norm": lambda x, y: hk.sphere.scaled_unit_norm(x, torch.full((d,), 1.5, dtype=wide)),
        "segment_mean": lambda x, y: hk.sphere.segment_mean(x, labels, 4),
        "koleo": lambda x, y: hk.sphere.koleo(x),
        "riesz_energy": lambda x, y: hk.sphere.riesz_energy(x),
        "frechet_mean": lambda x, y: hk.sphere.frechet_mean(x),
    }
    for name, function in functions.items():
        yield f"sphere.{name}", lambda function=function: _with_gradients(function, x, y)


def _optim(n: int, d: int, dtype: torch.dtype) -> Iterator[Case]:
    x = _rows(n, d, dtype, 1)
    for name, options in {
        "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        "AdamW": {"lr": 0.1},
        "SphereSGD": {"lr": 0.1, "momentum": 0.9},
        "SphereAdam": {"lr": 0.1},
    }.items():
        gradients = [_rows(n, d, dtype, 10 + seed) for seed in range(3)]

        def steps(name=name, options=options, gradients=gradients) -> Any:
            weight = torch.nn.Parameter(x.clone())
            optimizer = getattr(hk.optim, name)([weight], **options)
            for gradient in gradients:
                weight.grad = gradient.clone()
                optimizer.step()
            return weight, [sorted(state) and list(state.values()) for state in optimizer.state.values()]

        yield f"optim.{name}", steps


def cases(backend: str) -> Iterator[Case]:
    sizes = ((9, 5),) if backend == "triton" else ((16, 7), (150, 40))
    # The interpreter's bfloat16 is garbage.
    dtypes = [d for d in DTYPES if backend != "triton" or d != torch.bfloat16]
    for n, d in sizes:
        for dtype in dtypes:
            for family in (_losses, _miners, _heads, _sphere, _optim):
                for name, call in family(n, d, dtype):
                    yield f"{backend} {n}x{d} {str(dtype).removeprefix('torch.')} {name}", call


def write(file: Path, backends: list[str]) -> None:
    found: dict[str, Any] = {}
    for backend in backends:
        with hk.backend(backend):
            for name, call in cases(backend):
                try:
                    found[name] = _bits(call())
                except Exception as error:  # an error is a result as well
                    found[name] = f"{type(error).__name__}: {error}"
    file.write_text(json.dumps(found, indent=1))
    raised = sum(isinstance(v, str) and "Error" in v for v in found.values())
    print(f"{len(found)} results, {raised} of them errors")


def compare(before: Path, after: Path) -> int:
    one, other = (json.loads(file.read_text()) for file in (before, after))
    differ = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    for name in differ:
        print(f"{name}\n  before: {one.get(name)}\n  after:  {other.get(name)}")
    print(f"{len(differ)} of {len(one)} differ")
    return bool(differ)


def main() -> int:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    commands = parser.add_subparsers(dest="command", required=True)
    writing, comparing = commands.add_parser("write"), commands.add_parser("compare")
    writing.add_argument("file", type=Path)
    writing.add_argument("--backend", nargs="+", default=["reference", "cpp"])
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        return compare(given.before, given.after)
    with warnings.catch_warnings(), contextlib.suppress(BrokenPipeError):
        warnings.simplefilter("ignore")
        write(given.file, given.backend)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
