"""The miners against a double loop, and against PyTorch Metric Learning."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperkernels as hk

from .cases import DATA, LABELS, SHAPES, SIMILARITIES, Brute, Problem, listed, problem

mining = hk.mining
EVERY = list(itertools.product(SHAPES, DATA, LABELS))
COMBINATIONS = [
    (p, n)
    for p, n in itertools.product(("easy", "hard", "semihard", "all"), repeat=2)
    if "semihard" not in (p, n) or ({p, n} <= {"semihard", "easy", "hard"} and p != n)
]


@pytest.fixture(params=SIMILARITIES)
def similarity(request):
    return request.param


@pytest.fixture(params=(torch.float64, torch.float32), ids=str)
def dtype(request):
    return request.param


def brute_batch_hard(b):
    found = [(i, b.hardest(i, b.positives[i], False), b.hardest(i, b.negatives[i], True)) for i in range(b.n)]
    return [t for t in found if None not in t]


def brute_semi_hard(b, fallback):
    found = []
    for i in range(b.n):
        for p in b.positives[i]:
            n = b.hardest(i, [j for j in b.negatives[i] if b.u[i][j] < b.u[i][p]], True)
            if n is None and fallback == "easiest":
                n = b.hardest(i, b.negatives[i], False)
            if n is not None:
                found.append((i, p, n))
    return found


def wanted(gap, margin, kind):
    return {
        "all": gap <= margin,
        "hard": gap <= margin and gap <= 0,
        "semihard": 0 < gap <= margin,
        "easy": gap > margin,
    }[kind]


def brute_triplets(b, margin, kind):
    return [
        (i, p, n)
        for i in range(b.n)
        for p in b.positives[i]
        for n in b.negatives[i]
        if wanted(b.u[i][p] - b.u[i][n], margin, kind)
    ]


def brute_multi_similarity(b, epsilon):
    positives, negatives = [], []
    for i in range(b.n):
        if not b.positives[i] or not b.negatives[i]:
            continue
        low, high = min(b.u[i][p] for p in b.positives[i]), max(b.u[i][n] for n in b.negatives[i])
        positives += [(i, p) for p in b.positives[i] if b.u[i][p] - epsilon < high]
        negatives += [(i, n) for n in b.negatives[i] if b.u[i][n] + epsilon > low]
    return positives, negatives


def brute_pair_margin(b, pos_margin, neg_margin):
    far = (lambda v: v > pos_margin) if b.name == "euclidean" else (lambda v: v < pos_margin)
    near = (lambda v: v < neg_margin) if b.name == "euclidean" else (lambda v: v > neg_margin)
    positives = [(i, p) for i in range(b.n) for p in b.positives[i] if far(b.measure(i, p))]
    return positives, [(i, n) for i in range(b.n) for n in b.negatives[i] if near(b.measure(i, n))]


def brute_easy_hard(b, pos, neg, pos_range, neg_range):
    def best(i, columns, strategy, side, allowed, other):
        columns = [j for j in columns if allowed is None or allowed[0] <= b.measure(i, j) <= allowed[1]]
        if strategy == "semihard":
            if other is None:
                return None
            threshold = b.u[i][other]
            columns = [j for j in columns if (b.u[i][j] > threshold if side == "pos" else b.u[i][j] < threshold)]
        return b.hardest(i, columns, (strategy == "easy") == (side == "pos"))

    positives, negatives = [], []
    for i in range(b.n):
        p = n = None
        if pos not in ("all", "semihard"):
            p = best(i, b.positives[i], pos, "pos", pos_range, None)
        if neg != "all":
            n = best(i, b.negatives[i], neg, "neg", neg_range, p)
        if pos == "semihard":
            p = best(i, b.positives[i], pos, "pos", pos_range, n)
        if "all" not in (pos, neg) and (p is None or n is None):
            continue
        positives += [(i, j) for j in (b.positives[i] if pos == "all" else [p]) if j is not None]
        negatives += [(i, j) for j in (b.negatives[i] if neg == "all" else [n]) if j is not None]
    return positives, negatives


def sides(found):
    return listed(found[:2]), listed(found[2:])


@pytest.mark.parametrize(("shape", "data", "kind"), EVERY)
def test_against_a_double_loop(shape, data, kind, similarity, dtype):
    given = problem(shape, data, kind, dtype)
    b = Brute(given, similarity)
    assert listed(mining.batch_hard(*given, similarity=similarity)) == brute_batch_hard(b)
    for fallback in ("none", "easiest"):
        found = mining.semi_hard(*given, fallback=fallback, similarity=similarity)
        assert listed(found) == brute_semi_hard(b, fallback)
    found = mining.multi_similarity(*given, epsilon=0.25, similarity=similarity)
    assert sides(found) == brute_multi_similarity(b, 0.25)
    found = mining.pair_margin(*given, pos_margin=0.5, neg_margin=0.5, similarity=similarity)
    assert sides(found) == brute_pair_margin(b, 0.5, 0.5)


@pytest.mark.parametrize("kind", ("all", "hard", "semihard", "easy"))
@pytest.mark.parametrize("margin", (-0.5, 0.0, 0.5))
@pytest.mark.parametrize("data", DATA)
def test_triplets(data, margin, kind, similarity, dtype):
    for shape in SHAPES:
        given = problem(shape, data, "few", dtype)
        expected = brute_triplets(Brute(given, similarity), margin, kind)
        options = {"margin": margin, "type_of_triplets": kind, "similarity": similarity}
        assert listed(mining.triplet_margin(*given, **options)) == expected
        counts = mining.triplet_counts(*given, **options)
        b = Brute(given, similarity)
        assert listed(counts[:2]) == [(i, p) for i in range(b.n) for p in b.positives[i]]
        assert counts.count.tolist() == [sum(t[:2] == pair for t in expected) for pair in listed(counts[:2])]


def test_triplets_in_parts(monkeypatch):
    given = problem((60, None), "ties", "few")
    whole = mining.triplet_margin(*given, type_of_triplets="easy")
    monkeypatch.setattr("hyperkernels.mining.common._SMALLEST_PART", 7)
    monkeypatch.setattr("hyperkernels.mining.common._PART", 1)
    for ours, expected in zip(mining.triplet_margin(*given, type_of_triplets="easy"), whole, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(("pos", "neg"), COMBINATIONS)
@pytest.mark.parametrize("ranges", (None, ((0.25, 1.5), (-0.5, 0.5))))
@pytest.mark.parametrize("data", DATA)
def test_easy_hard(data, ranges, pos, neg, similarity):
    pos_range, neg_range = ranges or (None, None)
    for shape, kind in itertools.product(SHAPES, ("few", "distinct")):
        given = problem(shape, data, kind)
        found = mining.batch_easy_hard(
            *given, pos_strategy=pos, neg_strategy=neg, allowed_pos_range=pos_range, allowed_neg_range=neg_range,
            similarity=similarity,
        )  # fmt: skip
        expected = brute_easy_hard(Brute(given, similarity), pos, neg, pos_range, neg_range)
        assert sides(found) == expected


def test_easy_hard_without_ranges_looks_at_infinite_similarities():
    x, labels = torch.tensor([[1e30], [-1e30], [1e30], [1e30], [0.0]]), torch.tensor([0, 0, 0, 1, 1])
    a1, p, a2, n = mining.batch_easy_hard(x, labels, pos_strategy="hard", neg_strategy="hard", similarity="dot")
    hardest = mining.batch_hard(x, labels, similarity="dot")
    assert torch.equal(a1, a2)
    for ours, expected in zip((a1, p, n), hardest, strict=True):
        assert torch.equal(ours, expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_small_integers(data):
    """Whatever ties there are."""
    n, m = data.draw(st.integers(0, 7)), data.draw(st.none() | st.integers(0, 7))
    name = data.draw(st.sampled_from(("dot", "euclidean")))
    rows = st.lists(st.integers(-1, 1), min_size=2, max_size=2)

    def side(size):
        x = data.draw(st.lists(rows, min_size=size, max_size=size))
        y = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
        ids = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
        return (
            torch.tensor(x, dtype=torch.float32).reshape(size, 2),
            torch.tensor(y, dtype=torch.int64),
            torch.tensor(ids, dtype=torch.int64),
        )

    x, y, ids = side(n)
    ref, ref_y, ref_ids = (None, None, None) if m is None else side(m)
    given = Problem(x, y, ref, ref_y)
    b = Brute(given, name, ids, ref_ids)
    options = {"ids": ids, "ref_ids": ref_ids, "similarity": name}
    assert listed(mining.batch_hard(*given, **options)) == brute_batch_hard(b)
    assert listed(mining.semi_hard(*given, **options)) == brute_semi_hard(b, "none")
    assert sides(mining.multi_similarity(*given, epsilon=1.0, **options)) == brute_multi_similarity(b, 1.0)
    for kind in ("all", "hard", "semihard", "easy"):
        found = mining.triplet_margin(*given, margin=1.0, type_of_triplets=kind, **options)
        assert listed(found) == brute_triplets(b, 1.0, kind)
    pos, neg = data.draw(st.sampled_from(COMBINATIONS))
    allowed = (-1.0, 1.0)
    found = mining.batch_easy_hard(
        *given, pos_strategy=pos, neg_strategy=neg, allowed_pos_range=allowed, allowed_neg_range=allowed, **options
    )
    assert sides(found) == brute_easy_hard(b, pos, neg, allowed, allowed)


def test_ignored_and_multi_hot():
    x, labels = torch.randn(20, 5), torch.randint(4, (20,))
    kept = (labels != 2).nonzero()[:, 0]
    within = mining.batch_hard(x[kept], labels[kept])
    for ours, expected in zip(mining.batch_hard(x, labels, ignore_label=2), within, strict=True):
        assert torch.equal(ours, kept[expected])
    bits = 1 << labels
    for miner in (mining.batch_hard, mining.semi_hard, mining.multi_similarity, mining.triplet_margin):
        for ours, expected in zip(miner(x, bits, multi_hot=True), miner(x, labels), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_and_strides(dtype):
    given = problem((23, 14), "ties", "few", dtype)
    wide = torch.stack([given.x, given.x], 2)[:, :, 0]
    assert not wide.is_contiguous()
    b = Brute(given, "cosine")
    assert listed(mining.batch_hard(wide, *given[1:])) == brute_batch_hard(b)
    assert listed(mining.semi_hard(wide, *given[1:])) == brute_semi_hard(b, "none")


# Every miner of (x, labels, ref, ref_labels) with what it needs besides.
EVERY_MINER = {
    "batch_hard": {},
    "batch_easy_hard": {},
    "semi_hard": {"fallback": "easiest"},
    "multi_similarity": {},
    "pair_margin": {},
    "triplet_margin": {},
    "triplet_counts": {"type_of_triplets": "semihard"},
    "topk_negatives": {"k": 4},
    "distance_weighted": {"temperature": 2.0},
    "semi_hard_pool": {"pool": 9, "num_negatives": 4},
}


@pytest.mark.parametrize("name", EVERY_MINER)
def test_nan_stays_in_range(name, poisoned_memory):
    given = problem((17, 12), dtype=torch.float32)
    given.x[3], given.ref[5] = torch.nan, torch.inf
    found = getattr(mining, name)(*given, **EVERY_MINER[name])
    for v, size in zip(found, {3: (17, 12, 12), 4: (17, 12, 17, 12), 2: (1, 12)}[len(found)], strict=True):
        if not v.is_floating_point() and name != "triplet_counts":
            assert ((v >= -1) & (v < size)).all()


@pytest.mark.parametrize("name", EVERY_MINER)
def test_no_features(name):
    """All similarities are zero, or -0."""
    labels = torch.tensor([0, 0, 1, 1, 1])
    found = getattr(mining, name)(torch.empty(5, 0), labels, None, None, **EVERY_MINER[name])
    assert all(v.shape[0] in (len(found[0]), len(found[-1])) for v in found)
    if name == "batch_hard":
        assert listed(found) == [(0, 1, 2), (1, 0, 2), (2, 3, 0), (3, 2, 0), (4, 2, 0)]


def test_no_gradient():
    x = torch.randn(12, 4, requires_grad=True)
    for v in mining.topk_negatives(x, torch.randint(3, (12,)), k=2):
        assert not v.requires_grad


# The peer's distance for each similarity.
def peer_distance(name):
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    if name == "euclidean":
        return distances.LpDistance(normalize_embeddings=False)
    return (
        distances.CosineSimilarity() if name == "cosine" else distances.DotProductSimilarity(normalize_embeddings=False)
    )


PEERS = {
    "batch_hard": ("BatchHardMiner", [{}]),
    "batch_easy_hard": (
        "BatchEasyHardMiner",
        [{"pos_strategy": p, "neg_strategy": n} for p, n in COMBINATIONS]
        + [
            {"pos_strategy": p, "neg_strategy": n, "allowed_pos_range": (0.1, 2.0), "allowed_neg_range": (-0.3, 1.5)}
            for p, n in COMBINATIONS
        ],
    ),
    "multi_similarity": ("MultiSimilarityMiner", [{}, {"epsilon": 0.5}, {"epsilon": -0.1}]),
    "pair_margin": ("PairMarginMiner", [{}, {"pos_margin": 0.6, "neg_margin": 0.1}]),
    "triplet_margin": (
        "TripletMarginMiner",
        [{"margin": m, "type_of_triplets": t} for m in (0.2, 0.7) for t in ("all", "hard", "semihard", "easy")],
    ),
}


@pytest.mark.parametrize("shape", ((40, None), (25, 31)))
@pytest.mark.parametrize("name", PEERS)
def test_against_pytorch_metric_learning(name, shape, similarity):
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    peer, every = PEERS[name]
    given = problem(shape)
    if given.ref is not None:
        given = given._replace(ref=torch.randn_like(given.ref))  # the peer may choose either of two duplicates
    for options in every:
        theirs = getattr(miners, peer)(distance=peer_distance(similarity), **options)(*given)
        ours = getattr(mining, name)(*given, similarity=similarity, **options)
        assert len(ours) == len(theirs)
        if len(ours) == 3:
            assert listed(ours) == sorted(listed(theirs)), options
        else:
            assert sides(ours) == tuple(map(sorted, sides(theirs))), options


def test_errors_name_the_argument():
    x, labels = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    for call, kind, text in (
        (lambda: mining.batch_hard(x, None), TypeError, "labels must be"),
        (lambda: mining.batch_hard(x, labels.int()), TypeError, "labels must have dtype int64"),
        (lambda: mining.batch_hard(x, labels, x), TypeError, "ref_labels must be"),
        (lambda: mining.batch_hard(x, labels[:5]), ValueError, "labels must have one entry"),
        (lambda: mining.batch_hard(x, labels, similarity="manhattan"), ValueError, "similarity must be one of"),
        (lambda: mining.semi_hard(x, labels, fallback="no"), ValueError, "fallback must be one of"),
        (lambda: mining.triplet_margin(x, labels, type_of_triplets="any"), ValueError, "type_of_triplets must be"),
        (lambda: mining.triplet_counts(x, labels, margin="1"), TypeError, "margin must be a number"),
        (lambda: mining.multi_similarity(x, labels, epsilon=float("nan")), ValueError, "epsilon must be finite"),
        (lambda: mining.pair_margin(x, labels, neg_margin=None), TypeError, "neg_margin must be a number"),
        (lambda: mining.batch_easy_hard(x, labels, pos_strategy="x"), ValueError, "pos_strategy must be one of"),
        (lambda: mining.batch_easy_hard(x, labels, pos_strategy="all"), ValueError, "pos_strategy and neg_strategy"),
        (lambda: mining.batch_easy_hard(x, labels, allowed_pos_range=1.0), ValueError, "allowed_pos_range must be"),
        (lambda: mining.batch_easy_hard(x, labels, allowed_neg_range=(2, 1)), ValueError, "allowed_neg_range must"),
    ):  # fmt: skip
        with pytest.raises(kind, match=text):
            call()
