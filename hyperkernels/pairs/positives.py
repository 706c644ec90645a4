"""The negatives of a row by their place between its listed positives."""

from __future__ import annotations

import torch

from .source import Listed, LocalPairSource


def below(value: torch.Tensor) -> torch.Tensor:
    """The next smaller number: u > below(t) is u >= t, for bounds that the engine takes strictly."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def rising(found: Listed, values: torch.Tensor) -> torch.Tensor:
    """The order of the listed pairs in which those of a row stay together and one number per pair rises."""
    order = values.argsort(stable=True)
    return order[found.rows[order].argsort(stable=True)]


def own_bin(found: Listed) -> torch.Tensor:
    """Where one edge per pair is sorted in each row, the last bin below each edge."""
    return torch.arange(found.rows.shape[0], device=found.rows.device) + found.rows


def hardest_below(pairs: LocalPairSource, found: Listed) -> torch.Tensor:
    """Of every listed positive pair the column of the most similar of its row's negatives that are less similar than
    the pair, [K]; -1 where there is none."""
    order = rising(found, found.similarities)
    counts, _, _, columns = pairs.binned("negative", below(found.similarities[order]), found.offsets)
    # The hardest below an edge is that of the last bin, of the row's, which is not empty and not above the edge.
    bins = torch.arange(counts.shape[0], device=counts.device)
    best = torch.where(counts > 0, bins, -1).cummax(0).values[own_bin(found)]
    hardest = torch.empty_like(found.rows)
    hardest[order] = torch.where(best >= found.offsets[found.rows] + found.rows, columns[best.clamp_min(0)], -1)
    return hardest
