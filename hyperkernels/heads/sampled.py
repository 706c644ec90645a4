"""Sampled classes: some of the classes take part in a call; for this call the others do not exist.

The kernels read the rows of these classes where they stand in the weight. They number the classes by their position in
the sample. The functions here convert classes to positions and back.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch._subclasses import FakeTensor

from .. import _check
from ..kernels.margin_softmax.problem import ABSENT, IGNORED, OUTSIDE


def check_classes(classes: Any, count: int, x: torch.Tensor) -> torch.Tensor:
    """The sampled classes, checked. On a GPU a check would need a synchronisation: there they are clamped to
    [0, count), and checked only with HYPERKERNELS_CHECK=1."""
    _check.tensor("classes", classes, (torch.int64,), dim=1)
    _check.same_device("classes", classes, "x", x)
    if classes.shape[0] == 0:
        raise ValueError("classes must hold at least one class; got none")
    on_cpu = classes.device.type == "cpu"
    has_numbers = not (torch.compiler.is_compiling() or isinstance(classes, FakeTensor))
    if has_numbers and (on_cpu or os.environ.get("HYPERKERNELS_CHECK") == "1"):
        if bool(((classes < 0) | (classes >= count)).any()):
            raise IndexError(f"classes must lie in [0, {count})")
        if bool((classes[1:] <= classes[:-1]).any()):
            raise ValueError("classes must be strictly increasing")
    return classes.contiguous() if on_cpu else classes.clamp(0, count - 1)


def positions(classes: torch.Tensor, target: torch.Tensor, ignore_index: int, absent_index: int) -> torch.Tensor:
    """The position of each target in `classes`; a sentinel below 0 where it has none."""
    place = torch.searchsorted(classes, target.contiguous()).clamp_max(classes.shape[0] - 1)
    place = torch.where(classes[place] == target, place, OUTSIDE)
    place = torch.where(target == absent_index, ABSENT, place)
    return torch.where(target == ignore_index, IGNORED, place)


def classes_at(classes: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The class at each position; values below 0 stay."""
    return torch.where(place < 0, place, classes[place.clamp_min(0)])
