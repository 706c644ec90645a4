"""One class of the digits is normal and the others are not; and how well scores tell them apart."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Split(NamedTuple):
    """Rows of features: normal ones to train on, and normal and anomalous ones to judge by."""

    train: torch.Tensor
    normal: torch.Tensor
    anomalous: torch.Tensor


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels as rows of 64 numbers in [0, 1], and which digit each is."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.data).float() / 16, torch.from_numpy(found.target)


def split(x: torch.Tensor, labels: torch.Tensor, normal: int, seed: int) -> Split:
    """Half of the normal rows, drawn at random, to train on; the other half and all other classes to judge by."""
    rows = torch.nonzero(labels == normal)[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    half = len(rows) // 2
    return Split(x[rows[:half]], x[rows[half:]], x[labels != normal])


def auc(normal: torch.Tensor, anomalous: torch.Tensor) -> float:
    """The probability that an anomaly scores higher than a normal row; a tie counts half."""
    ordered = normal.sort().values
    below, not_above = (torch.searchsorted(ordered, anomalous, right=right) for right in (False, True))
    return float((below + not_above).double().mean() / (2 * len(normal)))
