"""Problems for the miners, and every pair's similarity and kind by a double loop."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

SIMILARITIES = ("cosine", "dot", "euclidean")
# (N, M); M None: the rows among themselves
SHAPES = ((0, None), (1, None), (2, None), (23, None), (14, 19), (17, 1), (6, 0), (0, 7))
LABELS = ("few", "one", "distinct", "huge")
DATA = ("random", "ties")


class Problem(NamedTuple):
    x: torch.Tensor
    labels: torch.Tensor
    ref: torch.Tensor | None
    ref_labels: torch.Tensor | None


def embeddings(n, data, dtype=torch.float64):
    """ "random", or "ties": corners of a cube, of which many coincide, and whose similarities float32 holds exactly."""
    if data == "random":
        return torch.randn(n, 5, dtype=torch.float64).to(dtype)
    return (torch.randint(2, (n, 4)) * 2 - 1).to(dtype)


def labels_of(n, kind):
    if kind == "few":
        return torch.randint(4, (n,))
    if kind == "one":
        return torch.full((n,), 7)
    if kind == "distinct":
        return torch.randperm(n)
    return torch.tensor([-(2**63), 2**63 - 1, -1, 2**32, 0])[torch.randint(5, (n,))]


def problem(shape, data="random", kind="few", dtype=torch.float64):
    n, m = shape
    x, labels = embeddings(n, data, dtype), labels_of(n, kind)
    if m is None:
        return Problem(x, labels, None, None)
    ref, ref_labels = embeddings(m, data, dtype), labels_of(m, kind)
    if data == "random" and n and m:
        ref[: min(n, m) // 2] = x[: min(n, m) // 2]
    return Problem(x, labels, ref, ref_labels)


def similarity(a, b, name):
    """Of two lists of numbers; for distances minus the distance."""
    if name == "euclidean":
        return -math.sqrt(sum((s - t) ** 2 for s, t in zip(a, b, strict=True)))
    dot = sum(s * t for s, t in zip(a, b, strict=True))
    if name == "dot":
        return dot
    return dot / (math.sqrt(sum(s * s for s in a)) * math.sqrt(sum(t * t for t in b)))


class Brute:
    """u[i][j], and the positives and negatives of each row, rising."""

    def __init__(self, p: Problem, name, ids=None, ref_ids=None):
        self.name = name
        rows, columns = p.x.double().tolist(), (p.x if p.ref is None else p.ref).double().tolist()
        labels, ref_labels = p.labels.tolist(), (p.labels if p.ref is None else p.ref_labels).tolist()
        self.n, self.m = len(rows), len(columns)
        self.u = [[similarity(a, b, name) for b in columns] for a in rows]
        if ids is not None:
            ids, ref_ids = ids.tolist(), (ids if ref_ids is None else ref_ids).tolist()

        def paired(i, j):
            if ids is not None:
                return ids[i] != ref_ids[j]
            return p.ref is not None or i != j

        every = [[j for j in range(self.m) if paired(i, j)] for i in range(self.n)]
        self.positives = [[j for j in every[i] if labels[i] == ref_labels[j]] for i in range(self.n)]
        self.negatives = [[j for j in every[i] if labels[i] != ref_labels[j]] for i in range(self.n)]

    def hardest(self, i, columns, largest):
        """The lowest column of the extreme similarity; None of none."""
        best = None
        for j in columns:
            if best is None or (self.u[i][j] > self.u[i][best] if largest else self.u[i][j] < self.u[i][best]):
                best = j
        return best

    def measure(self, i, j):
        """What the user compares thresholds with: the similarity, or the distance."""
        return -self.u[i][j] if self.name == "euclidean" else self.u[i][j]


def listed(found):
    """Tuples of the index tensors, row by row, after the checks that hold for all."""
    for v in found:
        assert v.dtype == torch.int64
        assert v.dim() == 1
    return list(zip(*(v.tolist() for v in found), strict=True))
