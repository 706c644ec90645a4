"""Sampled classes: a few of the classes take part in a call, the others do not exist for it.

The kernels read the rows of these classes where they stand in the weight. What they know of a target is its position
among the sampled classes; here positions and classes are turned into each other.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from .. import _check
from ..kernels.margin_softmax.problem import ABSENT, IGNORED, OUTSIDE


def check_classes(classes: Any, count: int, x: torch.Tensor) -> torch.Tensor:
    """The sampled classes of `count`, checked where that needs no synchronisation, and nowhere out of range."""
    _check.tensor("classes", classes, (torch.int64,), dim=1)
    _check.same_device("classes", classes, "x", x)
    if classes.shape[0] == 0:
        raise ValueError("classes must hold at least one class; got none")
    on_cpu = classes.device.type == "cpu"
    if (on_cpu or os.environ.get("HYPERKERNELS_CHECK") == "1") and not torch.compiler.is_compiling():
        if bool(((classes < 0) | (classes >= count)).any()):
            raise IndexError(f"classes must lie in [0, {count})")
        if bool((classes[1:] <= classes[:-1]).any()):
            raise ValueError("classes must be strictly increasing")
    return classes.contiguous() if on_cpu else classes.clamp(0, count - 1)


def positions(classes: torch.Tensor, target: torch.Tensor, ignore_index: int, absent_index: int) -> torch.Tensor:
    """Where the targets stand among the classes; below 0 for those that do not."""
    place = torch.searchsorted(classes, target.contiguous()).clamp_max(classes.shape[0] - 1)
    place = torch.where(classes[place] == target, place, OUTSIDE)
    place = torch.where(target == absent_index, ABSENT, place)
    return torch.where(target == ignore_index, IGNORED, place)


def classes_at(classes: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The classes at positions; what is below 0 stays."""
    return torch.where(place < 0, place, classes[place.clamp_min(0)])
