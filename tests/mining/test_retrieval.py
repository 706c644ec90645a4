"""Miners of a fixed number of negatives per query, against a double loop."""

import itertools

import pytest
import torch

import hyperkernels as hk

from .cases import DATA, LABELS, SHAPES, SIMILARITIES, Brute, Problem, embeddings, problem

mining = hk.mining


@pytest.fixture(params=SIMILARITIES)
def similarity(request):
    return request.param


def ranked(b, i, columns):
    """Falling similarity, the lowest column first where equal."""
    return sorted(columns, key=lambda j: (-b.u[i][j], j))


def check_rows(b, values, indices, expected, k):
    """`expected`: of each row the columns in order."""
    assert indices.dtype == torch.int64
    assert values.shape == indices.shape == (b.n, k)
    for i, columns in enumerate(expected):
        assert indices[i].tolist() == columns[:k] + [-1] * (k - len(columns))
        of = torch.tensor([b.u[i][j] for j in columns[:k]] + [-torch.inf] * (k - len(columns)), dtype=torch.float64)
        # The distance of two copies is the root of a rounding error.
        torch.testing.assert_close(values[i].double(), of, rtol=1e-5, atol=30 * torch.finfo(values.dtype).eps ** 0.5)


@pytest.mark.parametrize("k", (0, 1, 4, 40))
@pytest.mark.parametrize("window", (None, (-1.0, 0.5)))
@pytest.mark.parametrize("data", DATA)
def test_topk_negatives(data, window, k, similarity):
    lower, upper = window or (None, None)
    for shape, kind, dtype in itertools.product(SHAPES, LABELS, (torch.float64, torch.float32)):
        given = problem(shape, data, kind, dtype)
        b = Brute(given, similarity)
        expected = [
            ranked(b, i, [j for j in b.negatives[i] if window is None or lower < b.u[i][j] < upper]) for i in range(b.n)
        ]
        values, indices = mining.topk_negatives(*given, k=k, lower=lower, upper=upper, similarity=similarity)
        check_rows(b, values, indices, expected, k)


def test_topk_negatives_window_per_row():
    given = problem((20, 30), "ties")
    b = Brute(given, "cosine")
    upper = torch.randint(-1, 2, (20,)).double() / 2
    values, indices = mining.topk_negatives(*given, k=5, upper=upper)
    expected = [ranked(b, i, [j for j in b.negatives[i] if b.u[i][j] < upper[i].item()]) for i in range(20)]
    check_rows(b, values, indices, expected, 5)


def candidates(b, i, positives, columns, options):
    """sentence-transformers' filters, one document after the other, over all documents."""
    kept = []
    lowest = min((b.u[i][j] for j in positives), default=None)
    for j in columns:
        s = b.u[i][j]
        if options.get("max_score") is not None and s > options["max_score"]:
            continue
        if options.get("min_score") is not None and s < options["min_score"]:
            continue
        if lowest is not None:
            if options.get("absolute_margin") is not None and s + options["absolute_margin"] > lowest:
                continue
            if options.get("relative_margin") is not None and s > lowest - abs(lowest) * options["relative_margin"]:
                continue
        kept.append(j)
    return ranked(b, i, kept)


FILTERS = (
    {},
    {"max_score": 0.5},
    {"min_score": -0.5},
    {"absolute_margin": 0.5},
    {"relative_margin": 0.5},
    {"max_score": 0.5, "min_score": -0.5, "absolute_margin": 0.25, "relative_margin": 0.125},
    {"absolute_margin": -0.5},
    {"range_min": 2},
    {"range_min": 1, "range_max": 4, "max_score": 0.5},
)
RETRIEVAL_SHAPES = ((0, 5), (1, 1), (9, 30), (16, 3), (4, 0))


def own_documents(q, m, p):
    """[Q, P] with padding at any place, and some queries with none."""
    if m == 0:
        return torch.full((q, p), -1)
    own = torch.randint(m, (q, p))
    return torch.where(torch.rand(q, p) < 0.3, -1, own)


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("data", DATA)
def test_hard_negatives_of_listed_positives(data, options, similarity):
    for (q, m), p in itertools.product(RETRIEVAL_SHAPES, (0, 1, 4)):
        given = problem((q, m), data, "few")
        if q and m:  # with no copy of a query, whose own distance of zero is rounded in other ways by other formulas
            given = given._replace(ref=embeddings(m, data))
        b = Brute(given, similarity)
        own = own_documents(q, m, p)
        found = mining.mine_hard_negatives(given.x, given.ref, own, similarity=similarity, **options)
        expected, lowest = [], []
        for i in range(q):
            positives = [j for j in own[i].tolist() if j >= 0]
            kept = candidates(b, i, positives, [j for j in range(m) if j not in positives], options)
            expected.append(kept[options.get("range_min", 0) : options.get("range_max")])
            lowest.append(min((b.u[i][j] for j in positives), default=torch.inf))
        check_rows(b, found.scores, found.indices, expected, 3)
        torch.testing.assert_close(found.positive_scores, torch.tensor(lowest, dtype=torch.float64))


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_hard_negatives_of_labels(options, similarity):
    for shape, kind in itertools.product(SHAPES, LABELS):
        given = problem(shape, "ties", kind)
        b = Brute(given, similarity)
        found = mining.mine_hard_negatives(
            given.x, given.ref, labels=given.labels, ref_labels=given.ref_labels, similarity=similarity, **options
        )
        expected = [candidates(b, i, b.positives[i], b.negatives[i], options) for i in range(b.n)]
        expected = [kept[options.get("range_min", 0) : options.get("range_max")] for kept in expected]
        check_rows(b, found.scores, found.indices, expected, 3)


def test_one_positive_per_query_and_ids():
    queries, documents = torch.randn(8, 6), torch.randn(20, 6)
    own, ids, ref_ids = torch.randint(20, (8,)), torch.randint(5, (8,)), torch.randint(5, (20,))
    b = Brute(Problem(queries, ids, documents, ref_ids), "dot")  # an id that is another's is a negative
    found = mining.mine_hard_negatives(queries, documents, own, ids=ids, ref_ids=ref_ids, similarity="dot")
    expected = [ranked(b, i, [j for j in b.negatives[i] if j != own[i]]) for i in range(8)]
    check_rows(b, found.scores, found.indices, expected, 3)


def test_no_negative_is_lost_behind_the_filters():
    """All that the top-k of another library would hold is too similar; those behind it are found nevertheless."""
    query = torch.zeros(1, 8, dtype=torch.float64)
    query[0, 0] = 1
    angles = torch.linspace(0.01, 1.5, 400, dtype=torch.float64)
    documents = torch.zeros(400, 8, dtype=torch.float64)
    documents[:, 0], documents[:, 1] = angles.cos(), angles.sin()
    found = mining.mine_hard_negatives(query, documents, torch.tensor([300]), absolute_margin=0.05, num_negatives=4)
    first = int((documents[:, 0] <= documents[300, 0] - 0.05).nonzero()[0])
    assert found.indices[0].tolist() == list(range(first, first + 4))


@pytest.mark.parametrize("by_labels", (False, True))
def test_random_negatives_are_of_the_range(by_labels):
    queries, documents = torch.randn(12, 6), torch.randn(50, 6)
    labels, ref_labels = torch.randint(6, (12,)), torch.randint(6, (50,))
    given = {"labels": labels, "ref_labels": ref_labels} if by_labels else {"positives": torch.randint(50, (12, 2))}
    options = {"range_min": 3, "range_max": 15, "max_score": 0.8, **given}
    pool = mining.mine_hard_negatives(queries, documents, **{**options, "range_min": 0}, num_negatives=15).indices
    found = [
        mining.mine_hard_negatives(queries, documents, **options, num_negatives=4, sampling_strategy="random", seed=s)
        for s in (5, 5, 6)
    ]
    assert torch.equal(found[0].indices, found[1].indices)
    assert not torch.equal(found[0].indices, found[2].indices)
    for drawn in found:
        assert (drawn.scores.diff(dim=1) <= 0).all()
        for i in range(12):
            row = drawn.indices[i].tolist()
            assert len(set(row)) == 4
            assert set(row) <= set(pool[i, 3:15].tolist())


@pytest.mark.parametrize(("options", "depth"), (({}, 3 + 4 + 2), ({"min_score": -1.0}, 9), ({"max_score": 2.0}, 45)))
def test_range_of_random_negatives(options, depth):
    """The default is sentence-transformers': deeper where a filter from above may thin the range out."""
    queries, documents = torch.randn(1, 6).expand(500, 6), torch.randn(200, 6)
    own = torch.tensor([[7, 8]]).expand(500, 2)
    ranks = mining.mine_hard_negatives(queries[:1], documents, own[:1], num_negatives=198).indices[0]
    found = mining.mine_hard_negatives(
        queries, documents, own, range_min=3, num_negatives=4, sampling_strategy="random", seed=0, **options
    )
    assert set(found.indices.flatten().tolist()) == set(ranks[3:depth].tolist())


def test_random_negatives_are_alike():
    """Each of 8 candidates as often as the others; 3 of 8 are drawn."""
    query = torch.randn(1, 5).expand(4000, 5)
    documents = torch.randn(8, 5)
    found = mining.mine_hard_negatives(
        query, documents, torch.full((4000,), -1), range_max=8, sampling_strategy="random", seed=1
    )
    counts = found.indices.flatten().bincount(minlength=8).double()
    assert counts.sum() == 12000
    # Each row takes a column with probability 3/8; the counts' covariance makes this sum chi-square with 7 degrees.
    statistic = ((counts - 1500) ** 2 / (4000 * 3 / 8 * 5 / 8)).sum() * 7 / 8
    assert statistic < 32.0  # p = 4e-5


def test_seed_from_the_generator():
    queries, documents = torch.randn(12, 6), torch.randn(50, 6)

    def mine():
        return mining.mine_hard_negatives(
            queries, documents, torch.full((12,), -1), range_max=30, sampling_strategy="random"
        ).indices

    torch.manual_seed(3)
    first, second = mine(), mine()
    torch.manual_seed(3)
    assert torch.equal(mine(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("data", DATA)
def test_semi_hard_pool(data, similarity):
    for shape, kind in itertools.product(SHAPES, LABELS):
        given = problem(shape, data, kind)
        b = Brute(given, similarity)
        for pool, k in ((0, 2), (5, 0), (6, 4), (100, 3)):
            values, indices = mining.semi_hard_pool(*given, pool=pool, num_negatives=k, seed=2, similarity=similarity)
            assert values.shape == indices.shape == (b.n, k)
            for i in range(b.n):
                # In random data copies of a row have equal distances up to rounding: the pool is not cut among them.
                best = ranked(b, i, b.positives[i] + b.negatives[i])[:pool]
                left = [j for j in best if j in b.negatives[i]]
                row = [j for j in indices[i].tolist() if j >= 0]
                assert len(row) == min(k, len(left))
                assert len(set(row)) == len(row)
                assert set(row) <= set(left)
                assert indices[i, len(row) :].eq(-1).all()
                assert values[i, len(row) :].eq(-torch.inf).all()
                of = torch.tensor([b.u[i][j] for j in row], dtype=torch.float64)
                torch.testing.assert_close(values[i, : len(row)], of, atol=1e-6, rtol=1e-6)
                assert (of.diff() <= 1e-12).all()


def test_errors_name_the_argument():
    x, labels = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    own = torch.zeros(6, dtype=torch.int64)

    def mine(queries=x, documents=x, positives=own, **options):
        return mining.mine_hard_negatives(queries, documents, positives, **options)

    def pool(bank=x, bank_labels=labels, **options):
        return mining.semi_hard_pool(x, labels, bank, bank_labels, **{"pool": 3, "num_negatives": 2, **options})

    for call, kind, text in (
        (lambda: mining.topk_negatives(x, labels, k=-1), ValueError, "k must be at least 0"),
        (lambda: mining.topk_negatives(x, labels, k=1.0), TypeError, "k must be an int"),
        (lambda: mining.topk_negatives(x, labels, k=1, lower="a"), TypeError, "lower must be"),
        (lambda: mine(positives=None), ValueError, "positives or labels"),
        (lambda: mine(labels=labels), ValueError, "positives or labels"),
        (lambda: mine(ref_labels=labels), ValueError, "ref_labels must be None"),
        (lambda: mine(positives=own + 6), ValueError, "positives must be indices"),
        (lambda: mine(positives=own - 2), ValueError, "positives must be indices"),
        (lambda: mine(positives=own[:4]), ValueError, "positives must be"),
        (lambda: mine(positives=own.float()), TypeError, "positives must have dtype int64"),
        (lambda: mine(queries=x[0]), ValueError, "queries must have 2"),
        (lambda: mine(documents=x.double()), TypeError, "documents must have dtype float32"),
        (lambda: mine(documents=x[:, :2]), ValueError, "documents must be"),
        (lambda: mine(sampling_strategy="best"), ValueError, "sampling_strategy must be"),
        (lambda: mine(num_negatives=0), ValueError, "num_negatives must be"),
        (lambda: mine(range_min=-1), ValueError, "range_min must be"),
        (lambda: mine(range_min=2, range_max=4), ValueError, "range_max must be"),
        (lambda: mine(max_score="1"), TypeError, "max_score must be"),
        (lambda: mine(relative_margin="1"), TypeError, "relative_margin must be"),
        (lambda: mine(max_score=float("nan")), ValueError, "max_score must be finite"),
        (lambda: mine(seed="a"), TypeError, "seed must be an int"),
        (lambda: mine(documents=x.to("meta")), ValueError, "documents must be on the device of queries"),
        (lambda: pool(bank=x.to("meta")), ValueError, "bank must be on the device of x"),
        (lambda: pool(bank_labels=labels[:3]), ValueError, "bank_labels must have one entry"),
        (lambda: pool(bank=None), ValueError, "bank_labels and bank_ids must be None"),
        (lambda: pool(ids=own), ValueError, "ids and bank_ids must be given"),
        (lambda: pool(ids=own, bank_ids=own[:2]), ValueError, "bank_ids must have one entry"),
        (lambda: pool(bank=x.double()), TypeError, "bank must have dtype"),
        (lambda: pool(bank_labels=None), TypeError, "bank_labels must be"),
        (lambda: pool(pool=-1), ValueError, "pool must be"),
        (lambda: pool(num_negatives=0.5), TypeError, "num_negatives must be"),
        (lambda: pool(seed=1.5), TypeError, "seed must be an int"),
    ):  # fmt: skip
        with pytest.raises(kind, match=text):
            call()
