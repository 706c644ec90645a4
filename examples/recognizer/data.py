"""What a data set is: arrays, a split by class, and the pairs that test it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]  # [n, H, W], 0 to 255
Index = npt.NDArray[np.int64]


class DataError(Exception):
    """The data cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images of held-out classes: rows ``first[i]`` and ``second[i]`` of ``Dataset.heldout``."""

    first: Index
    second: Index
    same: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dataset:
    """Grey images of many classes, split by class: no held-out class is ever trained on.

    ``train`` [n, H, W] with ``labels`` [n] in [0, ``num_classes``) is what the embedder learns from. ``heldout`` [m, H,
    W] are the images, of classes ``heldout_labels`` [m], that ``pairs`` (by name; the first is the one that counts)
    refer to. For rank-1 identification of trained classes, ``probes`` [p, H, W] with ``probe_labels`` [p] are images
    never trained on and ``gallery`` [C, H, W] is one enrolled image a class.
    """

    name: str
    train: Images
    labels: Index
    num_classes: int
    heldout: Images
    heldout_labels: Index
    pairs: dict[str, Pairs]
    gallery: Images
    probes: Images
    probe_labels: Index
    protocol: str
    facts: dict[str, Any] = field(default_factory=dict)


def split_classes(count: int, holdout: float, seed: int) -> tuple[Index, Index]:
    """(trained, held-out) class numbers, both sorted; about ``holdout`` of ``count`` and at least two are held out."""
    held = min(count, max(2, round(count * holdout)))
    if count - held < 2:
        raise DataError(f"{count} classes are too few to split: at least 2 must remain for training and 2 be held out")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def draw_different(
    first: Index, second: Index, labels: Index, count: int, rng: np.random.Generator
) -> tuple[Index, Index]:
    """``count`` pairs (one of ``first``, one of ``second``) of different labels, drawn with replacement.

    Args:
        first, second: image numbers to draw from.
        labels: class of each image number.
    """
    if len(np.unique(labels[np.concatenate([first, second])])) < 2:
        raise DataError("pairs of different classes need at least two held-out classes")
    a, b = np.empty(0, np.int64), np.empty(0, np.int64)
    while len(a) < count:
        more_a, more_b = rng.choice(first, count), rng.choice(second, count)
        differ = labels[more_a] != labels[more_b]
        a, b = np.concatenate([a, more_a[differ]]), np.concatenate([b, more_b[differ]])
    return a[:count], b[:count]


def draw_pairs(labels: Index, max_same: int, different: int, rng: np.random.Generator) -> Pairs:
    """All pairs of one class (``max_same`` of them at most, chosen at random) and ``different`` random pairs of two."""
    everything = np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    # The pairs are numbered by their first image, the images in order; it goes with every later one of its class.
    later = np.concatenate([np.arange(len(group) - 1, -1, -1) for group in groups])
    ends = np.cumsum(later)
    count = int(ends[-1])
    if not count:
        raise DataError("no held-out identity has two images, so there is no pair of the same identity to verify")
    chosen = np.arange(count) if count <= max_same else np.sort(rng.choice(count, max_same, replace=False))
    first = np.searchsorted(ends, chosen, side="right")
    second = first + 1 + chosen - (ends - later)[first]
    a, b = draw_different(everything, everything, labels, different, rng)
    return Pairs(
        np.concatenate([order[first], a]),
        np.concatenate([order[second], b]),
        np.arange(len(chosen) + different) < len(chosen),
    )
