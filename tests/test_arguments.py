"""Wrong arguments of every kind are refused by name, before anything is computed."""

import pytest
import torch

import hyperkernels as hk

X = torch.eye(4, 5)
LABELS = torch.tensor([0, 0, 1, 1])
WEIGHT = torch.eye(3, 5)
SPARSE = X.to_sparse()
HUGE = 10**5000  # more digits than Python prints

WRONG = {
    "beta None": (lambda: hk.losses.margin(X, LABELS, beta=None), "beta"),
    "beta text": (lambda: hk.losses.margin(X, LABELS, beta="1"), "beta"),
    "beta bool": (lambda: hk.losses.margin(X, LABELS, beta=True), "beta"),
    "beta nan": (lambda: hk.losses.margin(X, LABELS, beta=float("nan")), "beta"),
    "beta huge": (lambda: hk.losses.margin(X, LABELS, beta=HUGE), "beta"),
    "negatives": (lambda: hk.class_statistics(X, WEIGHT, LABELS, negatives=3), "negatives"),
    "ignore_index": (lambda: hk.margin_softmax_loss(X, WEIGHT, LABELS, ignore_index=2**70), "ignore_index"),
    "ignore_index low": (lambda: hk.nn.MarginSoftmax(5, 3, ignore_index=-(2**63) - 1), "ignore_index"),
    "ignore_index bool": (lambda: hk.margin_softmax_loss(X, WEIGHT, LABELS, ignore_index=True), "ignore_index"),
    "absent_index": (lambda: hk.class_statistics(X, WEIGHT, LABELS, absent_index=2**70), "absent_index"),
    "workspace": (lambda: hk.margin_softmax_loss(X, WEIGHT, LABELS, workspace=HUGE), "workspace"),
    "sub_centers": (lambda: hk.margin_softmax_loss(X, WEIGHT, LABELS, sub_centers=2**64), "sub_centers"),
    "num_classes": (lambda: hk.nn.MarginSoftmax(5, 2**64), "num_classes"),
    "seed": (lambda: hk.nn.PartialFC(5, 3, seed=HUGE), "seed"),
    "seed of a miner": (lambda: hk.mining.distance_weighted(X, LABELS, seed=2**63), "seed"),
    "k": (lambda: hk.mining.topk_negatives(X, LABELS, k=2**64), "^k must"),
    "k bool": (lambda: hk.mining.topk_negatives(X, LABELS, k=True), "^k must"),
    "ignore_label": (lambda: hk.mining.topk_negatives(X, LABELS, k=1, ignore_label=2**63), "ignore_label"),
    "eps huge": (lambda: hk.margin_softmax_loss(X, WEIGHT, LABELS, eps=10**400), "eps"),
    "eps of unit_norm": (lambda: hk.unit_norm(X, eps=HUGE), "eps"),
    "eps nan": (lambda: hk.unit_norm(X, eps=float("nan")), "eps"),
    "dim": (lambda: hk.unit_norm(X, dim=2**64), "dim"),
    "temperature": (lambda: hk.losses.info_nce(X, LABELS, temperature=10**400), "temperature"),
    "temperature nan": (lambda: hk.losses.info_nce(X, LABELS, temperature=float("nan")), "temperature"),
    "sparse x": (lambda: hk.margin_softmax_loss(SPARSE, WEIGHT, LABELS), "^x must be a dense"),
    "sparse weight": (lambda: hk.margin_softmax_loss(X, WEIGHT.to_sparse(), LABELS), "weight must be a dense"),
    "csr weight": (lambda: hk.margin_softmax_loss(X, WEIGHT.to_sparse_csr(), LABELS), "weight must be a dense"),
    "sparse target": (lambda: hk.margin_softmax_loss(X, WEIGHT, LABELS.to_sparse()), "target must be a dense"),
    "sparse embeddings": (lambda: hk.losses.circle(SPARSE, LABELS), "^x must be a dense"),
    "sparse labels": (lambda: hk.losses.circle(X, LABELS.to_sparse()), "labels must be a dense"),
    "sparse rows": (lambda: hk.unit_norm(SPARSE), "^x must be a dense"),
    "sparse points": (lambda: hk.sphere.angle(SPARSE, X), "^x must be a dense"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    call, argument = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=argument):
        call()
