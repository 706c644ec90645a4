"""Inputs and comparisons of the tests against pytorch-metric-learning, which are skipped where it is not installed."""

import pytest
import torch

from hyperkernels.compat.pytorch_metric_learning import distances, losses, reducers

pml = pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances as their_distances  # noqa: E402
from pytorch_metric_learning import losses as their_losses  # noqa: E402
from pytorch_metric_learning import reducers as their_reducers  # noqa: E402

N, M, D, CLASSES = 14, 19, 6, 4
PAIRWISE = {
    "ContrastiveLoss": {"pos_margin": 0.3, "neg_margin": 1.1},
    "TripletMarginLoss": {"margin": 0.1},
    "MarginLoss": {"margin": 0.15, "beta": 1.1},
    "MultiSimilarityLoss": {"alpha": 2, "beta": 20, "base": 0.3},
    "SupConLoss": {"temperature": 0.2},
    "NTXentLoss": {"temperature": 0.2},
    "CircleLoss": {"m": 0.3, "gamma": 20},
    "LiftedStructureLoss": {"neg_margin": 0.9, "pos_margin": 0.1},
    "GeneralizedLiftedStructureLoss": {"neg_margin": 0.9, "pos_margin": 0.1},
    "TupletMarginLoss": {"margin": 4.0, "scale": 20},
    "NCALoss": {"softmax_scale": 2.0},
    "ThresholdConsistentMarginLoss": {
        "lambda_plus": 0.7, "lambda_minus": 1.3, "margin_plus": 0.8, "margin_minus": 0.1
    },
}  # fmt: skip
DISTANCES = {
    "cosine": ("CosineSimilarity", {}),
    "dot": ("DotProductSimilarity", {"normalize_embeddings": False}),
    "dot_of_units": ("DotProductSimilarity", {}),
    "lp": ("LpDistance", {}),
    "lp_squared": ("LpDistance", {"power": 2}),
    "lp_raw": ("LpDistance", {"normalize_embeddings": False}),
}
COSINE_ONLY = ("CircleLoss", "TupletMarginLoss", "ThresholdConsistentMarginLoss")
# Theirs have losses of shape [N, 1].
COLUMNS = ("MultiSimilarityLoss", "CircleLoss", "GeneralizedLiftedStructureLoss")
# Their ref_emb is another thing; see the tests of the differences.
OTHER_REF = ("LiftedStructureLoss", "ThresholdConsistentMarginLoss")


def embeddings(n=N):
    return torch.randn(n, D, dtype=torch.float64).requires_grad_()


def labels_of(n=N):
    """Some rows without a positive."""
    return torch.cat([torch.randint(-1, CLASSES - 1, (n - 2,)), torch.tensor([77, -(10**12)])])


def compare(ours, theirs, leaves, *call, atol=1e-11, **options):
    found, wanted = ours(*call, **options), theirs(*call, **options)
    torch.testing.assert_close(found, wanted.reshape(found.shape), rtol=1e-9, atol=atol)
    slopes = [torch.autograd.grad(v.sum(), leaves, allow_unused=True) for v in (found, wanted)]
    for mine, right in zip(*slopes, strict=True):
        right = torch.zeros_like(leaves[0]) if right is None else right
        mine = torch.zeros_like(right) if mine is None else mine
        torch.testing.assert_close(mine, right, rtol=1e-7, atol=atol)
    return found


def both(name, distance=None, reducer=None, **options):
    """Ours and theirs, each with its library's own objects."""
    made = []
    for classes, d, r in ((losses, distances, reducers), (their_losses, their_distances, their_reducers)):
        extra = dict(options)
        if distance is not None:
            kind, arguments = DISTANCES[distance]
            extra["distance"] = getattr(d, kind)(**arguments)
        if reducer is not None:
            kind, arguments = reducer
            extra["reducer"] = getattr(r, kind)(**arguments)
        made.append(getattr(classes, name)(**extra))
    return made


def pairs_tuple(labels, ref_labels=None, share=0.7):
    """(a1, p, a2, n), some of all, in no order."""
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)
    other = ~same
    if ref_labels is None:
        same.fill_diagonal_(False)
    lists = []
    for mask in (same, other):
        pairs = (mask & (torch.rand(mask.shape) < share)).nonzero()
        lists += list(pairs[torch.randperm(len(pairs))].T)
    return tuple(lists)


def triplets_tuple(labels, ref_labels=None, some=60):
    a1, p, a2, n = pairs_tuple(labels, ref_labels)
    i, j = (a1[:, None] == a2).nonzero(as_tuple=True)
    keep = torch.randperm(len(i))[:some]
    return a1[i][keep], p[i][keep], n[j][keep]


def memories(inner, miner=None, size=40, **options):
    ours = losses.CrossBatchMemory(getattr(losses, inner)(**options), D, size, miner)
    theirs = their_losses.CrossBatchMemory(getattr(their_losses, inner)(**options), D, size)
    return ours, theirs
