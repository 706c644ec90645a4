"""Cleaning a training set with sub-centres (Deng et al., ECCV 2020).

A class trained with several centres keeps its clean samples near one of them, the dominant one, and its noise near the
others. A pass over the training set counts which centre each sample is nearest to; a second pass measures each sample's
angle to the dominant centre of its class, and those beyond 75 degrees are dropped::

    counts = 0
    for x, target in batches:
        counts = counts + hk.sub_centers.nearest_counts(x, weight, target, sub_centers=3)
    dominant = hk.sub_centers.dominant(counts)
    angles = hk.sub_centers.angles(x, weight, target, dominant, sub_centers=3)
    clean = ~hk.sub_centers.outliers(angles)
    weight = hk.sub_centers.keep(weight, dominant, sub_centers=3)

No result has a gradient. Large inputs are processed in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .. import _check
from .._dtypes import accumulate_dtype
from ..kernels.margin_softmax.rows import unit_rows

__all__ = ["angles", "dominant", "keep", "nearest_counts", "outliers"]

_PIECE = 2**22  # numbers in the largest tensor made


def _check_arguments(
    x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, sub_centers: int, ignore_index: int
) -> tuple[int, torch.Tensor]:
    """The number of classes, and bool [N]: the rows whose target is one of them."""
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("target", target, (torch.int64,), dim=1)
    classes = _check_weight(weight, sub_centers)
    _check.integer("ignore_index", ignore_index)
    for name, value in (("weight", weight), ("target", target)):
        _check.same_device(name, value, "x", x)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have the embedding size of x ({x.shape[1]}); got shape {tuple(weight.shape)}")
    if target.shape[0] != x.shape[0]:
        raise ValueError(f"target must have one entry per row of x ({x.shape[0]}); got shape {tuple(target.shape)}")
    here = (target >= 0) & (target < classes) & (target != ignore_index)
    if target.device.type == "cpu" and bool((~here & (target != ignore_index)).any()):
        raise IndexError(f"target must lie in [0, {classes}) or equal ignore_index={ignore_index}")
    return classes, here


def _check_weight(weight: torch.Tensor, sub_centers: int) -> int:
    _check.tensor("weight", weight, _check.FLOAT_DTYPES, dim=2)
    _check.integer("sub_centers", sub_centers, minimum=1)
    if weight.shape[0] == 0 or weight.shape[0] % sub_centers:
        raise ValueError(f"weight must have sub_centers={sub_centers} rows per class; got {weight.shape[0]} rows")
    return weight.shape[0] // sub_centers


def _check_dominant(dominant: torch.Tensor, weight: torch.Tensor, classes: int) -> None:
    _check.tensor("dominant", dominant, (torch.int64,), dim=1)
    _check.same_device("dominant", dominant, "weight", weight)
    if dominant.shape[0] != classes:
        raise ValueError(f"dominant must have one entry per class ({classes}); got shape {tuple(dominant.shape)}")


def _pieces(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _PIECE // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _angle(a: torch.Tensor, b: torch.Tensor, eps: float) -> torch.Tensor:
    """Angle between rows; exact near 0 and pi, where the arc cosine of a product is not."""
    dtype = accumulate_dtype(a.dtype)
    a, b = unit_rows(a.to(dtype), eps)[0], unit_rows(b.to(dtype), eps)[0]
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))


@torch.no_grad()
def nearest_counts(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    sub_centers: int,
    ignore_index: int = -100,
    eps: float = 1e-12,
) -> torch.Tensor:
    """For each class, how many of its samples are nearest to each of its centres.

    Args:
        x: embeddings [N, D], any norm.
        weight: centres [C * sub_centers, D], any norm; row = class * sub_centers + centre.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        sub_centers: K, at least 1.
        ignore_index: rows with this target are not counted.
        eps: floor of the norms that divide.

    Returns:
        [C, K] int64, of this batch: add the counts of all batches. On ties the lowest centre counts.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target out of range, on the CPU; elsewhere such a row is not counted.
    """
    classes, here = _check_arguments(x, weight, target, sub_centers, ignore_index)
    counts = torch.zeros(classes * sub_centers, dtype=torch.int64, device=x.device)
    dtype = accumulate_dtype(x.dtype)
    offsets = torch.arange(sub_centers, device=x.device)
    for piece in _pieces(len(x), sub_centers * x.shape[1]):
        first = torch.where(here[piece], target[piece], 0) * sub_centers
        rows = x[piece].to(dtype)
        centers = weight[(first[:, None] + offsets).flatten()].to(dtype)
        centers = unit_rows(centers, eps)[0].view(len(rows), sub_centers, -1)
        nearest = (centers @ unit_rows(rows, eps)[0][:, :, None])[..., 0].argmax(1)
        counts.index_add_(0, first + nearest, here[piece].to(torch.int64))
    return counts.view(classes, sub_centers)


def dominant(counts: torch.Tensor) -> torch.Tensor:
    """The centre that most samples of a class are nearest to.

    Args:
        counts: [C, K] int64, of ``nearest_counts``.

    Returns:
        [C] int64; the lowest on ties.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("counts", counts, (torch.int64,), dim=2)
    return counts.argmax(1)


@torch.no_grad()
def angles(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    dominant: torch.Tensor,
    *,
    sub_centers: int,
    ignore_index: int = -100,
    eps: float = 1e-12,
) -> torch.Tensor:
    """The angle between each sample and the dominant centre of its class.

    Args:
        x, weight, target, sub_centers, ignore_index, eps: as in ``nearest_counts``.
        dominant: [C] int64, of ``dominant``.

    Returns:
        [N] radians, in [0, pi], float32 (float64 for float64 inputs); NaN where the target is ``ignore_index``.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target out of range, on the CPU; elsewhere such a row is NaN.
    """
    classes, here = _check_arguments(x, weight, target, sub_centers, ignore_index)
    _check_dominant(dominant, weight, classes)
    found = torch.empty(len(x), dtype=accumulate_dtype(x.dtype), device=x.device)
    for piece in _pieces(len(x), x.shape[1]):
        own = torch.where(here[piece], target[piece], 0)
        found[piece] = _angle(x[piece], weight[own * sub_centers + dominant[own]], eps)
    return torch.where(here, found, torch.nan)


def outliers(angles: torch.Tensor, degrees: float = 75.0) -> torch.Tensor:
    """Which samples are too far from the dominant centre of their class.

    Args:
        angles: [N] radians, of ``angles``.
        degrees: the largest angle of a clean sample, in [0, 180]; the authors' is 75.

    Returns:
        bool [N]; False where the angle is NaN.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("angles", angles, _check.FLOAT_DTYPES, dim=1)
    return angles > math.radians(_check.number("degrees", degrees, minimum=0.0, maximum=180.0))


@torch.no_grad()
def keep(weight: torch.Tensor, dominant: torch.Tensor, *, sub_centers: int) -> torch.Tensor:
    """The dominant centres alone: a head of one centre a class.

    Args:
        weight: centres [C * sub_centers, D].
        dominant: [C] int64, of ``dominant``.
        sub_centers: K, at least 1.

    Returns:
        [C, D], a copy.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    classes = _check_weight(weight, sub_centers)
    _check_dominant(dominant, weight, classes)
    return weight[torch.arange(classes, device=weight.device) * sub_centers + dominant]
