"""InfoNCE against listed negatives: the similarities of those pairs alone, against a softmax of gathered rows."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import hyperkernels as hk
from tests.support.pair_softmax_cases import compare, number, points

info_nce = hk.losses.info_nce


def by_rows(s, positive, negatives, t, margin=0.0):
    """[N]; s are the similarities with all of ref."""
    rows = []
    for i, listed in enumerate(negatives.tolist()):
        logits = torch.stack([positive[i] - margin, *(s[i, j] for j in listed if j >= 0)]) / t
        rows.append(logits.logsumexp(0) - logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_value_and_gradients(similarity, explicit):
    x, ref, t = points(9), points(20), number(0.6)
    negatives = torch.randint(-1, 20, (9, 6))
    negatives[2] = -1
    negatives[4, :2] = 7  # listed twice, it counts twice
    if similarity == "euclidean":
        s = -torch.cdist(x, ref)
    else:
        s = F.normalize(x) @ F.normalize(ref).T if similarity == "cosine" else x @ ref.T
    own = s[torch.arange(9), torch.arange(9).flip(0)] if explicit else s.diagonal()
    options = {"positive": own} if explicit else {}
    for reduction in ("none", "mean", "sum"):
        mine = info_nce(
            x, ref=ref, negatives=negatives, temperature=t, margin=-0.5, similarity=similarity, reduction=reduction,
            **options,
        )  # fmt: skip
        theirs = by_rows(s, own, negatives, t, -0.5)
        compare(mine, theirs if reduction == "none" else getattr(theirs, reduction)(), [x, ref, t])


def test_all_others_listed_are_the_loss_without_a_list():
    x, ref, t = points(8), points(8), number(0.3)
    others = torch.arange(64).view(8, 8)[~torch.eye(8, dtype=torch.bool)].view(8, 7) % 8
    alone = {"positive_in_denominator": False}
    for options in ({}, alone, {"lse_coefficient": 0.9}, alone | {"lse_coefficient": 0.9}):
        mine, theirs = (info_nce(x, ref=ref, temperature=t, **options, **more) for more in ({"negatives": others}, {}))
        compare(mine, theirs, [x, ref, t])


@pytest.mark.parametrize("columns", [0, 3])
@pytest.mark.parametrize("m", [0, 5])
def test_a_row_without_negatives_has_the_loss_zero(m, columns):
    x, ref, own = points(4), points(m), number([0.1, 0.2, 0.3, 0.4])
    loss = info_nce(x, ref=ref, positive=own, negatives=torch.full((4, columns), -1))
    assert loss == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, ref, own)))


def test_an_index_out_of_range_is_refused():
    x, ref = points(4), points(5)
    for index in (5, 2**40, -2, -(2**63)):
        with pytest.raises(IndexError):
            info_nce(x, ref=ref, negatives=torch.full((4, 2), index))


def test_nothing_is_read_on_the_host():
    with FakeTensorMode():
        x, ref = torch.randn(6, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
        info_nce(x, ref=ref, negatives=torch.zeros(6, 3, dtype=torch.int64)).backward()
        assert x.grad.shape == x.shape and ref.grad.shape == ref.shape


def test_gradcheck():
    x, ref, t = points(4, 3), points(6, 3), number(0.5)
    negatives = torch.randint(-1, 6, (4, 3))
    assert torch.autograd.gradcheck(
        lambda *v: info_nce(v[0], ref=v[1], negatives=negatives, temperature=v[2]), (x, ref, t)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": torch.zeros(3, 2, dtype=torch.int64)}, "negatives must be"),
        ({"negatives": torch.zeros(4, dtype=torch.int64)}, "negatives must have 2"),
        ({"negatives": torch.zeros(4, 2)}, "negatives must have dtype"),
        ({"labels": torch.arange(4), "ref_labels": torch.arange(4)}, "labels must be left out"),
        ({"ids": torch.arange(4), "ref_ids": torch.arange(4)}, "ids must be left out"),
        ({"symmetric": True}, "symmetric must be left out"),
        ({"queue": torch.zeros(2, 7, dtype=torch.float64)}, "queue must be left out"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    given = {"negatives": torch.zeros(4, 2, dtype=torch.int64)} | options
    with pytest.raises((TypeError, ValueError), match=message):
        info_nce(points(4), ref=points(4), **given)
