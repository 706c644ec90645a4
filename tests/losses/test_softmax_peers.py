"""The same values and gradients as pytorch-metric-learning, where the definition is the same."""

import pytest
import torch

import hyperkernels as hk
from tests.support.pair_softmax_cases import CLOSE, compare, labels_of, points

peers = pytest.importorskip("pytorch_metric_learning.losses")
LOSSES = hk.losses


@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("supcon", "SupConLoss", {"temperature": 0.1}),
        ("supcon", "SupConLoss", {"temperature": 0.5}),
        ("nt_xent", "NTXentLoss", {"temperature": 0.07}),
        ("nt_xent", "NTXentLoss", {"temperature": 0.3}),
        ("nca", "NCALoss", {"softmax_scale": 1}),
        ("nca", "NCALoss", {"softmax_scale": 4}),
    ],
)
def test_losses_on_pairs(name, peer, options, two_sets):
    x, y = points(30), labels_of(30, 12)
    peer = getattr(peers, peer)(**options)
    if two_sets:
        ref, ref_y = points(41), labels_of(41, 12)
        theirs = peer(x, y, ref_emb=ref, ref_labels=ref_y)
        compare(getattr(LOSSES, name)(x, y, ref, ref_y, **options), theirs, [x, ref])
    else:
        compare(getattr(LOSSES, name)(x, y, **options), peer(x, y), [x])


@pytest.mark.parametrize("labels", ["one_class", "all_different"])
@pytest.mark.parametrize(
    ("name", "peer"),
    [("supcon", "SupConLoss"), ("nt_xent", "NTXentLoss"), ("n_pairs", "NPairsLoss"), ("nca", "NCALoss")],
)
def test_batches_that_lack_pairs(name, peer, labels):
    x, y = points(6), torch.arange(6) if labels == "all_different" else torch.zeros(6, dtype=torch.int64)
    if labels == "all_different" and name == "nca":
        return  # theirs is the mean of nothing
    theirs = getattr(peers, peer)()(x, y)
    mine = getattr(LOSSES, name)(x, y)
    torch.testing.assert_close(mine, theirs, **CLOSE)
    got, wanted = torch.autograd.grad(mine, x)[0], torch.autograd.grad(theirs, x)[0]
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_n_pairs():
    x, y = points(30), labels_of(30, 12)
    compare(LOSSES.n_pairs(x, y), peers.NPairsLoss()(x, y), [x])


@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("proxy_anchor", "ProxyAnchorLoss", {"margin": 0.1, "alpha": 32}),
        ("proxy_anchor", "ProxyAnchorLoss", {"margin": 0.2, "alpha": 8}),
        ("proxy_nca", "ProxyNCALoss", {"softmax_scale": 1}),
        ("proxy_nca", "ProxyNCALoss", {"softmax_scale": 6}),
    ],
)
def test_losses_with_proxies(name, peer, options):
    x, y = points(30), labels_of(30, 12)
    peer = getattr(peers, peer)(num_classes=15, embedding_size=7, **options).double()
    compare(getattr(LOSSES, name)(x, y, peer.proxies, **options), peer(x, y), [x, peer.proxies])


@pytest.mark.parametrize("options", [{}, {"la": 9, "gamma": 0.4, "margin": 0.1}])
def test_soft_triple(options):
    x, y = points(30), labels_of(30, 12)
    peer = peers.SoftTripleLoss(num_classes=12, embedding_size=7, centers_per_class=4, **options).double()
    centers = peer.fc.detach().T.contiguous().requires_grad_()
    mine, theirs = LOSSES.soft_triple(x, y, centers, centers_per_class=4, **options), peer(x, y)
    torch.testing.assert_close(mine, theirs, **CLOSE)
    got, wanted = torch.autograd.grad(mine, [x, centers]), torch.autograd.grad(theirs, [x, peer.fc])
    torch.testing.assert_close(got[0], wanted[0], **CLOSE)
    torch.testing.assert_close(got[1], wanted[1].T, **CLOSE)


def test_instance_loss_is_info_nce_of_a_set_with_itself():
    x = points(9)
    y = torch.arange(9)
    compare(LOSSES.info_nce(x, ref=x, temperature=1 / 64), peers.InstanceLoss()(x, y), [x])


def test_known_difference_in_the_order_of_instance_labels():
    """Theirs takes the rank of a label for a column: renamed labels change the loss."""
    x, peer = points(9), peers.InstanceLoss()
    assert (peer(x, torch.arange(9)) - peer(x, torch.arange(9).flip(0))).abs() > 1


def test_known_difference_where_a_probability_underflows():
    """Theirs drops a row whose positives have the probability 0, the hardest of all; ours keeps its loss."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1])
    assert peers.NCALoss(softmax_scale=1000)(x, y) < 10
    assert LOSSES.nca(x, y, softmax_scale=1000) > 1000


def test_known_difference_in_learned_rows():
    """Theirs rounds the loss of a learned row to 0 and leaves it out of the mean; ours is above 0 and counts."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    rows = LOSSES.supcon(x, y, temperature=0.02, reduction="none")
    assert ((rows > 0) & (rows < 1e-40)).all()
    assert peers.SupConLoss(temperature=0.02)(x, y) == 0
