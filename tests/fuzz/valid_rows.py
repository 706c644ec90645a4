"""Valid problems of the ops that work on rows: unit_norm, the sphere, random numbers."""

from __future__ import annotations

import torch

from hyperkernels._dtypes import accumulate_dtype
from tests.support.sphere_triton_cases import OPERATIONS, inputs

from .registry import Arguments, Context, valid


def _rows(c: Context, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64) * c.choice(1.0, 1.0, 1e-3, 30.0)
    if c.chance(0.2):
        x[torch.rand(shape[:-1]) < 0.3] = 0
    return x.to(dtype)


def _any_rows(c: Context) -> torch.Tensor:
    leading = c.choice([c.size()], [c.size()], [], [2, 3])
    return _rows(c, *leading, c.dim(), dtype=c.dtype())


@valid("unit_norm", "unit_norm_")
def unit_norm(c: Context) -> Arguments:
    return {"x": _any_rows(c), "eps": c.choice(1e-12, 0.1, 0.0)}


@valid("unit_norm_backward")
def unit_norm_backward(c: Context) -> Arguments:
    x = _any_rows(c)
    return {"grad": torch.randn_like(x), "x": x, "eps": c.choice(1e-12, 0.1)}


def _sphere(name: str, arguments: tuple[str, ...], has_kind: bool) -> None:
    def forward(c: Context) -> Arguments:
        operation = c.choice(*(key for key, value in OPERATIONS.items() if value.name == name))
        rows, scales = c.size(), c.choice(1, 2, 3)
        rows *= scales if name == "scaled_unit_norm" else 1
        values = inputs(operation, rows, c.dim(), c.dtype(), scales=scales)
        made = dict(zip(arguments, values, strict=False))
        return made | ({"kind": OPERATIONS[operation].kind} if has_kind else {})

    def backward(c: Context) -> Arguments:
        made = forward(c)
        like = made[arguments[0]]
        grad = torch.randn_like(like)
        if made.get("kind") == "angle":
            grad = torch.randn(len(like), dtype=accumulate_dtype(like.dtype))
        needs = {f"need_{n}": made[n] is not None and c.chance(0.8) for n in arguments}
        return {"grad": grad, **made, **needs}

    valid(name)(forward)
    valid(f"{name}_backward")(backward)


_sphere("sphere_points", ("x", "y", "t"), True)
_sphere("sphere_vectors", ("x", "v"), True)
_sphere("sphere_residual", ("h", "block", "alpha"), False)
_sphere("scaled_unit_norm", ("x", "scale"), False)


@valid("segment_sum")
def segment_sum(c: Context) -> Arguments:
    n, segments = c.size(), c.choice(1, 2, 5, 40)
    labels = torch.randint(segments, (n,))
    counts = torch.bincount(labels, minlength=segments)
    return {
        "x": _rows(c, n, c.dim(), dtype=c.dtype()),
        "labels": labels,
        "order": labels.argsort(stable=True),
        "offsets": torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
    }


@valid("random_bits")
def random_bits(c: Context) -> Arguments:
    return {"seed": c.choice(0, 1, -1, 2**62), "step": torch.tensor(c.choice(0, 5)), "place": torch.arange(c.size())}
