"""The miners of hyperkernels.compat.pytorch_metric_learning against that library: the same pairs and triplets."""

import subprocess
import sys

import pytest
import torch

from hyperkernels.compat.pytorch_metric_learning import distances, miners
from hyperkernels.compat.pytorch_metric_learning.batches import triplets_of_tuple

from .pml_cases import DISTANCES

their_distances = pytest.importorskip("pytorch_metric_learning.distances")
their_miners = pytest.importorskip("pytorch_metric_learning.miners")
loss_and_miner_utils = pytest.importorskip("pytorch_metric_learning.utils.loss_and_miner_utils")

N, M, D, CLASSES = 24, 37, 7, 5
STRATEGIES = [
    (p, n)
    for p in ("easy", "hard", "semihard", "all")
    for n in ("easy", "hard", "semihard", "all")
    if (p, n) not in (("semihard", "semihard"), ("semihard", "all"), ("all", "semihard"))
]
MINERS = [
    ("BatchHardMiner", {}),
    *(("BatchEasyHardMiner", {"pos_strategy": p, "neg_strategy": n}) for p, n in STRATEGIES),
    *(
        ("BatchEasyHardMiner", {"pos_strategy": p, "neg_strategy": n, "allowed_pos_range": (0.2, 1.0),
                                "allowed_neg_range": (-0.3, 1.2)})
        for p, n in STRATEGIES[::3]
    ),
    ("MultiSimilarityMiner", {}),
    ("MultiSimilarityMiner", {"epsilon": 0.4}),
    ("MultiSimilarityMiner", {"epsilon": -0.2}),
    ("PairMarginMiner", {}),
    ("PairMarginMiner", {"pos_margin": 0.5, "neg_margin": 0.1}),
    *(("TripletMarginMiner", {"margin": m, "type_of_triplets": t})
      for m in (0.2, -0.1) for t in ("all", "hard", "semihard", "easy")),
    ("EmbeddingsAlreadyPackagedAsTriplets", {}),
]  # fmt: skip


def batch(n=N):
    return torch.randn(n, D, dtype=torch.float64), torch.cat(
        [torch.randint(-2, CLASSES - 2, (n - 1,)), torch.tensor([99])]
    )


def as_sets(found):
    if len(found) == 3:
        return [set(zip(*(v.tolist() for v in found), strict=True))]
    return [set(zip(*(v.tolist() for v in found[k : k + 2]), strict=True)) for k in (0, 2)]


def same(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.int64 and len(ours) == len(theirs)
    assert as_sets(found) == as_sets(wanted)


@pytest.mark.parametrize("distance", [None, *DISTANCES])
@pytest.mark.parametrize("name, options", MINERS, ids=str)
def test_the_same_sets(name, options, distance):
    if distance is None:
        pairs = [({}, {})]
    else:
        kind, arguments = DISTANCES[distance]
        theirs = getattr(their_distances, kind)(**arguments)
        pairs = [({"distance": d}, {"distance": theirs}) for d in (theirs, getattr(distances, kind)(**arguments))]
    for ours, theirs in pairs:
        ours, theirs = getattr(miners, name)(**options, **ours), getattr(their_miners, name)(**options, **theirs)
        (x, y), (ref, ref_y), twin = batch(), batch(M), torch.randn(N, D, dtype=torch.float64)
        same(ours(x, y), theirs(x, y))
        if name == "EmbeddingsAlreadyPackagedAsTriplets":
            return
        same(ours(x, y, ref, ref_y), theirs(x, y, ref, ref_y))
        same(ours(x, y, x, y), theirs(x, y, x, y))
        same(ours(x, y, twin, y.clone()), theirs(x, y, twin, y.clone()))
        if name != "MultiSimilarityMiner":  # theirs asks whether ref_emb is embeddings as well
            same(ours(x, y, twin, y), theirs(x, y, twin, y))
        names = ("num_triplets",) if hasattr(theirs, "num_triplets") else ("num_pos_pairs", "num_neg_pairs")
        assert [getattr(ours, v) for v in names] == [getattr(theirs, v) for v in names]


@pytest.mark.parametrize("name, options", MINERS[:-1], ids=str)
def test_nothing_to_mine(name, options):
    miner = getattr(miners, name)(**options)
    for n in (0, 1, 5):
        x, y = torch.randn(n, D), torch.arange(n)
        found = miner(x, y)
        assert all(v.dtype == torch.int64 for v in found)
        assert not len(found[0]) and not len(found[1])
        if name not in ("PairMarginMiner", "BatchEasyHardMiner"):
            assert not len(found[-1])


def test_ids_exclude_pairs_of_both_sides():
    x, y = batch()
    ref, ref_y = torch.cat([x, torch.randn(M, D, dtype=torch.float64)]), torch.cat([y, torch.randint(-2, 3, (M,))])
    ids, ref_ids = torch.arange(N), torch.arange(N + M)
    for name, options in MINERS[:-1]:
        found = getattr(miners, name)(**options)(x, y, ref, ref_y, ids=ids, ref_ids=ref_ids)
        a1, p, a2, n = found if len(found) == 4 else (found[0], found[1], found[0], found[2])
        assert not (a1 == p).any() and not (a2 == n).any()


def test_distance_weighted():
    (x, y), (ref, ref_y) = batch(64), batch(M)
    ours, theirs = (c.DistanceWeightedMiner(0.5, 1.4) for c in (miners, their_miners))
    for call in ((x, y), (x, y, ref, ref_y)):
        a, p, n = ours(*call)
        _, columns = call[:2] if len(call) == 2 else call[2:]
        keys = call[-2]
        d = their_distances.LpDistance()(x, keys)
        assert (y[a] == columns[p]).all() and (y[a] != columns[n]).all() and (d[a, n] < 1.4).all()
        if len(call) == 2:
            assert (a != p).all()
        wanted = theirs(*call)
        assert a.bincount(minlength=64).equal(wanted[0].bincount(minlength=64))
    for miner in (miners.DistanceWeightedMiner(0.0, -0.01), miners.DistanceWeightedMiner(0.5, 0.5)):
        assert all(not len(v) for v in miner(x, y))
    assert len(miners.DistanceWeightedMiner(0, 1.4)(x, y)[0])


def test_difference_distance_weights_do_not_underflow():
    """Theirs subtracts the largest log weight of all rows: one pair of near duplicates leaves nothing of the others."""
    n, d = 256, 256
    y = torch.arange(n) % 16
    centres = torch.randn(16, d, dtype=torch.float64)
    x = 0.45 * centres[y] + torch.randn(n, d, dtype=torch.float64)
    x[1] = x[0] + 0.01 * torch.randn(d, dtype=torch.float64)  # of another label
    x = x.float()
    ours, theirs = (c.DistanceWeightedMiner()(x, y)[0].unique() for c in (miners, their_miners))
    assert len(ours) == n
    assert len(theirs) < n // 4


def test_difference_ties_and_order():
    """Pairs come by row and then by index, and of equal similarities the lowest index wins."""
    x, y = torch.ones(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    assert [v.tolist() for v in miners.BatchHardMiner()(x, y)[1:]] == [[2, 3, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]
    x, y = batch()
    for miner in (miners.MultiSimilarityMiner(0.5), miners.PairMarginMiner(0.1, 2.0)):
        a1, p, a2, n = miner(x, y)
        for rows, columns in ((a1, p), (a2, n)):
            assert ((rows * N + columns).diff() > 0).all()
    assert not ((lambda a, p, *_: a * N + p)(*their_miners.MultiSimilarityMiner(0.5)(x, y)).diff() > 0).all()
    assert (miners.DistanceWeightedMiner()(x, y)[0].diff() >= 0).all()


def test_difference_multi_similarity_and_the_diagonal_of_another_reference():
    """Labels themselves as ref_labels: (i, i) is no pair, but theirs compares the others with it."""
    y = torch.tensor([0, 0, 1, 1])
    x = torch.eye(4, dtype=torch.float64)
    ref = -x + 0.5 * x[[1, 0, 3, 2]]
    ref[0] = -10 * x[0]  # less alike than any positive or negative of row 0
    found, wanted = (c.MultiSimilarityMiner(0.1)(x, y, ref, y) for c in (miners, their_miners))
    assert not any((a == b).any() for a, b in (found[:2], found[2:]))
    assert as_sets(found) != as_sets(wanted)


def test_triplets_of_pairs_are_those_of_the_join():
    for _ in range(5):
        a1, p, a2, n = (torch.randint(0, 6, (k,)) for k in (13, 13, 17, 17))
        for mine, right in zip(
            triplets_of_tuple((a1, p, a2, n)),
            loss_and_miner_utils.convert_to_triplets((a1, p, a2, n), a1),
            strict=True,
        ):
            assert mine.equal(right)
    none = torch.empty(0, dtype=torch.int64)
    assert all(not len(v) for v in triplets_of_tuple((none, none, none, none)))


def test_wrong_arguments_are_named():
    x, y = batch()
    with pytest.raises(ValueError, match=r"BatchHardMiner: no kernel.*SNRDistance.*use CosineSimilarity"):
        miners.BatchHardMiner(distance=their_distances.SNRDistance())
    with pytest.raises(ValueError, match=r"LpDistance\(p=2, power=3\)"):
        miners.PairMarginMiner(distance=distances.LpDistance(power=3))
    with pytest.raises(ValueError, match="LpDistance"):
        miners.DistanceWeightedMiner(distance=distances.CosineSimilarity())
    with pytest.raises(ValueError, match="semihard"):
        miners.BatchEasyHardMiner("semihard", "semihard")
    with pytest.raises(ValueError, match="pos_strategy"):
        miners.BatchEasyHardMiner("medium")
    with pytest.raises(ValueError, match="labels"):
        miners.BatchHardMiner()(x, None)
    with pytest.raises(ValueError, match="one per embedding"):
        miners.BatchHardMiner()(x, y[1:])


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_objects_give_matrices(name):
    kind, arguments = DISTANCES[name]
    (x, _), (ref, _) = batch(), batch(M)
    ours, theirs = getattr(distances, kind)(**arguments), getattr(their_distances, kind)(**arguments)
    torch.testing.assert_close(ours(x, ref), theirs(x, ref))
    assert ours.is_inverted == theirs.is_inverted
    assert ours.normalize_embeddings == theirs.normalize_embeddings


def test_the_library_need_not_be_installed():
    code = (
        "import sys; sys.modules['pytorch_metric_learning'] = None\n"
        "import torch\n"
        "from hyperkernels.compat.pytorch_metric_learning import losses, miners, distances, reducers\n"
        "x, y = torch.randn(8, 3), torch.arange(8) % 2\n"
        "loss = losses.ContrastiveLoss(distance=distances.LpDistance(), reducer=reducers.MeanReducer())\n"
        "print(loss(x, y, miners.BatchHardMiner()(x, y)).item() > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
