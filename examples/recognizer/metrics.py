"""Verification metrics from scores, exactly: every distinct score is a threshold, tied scores are accepted together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

FOLDS = 10


@dataclass(frozen=True)
class Roc:
    """Operating points, from accepting nothing to accepting everything: a pair is accepted where its score >=
    threshold.

    ``threshold``, ``tar`` and ``far`` are [k]; the first threshold is +inf, tar and far never fall.
    """

    threshold: Floats
    tar: Floats
    far: Floats


def roc(scores: Floats, same: Bools) -> Roc:
    """Args: ``scores`` [n], higher means more alike; ``same`` [n], at least one pair of each kind."""
    if not same.any() or same.all():
        raise ValueError("verification needs at least one pair of the same class and one of different classes")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], same[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    accepted_same = np.cumsum(hits)[last_of_tie]
    accepted_different = np.cumsum(~hits)[last_of_tie]
    return Roc(
        np.concatenate([[np.inf], ranked[last_of_tie]]),
        np.concatenate([[0.0], accepted_same / hits.sum()]),
        np.concatenate([[0.0], accepted_different / (~hits).sum()]),
    )


def tar_at_far(curve: Roc, far: float) -> tuple[float, float]:
    """(TAR, threshold) of the loosest operating point whose FAR does not exceed ``far``."""
    i = int(np.searchsorted(curve.far, far, side="right")) - 1
    return float(curve.tar[i]), float(curve.threshold[i])


def equal_error_rate(curve: Roc) -> float:
    """The rate at which FAR = 1 - TAR, on the straight line between the two operating points around it."""
    gap = curve.far - (1 - curve.tar)  # rises from -1 to 1
    i = int(np.searchsorted(gap, 0.0, side="left"))
    if gap[i] == 0:
        return float(curve.far[i])
    weight = -gap[i - 1] / (gap[i] - gap[i - 1])
    return float(curve.far[i - 1] + weight * (curve.far[i] - curve.far[i - 1]))


def _best_threshold(scores: Floats, same: Bools) -> float:
    curve = roc(scores, same)
    return float(curve.threshold[np.argmax(curve.tar - curve.far)])


def fold_accuracy(scores: Floats, same: Bools, seed: int = 0, folds: int = FOLDS) -> tuple[float, float]:
    """(mean, standard deviation) over ``folds`` parts of the pairs, the threshold of each chosen on the others, as LFW
    does it.

    Pairs of the same and of different classes weigh the same, however many there are of each: accuracy = (TAR + 1 -
    FAR) / 2.
    """
    rng = np.random.default_rng(seed)
    folds = min(folds, int(same.sum()), int((~same).sum()))
    if folds < 2:
        raise ValueError("accuracy over folds needs at least two pairs of the same class and two of different classes")
    part = np.empty(len(scores), np.int64)
    for kind in (same, ~same):
        part[kind] = rng.permutation(int(kind.sum())) % folds
    accuracies = []
    for k in range(folds):
        inside = part == k
        accepted = scores[inside] >= _best_threshold(scores[~inside], same[~inside])
        truth = same[inside]
        accuracies.append((accepted[truth].mean() + 1 - accepted[~truth].mean()) / 2)
    return float(np.mean(accuracies)), float(np.std(accuracies))


@dataclass(frozen=True)
class Verification:
    """Metrics of one set of pairs; a TAR is None where there are too few pairs of different classes to see that FAR."""

    same_pairs: int
    different_pairs: int
    accuracy: float
    accuracy_std: float
    eer: float
    tar_at_far: dict[str, float | None]
    threshold_at_far: dict[str, float | None]


def verify(scores: Floats, same: Bools, fars: tuple[float, ...] = (1e-2, 1e-3)) -> Verification:
    """All of the above for cosines ``scores`` [n] of pairs."""
    curve = roc(scores, same)
    accuracy, deviation = fold_accuracy(scores, same)
    tars: dict[str, float | None] = {}
    thresholds: dict[str, float | None] = {}
    different = int((~same).sum())
    for far in fars:
        name = f"{far:g}"
        tars[name], thresholds[name] = tar_at_far(curve, far) if different * far >= 1 else (None, None)
    return Verification(int(same.sum()), different, accuracy, deviation, equal_error_rate(curve), tars, thresholds)
