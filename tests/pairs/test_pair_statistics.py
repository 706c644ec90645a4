"""hk.pair_statistics against a double loop over the pairs, and its arguments."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import hyperkernels as hk
from hyperkernels.kernels.pair_mining import reference
from hyperkernels.pairs.codes import codes
from hyperkernels.pairs.pairs import Pairs

ALL = ("moments", "extremes", "lse", "softplus")


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    with hk.backend(request.param):
        yield


def similarity_of(a, b, kind):
    if kind == "cosine":
        return F.normalize(a, dim=0) @ F.normalize(b, dim=0)
    if kind == "dot":
        return a @ b
    distance = (a - b).square().sum()
    return -distance if kind == "squared_euclidean" else -distance.sqrt()


def by_loop(x, labels, ref, ref_labels, ids, ref_ids, select, similarity, scale, offset, lower, upper, ignore, bits):
    """The definition, one pair after another."""
    own = ref is None
    ref, ref_labels = (x, labels) if own else (ref, ref_labels)
    found = {name: [] for name in hk.PairStatistics._fields}
    for i in range(len(x)):
        kept = []
        for j in range(len(ref)):
            a, b = (int(labels[i]), int(ref_labels[j])) if labels is not None else (0, 0)
            if ignore is not None and ignore in (a, b):
                continue
            positive = a & b != 0 if bits else a == b
            if (select == "positive" and not positive) or (select == "negative" and positive):
                continue
            if ids is None and own and i == j:
                continue
            if ids is not None and int(ids[i]) == int((ids if own else ref_ids)[j]):
                continue
            u = similarity_of(x[i], ref[j], similarity)
            if (lower is not None and u <= lower[i]) or (upper is not None and u >= upper[i]):
                continue
            kept.append((j, u))
        u = torch.stack([u for _, u in kept]) if kept else x.new_empty(0)
        columns = [j for j, _ in kept]
        found["count"].append(len(kept))
        found["sum"].append(float(u.sum()))
        found["sum_squares"].append(float(u.square().sum()))
        found["min"].append(float(u.min()) if kept else math.inf)
        found["argmin"].append(columns[int(u.argmin())] if kept else -1)
        found["max"].append(float(u.max()) if kept else -math.inf)
        found["argmax"].append(columns[int(u.argmax())] if kept else -1)
        found["lse"].append(float(torch.logsumexp(scale * u, 0)) if kept else -math.inf)
        found["softmax_mean"].append(float((torch.softmax(scale * u, 0) * u).sum()))
        found["softplus_sum"].append(float(F.softplus(scale * u + offset).sum()))
    return found


def problem(n, m, d, own, similarity, select, label_kind, with_ids, windows, ignored):
    x, ref = torch.randn(n, d, dtype=torch.float64), torch.randn(m, d, dtype=torch.float64)
    alphabet = torch.tensor(
        {"few": [0, 1], "many": list(range(9)), "huge": [-(2**63), 2**63 - 1, -1, 10**12]}[label_kind]
    )
    labels, ref_labels = (alphabet[torch.randint(len(alphabet), (k,))] for k in (n, m))
    ids, ref_ids = (torch.randint(-2, 5, (k,)) for k in (n, m))
    lower = torch.randn(n, dtype=torch.float64) - 1 if windows in ("lower", "both") else None
    upper = torch.randn(n, dtype=torch.float64) + 1 if windows in ("upper", "both") else None
    return {
        "x": x, "labels": labels, "ref": None if own else ref, "ref_labels": None if own else ref_labels,
        "ids": ids if with_ids else None, "ref_ids": None if own or not with_ids else ref_ids,
        "select": select, "similarity": similarity, "lower": lower, "upper": upper,
        "ignore_label": int(alphabet[0]) if ignored else None,
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 13, 24]),
    m=st.sampled_from([0, 1, 7, 21]),
    d=st.sampled_from([1, 3, 8]),
    own=st.booleans(),
    similarity=st.sampled_from(["cosine", "dot", "euclidean", "squared_euclidean"]),
    select=st.sampled_from(["positive", "negative", "all"]),
    label_kind=st.sampled_from(["few", "many", "huge"]),
    with_ids=st.booleans(),
    windows=st.sampled_from(["", "lower", "upper", "both"]),
    ignored=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_the_double_loop(seed, **options):
    torch.manual_seed(seed)
    case = problem(**options)
    scale, offset = 3.0, -0.5
    ours = hk.pair_statistics(**case, statistics=ALL, scale=scale, offset=offset)
    named = {("ignore" if k == "ignore_label" else k): v for k, v in case.items()}
    truth = by_loop(**named, scale=scale, offset=offset, bits=False)
    for name, mine in ours._asdict().items():
        right = torch.tensor(truth[name], dtype=mine.dtype)
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("own", [True, False])
def test_the_reference_equals_the_double_loop(own, similarity):
    counted = 0
    for select in ("positive", "negative", "all"):
        case = problem(17, 14, 3, own, similarity, select, "few", True, "both", select == "all")
        named = {("ignore" if k == "ignore_label" else k): v for k, v in case.items()}
        truth = by_loop(**named, scale=3.0, offset=-0.5, bits=False)
        with hk.backend("reference"):
            ours = hk.pair_statistics(**case, statistics=ALL, scale=3.0, offset=-0.5)
        counted += int(ours.count.sum())
        for name, mine in ours._asdict().items():
            torch.testing.assert_close(mine, torch.tensor(truth[name], dtype=mine.dtype), rtol=1e-9, atol=1e-9)
    assert 0 < counted < 2 * 14 * 17


@pytest.mark.parametrize("select", ["positive", "negative", "all"])
def test_sets_of_bits(select, backend):
    x = torch.randn(30, 6, dtype=torch.float64)
    labels = torch.randint(0, 8, (30,)) | (torch.randint(0, 2, (30,)) << 63)
    ours = hk.pair_statistics(x, labels, select=select, multi_hot=True, statistics=ALL)
    truth = by_loop(x, labels, None, None, None, None, select, "cosine", 1.0, 0.0, None, None, None, True)
    for name, mine in ours._asdict().items():
        torch.testing.assert_close(mine, torch.tensor(truth[name], dtype=mine.dtype), rtol=1e-9, atol=1e-9)


def test_codes():
    a, b = torch.tensor([5, -(2**63), 5, 2**63 - 1]), torch.tensor([2**63 - 1, 0])
    first, second = codes(a, b)
    both = torch.cat([a, b])
    assert torch.equal(torch.cat([first, second])[:, None] == torch.cat([first, second]), both[:, None] == both)
    assert first.dtype == torch.int32 and codes(a[:0], None)[0].shape == (0,)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("select", ["positive", "negative"])
def test_gradcheck(select, own, similarity):
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    ref = None if own else torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels, ref_labels = torch.arange(7) % 3, None if own else torch.arange(9) % 3
    scale = torch.rand(7, dtype=torch.float64).add(1).requires_grad_()
    offset = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def function(*_):
        found = hk.pair_statistics(
            x, labels, ref, ref_labels, select=select, similarity=similarity, statistics=ALL, scale=scale, offset=offset
        )
        return found.sum, found.sum_squares, found.min, found.max, found.lse, found.softplus_sum

    leaves = [x, scale, offset] + ([] if own else [ref])
    assert torch.autograd.gradcheck(function, leaves)

    def mean(*_):
        return hk.pair_statistics(
            x, labels, ref, ref_labels, select=select, similarity=similarity, statistics=("lse",), scale=2.0
        ).softmax_mean

    assert torch.autograd.gradcheck(mean, [x] + ([] if own else [ref]))


def test_bounds_are_strict_and_ties_go_to_the_lowest_column(backend):
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = hk.pair_statistics(x, similarity="dot", statistics=("extremes",))
    assert found.argmax.tolist() == [1, 2, 1, 0, 3] and found.argmin.tolist() == [4, 4, 4, 0, 1]
    within = hk.pair_statistics(x, similarity="dot", statistics=("extremes",), lower=-1.0, upper=2.0)
    assert within.count.tolist() == [1, 1, 1, 4, 1] and within.argmax.tolist() == [3, 3, 3, 0, 3]


def test_ids_exclude_what_equal_values_do_not(backend):
    x = torch.randn(4, 3)
    x[2] = x[0]
    same = hk.pair_statistics(x, statistics=("extremes",))
    assert same.argmax[0] == 2
    excluded = hk.pair_statistics(x, ids=torch.tensor([8, 1, 8, 3]), statistics=())
    assert excluded.count.tolist() == [2, 3, 2, 3]


def test_a_zero_row_has_a_zero_gradient():
    x = torch.randn(6, 5)
    x[2] = 0
    x.requires_grad_()
    found = hk.pair_statistics(x, statistics=("moments", "lse"), scale=20.0)
    (found.lse.sum() + found.sum.sum()).backward()
    assert x.grad.isfinite().all() and (x.grad[2] == 0).all() and (x.grad[0] != 0).any()


def test_nan_is_not_lost():
    x = torch.randn(5, 3)
    x[1, 0] = torch.nan
    found = hk.pair_statistics(x, similarity="dot", statistics=ALL)
    for name in ("sum", "min", "max", "lse", "softplus_sum"):
        assert getattr(found, name).isnan().all(), name
    assert ((found.argmax >= -1) & (found.argmax < 5)).all()


def test_a_row_that_no_pair_names_cannot_poison_a_gradient():
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 2])
    ref = torch.randn(3, 3)
    ref[0] = torch.nan
    x.requires_grad_()
    options = {"select": "positive", "similarity": "dot", "ignore_label": -5, "statistics": ("extremes",)}
    found = hk.pair_statistics(x, labels, ref, torch.tensor([-5, 0, 1]), **options)
    found.max[found.count > 0].sum().backward()
    assert x.grad.isfinite().all() and (x.grad[0] != 0).any() and (x.grad[3] == 0).all()


def test_the_temperature_learns():
    x, labels = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 4
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: hk.pair_statistics(x, labels, select="negative", scale=s).lse, scale)


def test_autocast():
    x = torch.randn(16, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hk.pair_statistics(x, statistics=("lse",), scale=10.0).lse
    assert found.dtype == torch.float32
    found.sum().backward()
    assert x.grad.dtype == torch.float32
    exact = hk.pair_statistics(x.detach(), statistics=("lse",), scale=10.0).lse
    assert 0 < (found - exact).abs().max() < 0.1


WRONG = [
    (TypeError, "x", {"x": [1.0]}),
    (TypeError, "x", {"x": torch.ones(4, 3, dtype=torch.int64)}),
    (ValueError, "x", {"x": torch.ones(4)}),
    (TypeError, "labels", {"labels": torch.ones(4)}),
    (ValueError, "labels", {"labels": torch.ones(5, dtype=torch.int64)}),
    (ValueError, "labels", {"labels": None, "select": "positive"}),
    (TypeError, "ref", {"ref": torch.ones(2, 3, dtype=torch.float64), "ref_labels": torch.zeros(2, dtype=torch.int64)}),
    (ValueError, "ref", {"ref": torch.ones(2, 4), "ref_labels": torch.zeros(2, dtype=torch.int64)}),
    (ValueError, "ref_labels", {"ref": torch.ones(2, 3)}),
    (ValueError, "ref_labels", {"ref_labels": torch.zeros(4, dtype=torch.int64)}),
    (ValueError, "ref_ids", {"ids": torch.arange(4), "ref": torch.ones(2, 3), "ref_labels": torch.zeros(2).long()}),
    (ValueError, "select", {"select": "some"}),
    (ValueError, "statistics", {"statistics": ("median",)}),
    (ValueError, "similarity", {"similarity": "manhattan"}),
    (TypeError, "scale", {"scale": "big"}),
    (ValueError, "lower", {"lower": torch.ones(3)}),
    (TypeError, "scale", {"scale": None}),
    (TypeError, "offset", {"offset": "low"}),
    (TypeError, "statistics", {"statistics": None}),
    (TypeError, "statistics", {"statistics": "lse"}),
    (TypeError, "ignore_label", {"ignore_label": 1.5}),
    (ValueError, "ignore_label", {"ignore_label": 2**63}),
    (ValueError, "ignore_label", {"ignore_label": 1, "multi_hot": True}),
    (ValueError, "ignore_label", {"ignore_label": 1, "labels": None}),
    (ValueError, "multi_hot", {"multi_hot": True, "labels": None}),
    (TypeError, "multi_hot", {"multi_hot": "no"}),
    (ValueError, "eps", {"eps": 0.0}),
]


@pytest.mark.parametrize("error, name, change", WRONG)
def test_a_wrong_argument_is_named(error, name, change):
    arguments = {"x": torch.randn(4, 3), "labels": torch.tensor([0, 0, 1, 1])} | change
    with pytest.raises(error, match=rf"\b{name}\b"):
        hk.pair_statistics(**arguments)


@pytest.mark.parametrize(
    "loss, name",
    [
        ("contrastive", "normalize"), ("nca", "normalize"), ("proxy_nca", "normalize"), ("triplet", "soft"),
        ("weighted_triplet", "include_self"), ("weighted_triplet", "exact"), ("ranked_list", "detach_weights"),
        ("info_nce", "symmetric"), ("info_nce", "positive_in_denominator"), ("soft_target_info_nce", "diagonal"),
    ],
)  # fmt: skip
def test_what_is_neither_true_nor_false_is_refused(loss, name):
    more = {"ranked_list": {"margin": 0.4, "Tn": 1.0}, "proxy_nca": {"proxies": torch.randn(2, 3)}}.get(loss, {})
    for value in ("no", 1, None):
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            getattr(hk.losses, loss)(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), **more, **{name: value})


def test_bounds_beyond_the_range_of_the_dtype():
    x = torch.randn(6, 3)
    within = hk.pair_statistics(x, lower=-1e300, upper=1e300, statistics=())
    assert within.count.tolist() == [5] * 6
    a, _, _, _ = hk.mining.pair_margin(x, torch.zeros(6, dtype=torch.int64), pos_margin=1e300)
    assert len(a) == 30


def test_a_tangent_of_the_scale_is_not_dropped():
    x, scale = torch.randn(6, 3), torch.tensor(2.0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scale, torch.tensor(1.0))
        try:
            found = hk.pair_statistics(x, similarity="dot", scale=dual, statistics=("lse",)).lse
        except RuntimeError as error:
            assert "forward-mode" in str(error)
        else:
            assert forward_ad.unpack_dual(found).tangent is not None


def test_the_list_of_positives_comes_in_the_order_of_the_rows():
    x, labels = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 6, (40,))
    found = Pairs(x, labels).listed("positive")
    unit = F.normalize(x)
    rows, columns = ((labels[:, None] == labels) & ~torch.eye(40, dtype=torch.bool)).nonzero(as_tuple=True)
    assert torch.equal(found.rows, rows) and torch.equal(found.columns, columns)
    assert torch.equal(found.offsets.diff(), torch.bincount(rows, minlength=40))
    torch.testing.assert_close(found.similarities, (unit @ unit.T)[rows, columns])


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 13, 90]), m=st.sampled_from([None, 0, 1, 7, 75]),
    similarity=st.sampled_from(["dot", "squared_euclidean"]), ids=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_the_bins_of_positives_are_those_of_the_reference(n, m, similarity, ids, seed):
    torch.manual_seed(seed)
    sizes = [n] if m is None else [n, m]
    leaves = [torch.randn(k, 4, dtype=torch.float64, requires_grad=True) for k in sizes]
    labels, numbers = ([torch.randint(-3, 20, (k,)) % top - 3 for k in sizes] for top in (8, 19))
    (x, ref), (y, ref_y), (own, ref_ids) = ([*v, None][:2] for v in (leaves, labels, numbers))
    names = {"ids": own, "ref_ids": ref_ids} if ids else {}
    pairs = Pairs(x, y, ref, ref_y, similarity=similarity, ignore_label=-3, **names)
    lower, counts = torch.randn(n, dtype=torch.float64) - 4, torch.randint(0, 5, (n,))
    offsets = F.pad(counts.cumsum(0), (1, 0))
    edges = torch.cat([lower[:0], *(2 * torch.randn(k, dtype=torch.float64).sort().values for k in counts.tolist())])
    ours = pairs.binned("positive", edges, offsets, lower=lower)
    truth = reference.binned(pairs.problem("positive", lower), edges, offsets)
    for mine, right in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(truth[1])
    mine, right = (torch.autograd.grad((v[1] * weight).sum(), leaves, materialize_grads=True) for v in (ours, truth))
    torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


def test_a_pass_over_the_positives_goes_in_the_order_of_the_labels(monkeypatch):
    seen = []
    monkeypatch.setattr(reference, "binned", lambda p, *a, of=reference.binned: seen.append(p.label) or of(p, *a))
    with hk.backend("reference"):
        labels = torch.tensor([3, 0, 3, 1, 0])
        Pairs(torch.randn(5, 2), labels).binned("positive", torch.zeros(5), torch.arange(6))
    assert seen[0].tolist() == [0, 0, 1, 2, 2]
