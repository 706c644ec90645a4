"""Negatives sampled with weights that depend on their distance."""

from __future__ import annotations

import torch

from .. import _check
from ..pairs.source import Listed
from ..unit_norm import unit_norm
from .common import Triplets, labelled_pairs, random_words, seed_of


@_check.of_data
@torch.no_grad()
def distance_weighted(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float | None = 1.4,
    temperature: float = 1.0,
    dim: float | None = None,
    positives: str = "uniform",
    draws: int | torch.Tensor | None = None,
    seed: int | None = None,
    ids: torch.Tensor | None = None,
    ref_ids: torch.Tensor | None = None,
    ignore_label: int | None = None,
    multi_hot: bool = False,
) -> Triplets:
    """Triplets whose negatives are drawn with the inverse density of their distance as weight (arXiv 1706.07567).

    A negative at distance d (of unit vectors) has the weight w(d) ^ (1 / temperature), log w(d) = (2 - dim) log d -
    (dim - 3) / 2 log(1 - d^2 / 4), d at least ``cutoff``. Weights are compared as logarithms within a row, so that none
    underflows: every anchor with a positive, and with a negative nearer than ``nonzero_loss_cutoff``, gets all its
    triplets.

    Args:
        x, labels, ref, ref_labels, ids, ref_ids, ignore_label, multi_hot: as in ``batch_hard``; rows are normalised.
        cutoff: nearer negatives have the weight of this distance; greater than 0.
        nonzero_loss_cutoff: only nearer negatives are drawn; None: all. Greater than cutoff.
        temperature: greater than 0; a larger one draws more evenly. In many dimensions nearly all the weight of a row
            is on its nearest negatives.
        dim: the number of dimensions in the formula; None: D.
        positives: "uniform", drawn uniformly with replacement, or "each", one after the other.
        draws: the number of triplets of each anchor: a number, [N] int64, or None: as many as it has positives.
            PyTorch Metric Learning draws one more where ref is None.
        seed: the draw is a function of the seed and of the indices of the pair. None: a seed from torch's default
            generator.

    Returns:
        (a, p, n), [K] int64 each, ordered by a.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    cutoff = _check.number("cutoff", cutoff, above=0.0)
    if nonzero_loss_cutoff is not None:
        nonzero_loss_cutoff = _check.number("nonzero_loss_cutoff", nonzero_loss_cutoff, above=cutoff)
    temperature = _check.number("temperature", temperature, above=0.0)
    _check.choice("positives", positives, ("uniform", "each"))
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    if ref is not None:
        _check.tensor("ref", ref, _check.FLOAT_DTYPES, dim=2)
    dim = float(x.shape[1]) if dim is None else _check.number("dim", dim)
    pairs = labelled_pairs(
        unit_norm(x), labels, None if ref is None else unit_norm(ref), ref_labels, ids=ids, ref_ids=ref_ids,
        similarity="euclidean", ignore_label=ignore_label, multi_hot=multi_hot,
    )  # fmt: skip
    found = pairs.listed("positive")
    counts = found.offsets.diff()
    wanted = torch.where(counts > 0, _wanted(draws, counts), 0)
    most = int(wanted.max()) if pairs.n else 0
    seed = seed_of(seed)
    lower = None if nonzero_loss_cutoff is None else -nonzero_loss_cutoff
    negatives = pairs.sample(
        "negative", most, seed, weights="distance", p0=dim, p1=cutoff, temperature=temperature, lower=lower
    )  # fmt: skip
    order = torch.arange(most, device=counts.device)
    a, draw = ((order < wanted[:, None]) & (negatives >= 0)).nonzero(as_tuple=True)
    return a, _positive(found, counts, a, draw, positives, seed), negatives[a, draw]


def _wanted(draws: int | torch.Tensor | None, counts: torch.Tensor) -> torch.Tensor:
    if draws is None:
        return counts
    if not isinstance(draws, torch.Tensor):
        return torch.full_like(counts, _check.integer("draws", draws, 0))
    _check.tensor("draws", draws, (torch.int64,), dim=1)
    _check.same_device("draws", draws, "x", counts)
    if draws.shape != counts.shape:
        raise ValueError(f"draws must have one entry per row of x ({len(counts)}); got shape {tuple(draws.shape)}")
    return draws


def _positive(
    found: Listed, counts: torch.Tensor, a: torch.Tensor, draw: torch.Tensor, positives: str, seed: int
) -> torch.Tensor:
    """The positive of the draw-th triplet of each anchor."""
    each = positives == "each"
    pick = draw % counts[a] if each else random_words(a, draw, 2, seed)[0] * counts[a] >> 32
    return found.columns[found.offsets[a] + pick]
