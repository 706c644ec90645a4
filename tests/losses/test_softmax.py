"""InfoNCE and its kin against their formulas with the whole matrix, and the cases at the edges."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import hyperkernels as hk
from tests.support.accuracy import assert_as_accurate
from tests.support.pair_softmax_cases import CLOSE, compare, labels_of, number, points

from . import formulas_softmax as formulas

LOSSES = hk.losses


@pytest.fixture(params=["one_set", "two_sets", "ids"])
def case(request):
    """(x, labels, ref, ref_labels, the arguments of ids, masks): of some rows nothing is positive."""
    n, m = 23, 31
    x, y = points(n), labels_of(n, 9)
    if request.param == "one_set":
        return x, y, None, None, {}, formulas.pair_masks(y)
    ref, ref_y = points(m), labels_of(m, 12, first=3)
    if request.param == "two_sets":
        return x, y, ref, ref_y, {}, formulas.pair_masks(y, ref_y)
    ids = {"ids": torch.randint(20, (n,)), "ref_ids": torch.randint(20, (m,))}
    return x, y, ref, ref_y, ids, formulas.pair_masks(y, ref_y, **ids)


def leaves_of(*tensors):
    return [t for t in tensors if t is not None and t.requires_grad]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("options", [{}, {"margin": 0.2}, {"in_denominator": False}, {"lse_coefficient": 0.7}])
def test_info_nce_by_labels(case, similarity, options):
    x, y, ref, ref_y, ids, masks = case
    t = number(0.4)
    theirs = formulas.info_nce(formulas.similarities(x, ref, similarity), *masks, t, **options)
    options = {"positive_in_denominator" if k == "in_denominator" else k: v for k, v in options.items()}
    wanted = {"none": theirs, "mean": theirs.sum() / masks[0].any(1).sum(), "sum": theirs.sum()}
    for reduction in wanted:
        mine = LOSSES.info_nce(
            x, y, ref, ref_y, **ids, similarity=similarity, temperature=t, reduction=reduction, **options
        )  # fmt: skip
        compare(mine, wanted[reduction], leaves_of(x, ref, t))


@pytest.mark.parametrize("m", [12, 17])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_info_nce_of_paired_rows(m, margin):
    x, ref, t = points(12), points(m), number(0.2)
    theirs = formulas.info_nce(formulas.similarities(x, ref), *formulas.paired_masks(12, m), t, margin).mean()
    compare(LOSSES.info_nce(x, ref=ref, temperature=t, margin=margin), theirs, [x, ref, t])


def test_info_nce_of_paired_rows_leaves_out_negatives_of_the_same_id():
    x, ref, t, ids, ref_ids = points(12), points(15), number(0.2), labels_of(12, 6), labels_of(15, 6)
    positive, negative = formulas.paired_masks(12, 15)
    negative &= ids[:, None] != ref_ids[None]
    theirs = formulas.info_nce(formulas.similarities(x, ref), positive, negative, t).mean()
    compare(LOSSES.info_nce(x, ref=ref, ids=ids, ref_ids=ref_ids, temperature=t), theirs, [x, ref, t])


def test_info_nce_of_paired_rows_is_cross_entropy():
    x, ref = points(12), points(12)
    theirs = F.cross_entropy(F.normalize(x) @ F.normalize(ref).T / 0.07, torch.arange(12))
    compare(LOSSES.info_nce(x, ref=ref), theirs, [x, ref])


def test_info_nce_takes_any_strides_and_parameters_of_another_dtype():
    wide, ref = points(12, 14), points(7, 12)
    t = torch.tensor([0.5], dtype=torch.float32, requires_grad=True)
    x, columns = wide[:, ::2], ref.T
    theirs = F.cross_entropy(F.normalize(x) @ F.normalize(columns).T / 0.5, torch.arange(12))
    mine = LOSSES.info_nce(x, ref=columns, temperature=t)
    compare(mine, theirs, [wide, ref])
    assert torch.autograd.grad(mine, t)[0].dtype == torch.float32


@pytest.mark.parametrize("lse_coefficient", [1.0, 0.9])
def test_info_nce_symmetric(lse_coefficient):
    """CLIP, and CMA's cross-entropy less lambda times the log-sum-exp."""
    x, ref, t = points(11), points(11), number(0.3)
    logits, target = F.normalize(x) @ F.normalize(ref).T / t, torch.arange(11)
    theirs = sum(
        F.cross_entropy(z, target, reduction="none") - (1 - lse_coefficient) * z.logsumexp(1)
        for z in (logits, logits.T)
    ) / 2  # fmt: skip
    for reduction, wanted in (("none", theirs), ("mean", theirs.mean()), ("sum", theirs.sum())):
        mine = LOSSES.info_nce(
            x, ref=ref, temperature=t, symmetric=True, lse_coefficient=lse_coefficient, reduction=reduction
        )
        torch.testing.assert_close(mine, wanted, **CLOSE)
    compare(
        LOSSES.info_nce(x, ref=ref, temperature=t, symmetric=True, lse_coefficient=lse_coefficient),
        theirs.mean(),
        [x, ref, t],
    )


def test_info_nce_symmetric_by_labels():
    x, ref, t, y, ref_y = points(14), points(14), number(0.3), labels_of(14, 5), labels_of(14, 7)
    s, masks = formulas.similarities(x, ref), formulas.pair_masks(y, ref_y)
    sides = [
        formulas.info_nce(z, positive, negative, t, 0.1).sum() / positive.any(1).sum()
        for z, positive, negative in ((s, *masks), (s.T, masks[0].T, masks[1].T))
    ]
    mine = LOSSES.info_nce(x, y, ref, ref_y, temperature=t, symmetric=True, margin=0.1)
    compare(mine, sum(sides) / 2, [x, ref, t])


def test_info_nce_symmetric_without_the_positive_in_the_denominator():
    x, ref, t = points(14), points(14), number(0.3)
    s, (positive, negative) = formulas.similarities(x, ref), formulas.paired_masks(14, 14)
    sides = [formulas.info_nce(z, positive, negative, t, in_denominator=False).mean() for z in (s, s.T)]
    mine = LOSSES.info_nce(x, ref=ref, temperature=t, symmetric=True, positive_in_denominator=False)
    compare(mine, sum(sides) / 2, [x, ref, t])


def test_info_nce_ignores_pairs_of_the_same_label():
    x, ref, t, y = points(14), points(14), number(0.3), labels_of(14, 4)
    negative = y[:, None] != y[None]
    theirs = formulas.info_nce(formulas.similarities(x, ref), torch.eye(14, dtype=torch.bool), negative, t).mean()
    compare(LOSSES.info_nce(x, y, ref, y, temperature=t, same_label="ignore"), theirs, [x, ref, t])


def test_info_nce_with_explicit_positives():
    """m2-mix: the diagonal of one similarity matrix is replaced by that of another."""
    image, text, t = points(13), points(13), number(0.2)
    mix = F.normalize(image) + F.normalize(text) * 0.4
    logits = F.normalize(image) @ F.normalize(mix).T
    own = (F.normalize(image) * F.normalize(text)).sum(1)
    theirs = F.cross_entropy((logits - logits.diagonal().diag() + own.diag()) / t, torch.arange(13))
    mine = LOSSES.info_nce(image, ref=mix, positive=own, temperature=t)
    compare(mine, theirs, [image, text, t])
    y, no_ref = labels_of(13, 4), formulas.similarities(image)
    rows = [torch.cat([own[i : i + 1], no_ref[i][y != y[i]]]) / t for i in range(13)]
    theirs = torch.stack([row.logsumexp(0) - row[0] for row in rows]).mean()
    compare(LOSSES.info_nce(image, y, positive=own, temperature=t), theirs, [image, text, t])


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "squared_euclidean"])
def test_info_nce_with_a_queue(labelled, similarity):
    x, ref, queue, t, y = points(9), points(9), points(20), number(0.5), labels_of(9, 4)
    of_queue, queue_y = formulas.similarities(x, queue, similarity), labels_of(20, 4)
    if labelled:
        of_queue = of_queue.masked_fill(y[:, None] == queue_y[None], -torch.inf)
        masks, options = formulas.pair_masks(y, y), {"queue_labels": queue_y}
        mine = LOSSES.info_nce(
            x, y, ref, y, queue=queue, temperature=t, similarity=similarity, **options
        )  # fmt: skip
    else:
        masks = formulas.paired_masks(9, 9)
        mine = LOSSES.info_nce(x, ref=ref, queue=queue, temperature=t, similarity=similarity)
    theirs = formulas.info_nce(formulas.similarities(x, ref, similarity), *masks, t, queue=of_queue).mean()
    compare(mine, theirs, [x, ref, queue, t])


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_info_nce_weighted_by_label_columns(columns):
    x, ref, t = points(15), points(15), number(0.6)
    y = torch.stack([labels_of(15, 3) for _ in range(columns)], 1)
    weights = (y[:, None] != y[None]).sum(2)
    eye = torch.eye(15, dtype=torch.bool)
    theirs = formulas.info_nce(formulas.similarities(x, ref), eye, (weights > 0) & ~eye, t, weights=weights).mean()
    compare(LOSSES.info_nce(x, y, ref, y, temperature=t), theirs, [x, ref, t])


def test_supcon(case):
    x, y, ref, ref_y, ids, masks = case
    t = number(0.2)
    rows = formulas.supcon(formulas.similarities(x, ref), *masks, t)
    for options, theirs in (
        ({"reduction": "none"}, rows),
        ({"reduction": "sum"}, rows.sum()),
        ({}, rows.sum() / (rows > 0).sum()),
        ({"convention": "supcontrast", "base_temperature": 0.3}, rows.mean() * t / 0.3),
        ({"convention": "supcontrast", "reduction": "none"}, rows * t / 0.07),
    ):
        mine = LOSSES.supcon(x, y, ref, ref_y, **ids, temperature=t, **options)
        compare(mine, theirs, leaves_of(x, ref, t))


def test_supcon_of_one_class():
    """pytorch-metric-learning has no loss without negatives, the authors' program has."""
    x, y = points(5), torch.zeros(5, dtype=torch.int64)
    mine = LOSSES.supcon(x, y)
    assert mine == 0
    assert not torch.autograd.grad(mine, x)[0].any()
    theirs = formulas.supcon(formulas.similarities(x), *formulas.pair_masks(y), 0.1).mean() * (0.1 / 0.07)
    compare(LOSSES.supcon(x, y, convention="supcontrast"), theirs, [x])


def test_supcon_of_two_views():
    first, second, y = points(9), points(9), labels_of(9, 4)
    x, labels = torch.cat([first, second]), torch.cat([y, y])
    theirs = formulas.supcon(formulas.similarities(x), *formulas.pair_masks(labels), 0.07).mean()
    compare(LOSSES.supcon(x, labels, temperature=0.07, convention="supcontrast"), theirs, [first, second])


def test_nt_xent(case):
    x, y, ref, ref_y, ids, masks = case
    t = number(0.2)
    leaves = leaves_of(x, ref, t)
    pairs = formulas.nt_xent(formulas.similarities(x, ref), *masks, t)
    compare(LOSSES.nt_xent(x, y, ref, ref_y, **ids, temperature=t, reduction="none"), pairs, leaves)
    compare(LOSSES.nt_xent(x, y, ref, ref_y, **ids, temperature=t), pairs.mean(), leaves)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_n_pairs(similarity):
    x, y, t = points(30), labels_of(30, 12, first=4), number(0.8)
    for reduction in ("none", "mean"):
        theirs = formulas.n_pairs(x, y, t, similarity)
        mine = LOSSES.n_pairs(x, y, similarity=similarity, temperature=t, reduction=reduction)
        compare(mine, theirs if reduction == "none" else theirs.mean(), [x, t])


@pytest.mark.parametrize("similarity", ["squared_euclidean", "euclidean", "dot"])
@pytest.mark.parametrize("normalize", [True, False])
def test_nca(case, similarity, normalize):
    x, y, ref, ref_y, ids, masks = case
    scale = number(1.3)
    s = formulas.similarities(x, ref, similarity, normalize)
    theirs = formulas.mean_of(formulas.nca(s, *masks, scale), s)
    mine = LOSSES.nca(x, y, ref, ref_y, **ids, similarity=similarity, normalize=normalize, softmax_scale=scale)
    compare(mine, theirs, leaves_of(x, ref, scale))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_soft_target_info_nce(case, temperature):
    x, y, ref, ref_y, ids, masks = case
    t = number(temperature)
    keep = masks[0] | masks[1]
    theirs = formulas.soft_target(formulas.similarities(x, ref), masks[0], keep, t)
    mine = LOSSES.soft_target_info_nce(x, y, ref, ref_y, **ids, temperature=t, diagonal=False, reduction="none")
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-9 / temperature)
    compare(mine.mean() * temperature**2, theirs.mean() * temperature**2, leaves_of(x, ref, t))


def test_soft_target_info_nce_with_the_diagonal():
    x, y, t = points(12), labels_of(12, 5), number(0.2)
    same = y[:, None] == y[None]
    theirs = formulas.soft_target(formulas.similarities(x), same, torch.ones_like(same), t).mean()
    compare(LOSSES.soft_target_info_nce(x, y, temperature=t), theirs, [x, t])


def test_soft_target_info_nce_of_a_number_that_float32_rounds():
    x, y = points(9), labels_of(9, 3)
    same = y[:, None] == y[None]
    t = torch.tensor(0.07, dtype=torch.float64)
    theirs = formulas.soft_target(formulas.similarities(x), same, torch.ones_like(same), t).mean()
    torch.testing.assert_close(LOSSES.soft_target_info_nce(x, y, temperature=0.07), theirs, rtol=1e-12, atol=1e-12)


BY_LABELS = ["info_nce", "supcon", "nt_xent", "n_pairs", "nca", "soft_target_info_nce"]


@pytest.mark.parametrize("name", BY_LABELS)
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_without_positives_nothing_is_lost(name, n):
    x, y = points(n), torch.arange(n) * 10**15 - 5
    loss = getattr(LOSSES, name)(x, y)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.shape == x.shape and gradient.isfinite().all()
    if name != "soft_target_info_nce" or n < 2:
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-14)
        assert gradient.abs().max().item() < 1e-13 if n else True


@pytest.mark.parametrize("name", ["info_nce", "supcon", "nt_xent", "nca", "soft_target_info_nce"])
@pytest.mark.parametrize("m", [0, 1])
@pytest.mark.parametrize("label", [0, 1])
def test_small_refs(name, m, label):
    x, ref = points(3), points(m)
    loss = getattr(LOSSES, name)(x, torch.zeros(3, dtype=torch.int64), ref, torch.full((m,), label))
    for gradient in torch.autograd.grad(loss, (x, ref)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-13)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", BY_LABELS)
def test_duplicates_and_one_class(name):
    x = torch.ones(4, 3, dtype=torch.float64).requires_grad_()
    for y in (torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64)):
        loss = getattr(LOSSES, name)(x, y)
        assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["info_nce", "supcon", "nca", "soft_target_info_nce"])
def test_nothing_is_read_on_the_host(name):
    """A tensor without data refuses to be read."""
    with FakeTensorMode():
        x, y = torch.randn(8, 5, requires_grad=True), torch.zeros(8, dtype=torch.int64)
        getattr(LOSSES, name)(x, y).backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("name", BY_LABELS)
def test_nan_propagates(name):
    x = points(6)
    with torch.no_grad():
        x[2, 1] = torch.nan
    assert getattr(LOSSES, name)(x, torch.tensor([0, 0, 1, 1, 2, 2])).isnan()


def test_supcon_of_one_positive_learns_past_the_reach_of_a_difference():
    """Two views: the log-sum-exp over the positives is the positive itself, and no rounding is left of the two."""
    y = torch.arange(8).repeat(2)
    x = F.normalize(torch.eye(8, dtype=torch.float64)[y] + 0.05 * torch.randn(16, 8, dtype=torch.float64)).float()
    wanted = [LOSSES.supcon(x.double(), y, temperature=t, reduction="none") for t in (0.05, 0.03)]
    for t, right in zip((0.05, 0.03), wanted, strict=True):
        found = LOSSES.supcon(x, y, temperature=t, reduction="none")
        torch.testing.assert_close(found.double(), right, rtol=1e-3, atol=0)


def test_gradients_of_nt_xent_add_up_in_a_fixed_order():
    """Indexing a tensor adds up its gradients in the order of the threads."""
    x, y = points(12), labels_of(12, 3)
    with torch.autograd.profiler.profile() as profile:
        LOSSES.nt_xent(x, y).backward()
    assert not any("index_put" in event.key for event in profile.key_averages())


def test_info_nce_learns_past_the_reach_of_a_difference():
    """Where lse - positive would be 0 in float32 the loss and its gradient are not."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = LOSSES.info_nce(x, ref=x.detach(), temperature=0.04)
    torch.testing.assert_close(loss.double(), torch.exp(torch.tensor(-25.0).double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", BY_LABELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(name, dtype):
    x, y = points(64, 32, dtype), labels_of(64, 20)
    masks = formulas.pair_masks(y)

    def losses(x):
        s = formulas.similarities(x)
        if name == "info_nce":
            return formulas.info_nce(s, *masks, 0.2)
        if name == "supcon":
            return formulas.supcon(s, *masks, 0.2)
        if name == "nt_xent":
            return formulas.nt_xent(s, *masks, 0.2)
        if name == "n_pairs":
            return formulas.n_pairs(x, y, 0.2)
        if name == "nca":
            found = torch.stack(formulas.nca(2 * s - 2, *masks, 5.0))
            return torch.zeros_like(s[0]).masked_scatter(masks[0].any(1), found)
        same = y[:, None] == y[None]
        return formulas.soft_target(s, same, torch.ones_like(same), 0.2)

    option = {"softmax_scale": 5.0} if name == "nca" else {"temperature": 0.2}
    mine = getattr(LOSSES, name)(x, y, reduction="none", **option)
    assert mine.dtype == torch.float32
    exact = x.detach().double().requires_grad_()
    truth, theirs = losses(exact), losses(x)
    magnitude = (truth.detach() + 1).norm().item()
    assert_as_accurate(mine.detach(), theirs.float().detach(), truth.detach(), magnitude=magnitude)
    got, other, right = (torch.autograd.grad(v.sum(), at)[0] for v, at in ((mine, x), (theirs, x), (truth, exact)))
    assert_as_accurate(got, other, right, what="gradient", magnitude=right.norm().item())


def test_gradcheck():
    y = torch.tensor([0, 0, 1, 1, 2])
    x, ref, t = points(5, 3), points(5, 3), number(0.5)
    assert torch.autograd.gradcheck(lambda *v: LOSSES.info_nce(v[0], y, v[1], y, temperature=v[2]), (x, ref, t))
    assert torch.autograd.gradcheck(lambda v, t: LOSSES.nt_xent(v, y, temperature=t), (x, t))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, y: ((x,), {}), "ref must be given"),
        (lambda x, y: ((x, None, x[:2]), {}), "ref must have a row for each"),
        (lambda x, y: ((x, y, x[:2], y[:2]), {"symmetric": True}), "as many rows"),
        (lambda x, y: ((x, y), {"symmetric": True}), "as many rows"),
        (lambda x, y: ((x, y), {"same_label": "both"}), "same_label"),
        (lambda x, y: ((x, y), {"reduction": "max"}), "reduction"),
        (lambda x, y: ((x, y), {"temperature": 0.0}), "temperature"),
        (lambda x, y: ((x, y), {"temperature": torch.ones(2)}), "temperature"),
        (lambda x, y: ((x, y), {"positive": x[:2, 0]}), "positive"),
        (lambda x, y: ((x, y), {"queue": x[:, :2]}), "queue"),
        (lambda x, y: ((x, y), {"queue": x.float()}), "queue"),
        (lambda x, y: ((x, None, x), {"queue": x, "queue_labels": y}), "labels must be given"),
        (lambda x, y: ((x, y), {"queue_labels": y}), "queue must be given"),
        (lambda x, y: ((x, y, x, y), {"queue": x, "symmetric": True}), "queue must be None"),
        (lambda x, y: ((x, y[:, None], x, torch.stack([y, y], 1)), {}), "ref_labels"),
        (lambda x, y: ((x, y[:, None][:, :0], x), {}), "labels"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given, options = arguments(points(4), torch.tensor([0, 0, 1, 1]))
    with pytest.raises((TypeError, ValueError), match=message):
        LOSSES.info_nce(*given, **options)
