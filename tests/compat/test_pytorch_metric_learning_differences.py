"""Where the losses of hyperkernels.compat.pytorch_metric_learning are not as in that library, and why."""

import pytest
import torch

from hyperkernels.compat.pytorch_metric_learning import losses, miners

from .pml_cases import (
    CLASSES,
    COLUMNS,
    D,
    N,
    both,
    embeddings,
    labels_of,
    triplets_tuple,
)

their_distances = pytest.importorskip("pytorch_metric_learning.distances")
their_losses = pytest.importorskip("pytorch_metric_learning.losses")
their_miners = pytest.importorskip("pytorch_metric_learning.miners")
their_reducers = pytest.importorskip("pytorch_metric_learning.reducers")


def test_difference_swap_with_a_larger_reference():
    """Theirs reads the distance of positive and negative out of the matrix of queries and references."""
    x, y, ref, ref_y = embeddings(), labels_of(), embeddings(40), labels_of(40)
    ours, theirs = both("TripletMarginLoss", swap=True)
    with pytest.raises(IndexError):
        theirs(x, y, ref_emb=ref, ref_labels=ref_y)
    found = ours(x, y, ref_emb=ref, ref_labels=ref_y)
    a, p, n = their_miners.TripletMarginMiner(margin=100.0)(x, y, ref, ref_y)
    d = their_distances.LpDistance()
    near, far = d(x, ref)[a, p], torch.minimum(d(x, ref)[a, n], d(ref, ref)[p, n])
    violation = (near - far + ours.margin).relu()
    torch.testing.assert_close(found, violation[violation > 0].mean())


def test_difference_lifted_structure_with_a_reference():
    """Theirs takes the number of a reference for that of a query, where it looks for the other end's negatives."""
    x, y, ref, ref_y = embeddings(), labels_of(), embeddings(), labels_of()
    ours, theirs = both("LiftedStructureLoss")
    assert not torch.isclose(ours(x, y, ref_emb=ref, ref_labels=ref_y), theirs(x, y, ref_emb=ref, ref_labels=ref_y))
    d = their_distances.LpDistance()(x, ref)
    same = y[:, None] == ref_y
    total = []
    for i, p in same.nonzero().tolist():
        negatives = torch.cat([d[i][~same[i]], d[:, p][~same[:, p]]])
        total.append((torch.logsumexp(1 - negatives, 0) + d[i, p]).relu().square() / 2)
    torch.testing.assert_close(ours(x, y, ref_emb=ref, ref_labels=ref_y), torch.stack(total).mean())


def test_difference_threshold_consistent_margin_with_a_reference():
    """Theirs looks into the batch with the numbers of the references."""
    x, y = embeddings(), labels_of()
    ours, theirs = both("ThresholdConsistentMarginLoss")
    ref, ref_y = embeddings(), y.clone()
    indices = triplets_tuple(y, ref_y)
    same_batch = theirs(x, y, indices, ref_emb=x, ref_labels=y)
    assert theirs(x, y, indices, ref_emb=ref, ref_labels=ref_y) == same_batch
    together, shifted = torch.cat([x, ref]), (indices[0], indices[1] + N, indices[2] + N)
    torch.testing.assert_close(
        ours(x, y, indices, ref_emb=ref, ref_labels=ref_y), theirs(together, None, shifted, None, None)
    )


def test_difference_one_triplet_has_a_loss():
    """Theirs is 0 where no list of indices_tuple has two entries."""
    x = embeddings()
    one = tuple(torch.tensor([v]) for v in (0, 1, 2))
    ours, theirs = both("NTXentLoss")
    assert theirs(x, None, one) == 0 and ours(x, None, one) > 0
    two = tuple(v.repeat(2) for v in one)
    torch.testing.assert_close(ours(x, None, two[:1] + two[1:2] + one[:1] + one[2:]), ours(x, None, one))


@pytest.mark.parametrize("name", COLUMNS)
def test_difference_class_weights(name):
    """Theirs multiplies losses [N, 1] by weights [N]: every loss by every weight."""
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    ours, theirs = both(name, reducer=("ClassWeightedReducer", {"weights": weights}))
    x, y = embeddings(), torch.arange(N) % CLASSES
    rows = getattr(their_losses, name)(reducer=their_reducers.DoNothingReducer())(x, y)["loss"]["losses"]
    torch.testing.assert_close(ours(x, y), (rows[:, 0] * weights[y]).mean())
    torch.testing.assert_close(theirs(x, y), rows.mean() * weights[y].mean())


def test_difference_instance_loss_is_left_out():
    """Theirs depends on the names of the classes: the rank of a label is taken for the number of a column."""
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    theirs = their_losses.InstanceLoss()
    assert not torch.isclose(theirs(x, y), theirs(x, -y))
    assert not hasattr(losses, "InstanceLoss")


def test_difference_half_precision():
    """Theirs rounds the loss to the dtype, and has no distance in bfloat16."""
    x, y = embeddings().detach().half(), labels_of()
    assert losses.NTXentLoss()(x, y).dtype == torch.float32
    assert their_losses.NTXentLoss()(x, y).dtype == torch.float16
    with pytest.raises(RuntimeError, match="BFloat16"):
        their_losses.ContrastiveLoss()(x.bfloat16(), y)
    assert losses.ContrastiveLoss()(x.bfloat16(), y).dtype == torch.float32


def test_difference_proxies_keep_their_dtype():
    x, y = torch.randn(N, D, dtype=torch.bfloat16), torch.randint(0, CLASSES, (N,))
    ours, theirs = both("ProxyAnchorLoss", num_classes=CLASSES, embedding_size=D)
    ours(x, y).backward()
    assert ours.proxies.dtype == ours.proxies.grad.dtype == torch.float32
    theirs(x, y)
    assert theirs.proxies.dtype == torch.bfloat16


def test_difference_a_pair_that_is_positive_and_negative():
    x, index = embeddings(), torch.arange(4)
    both_sides = (index, index + 1, index, index + 1)
    ours, theirs = both("MultiSimilarityLoss")
    with pytest.raises(AssertionError):
        theirs(x, None, both_sides)
    none = index[:0]
    positive, negative = (index, index + 1, none, none), (none, none, index, index + 1)
    torch.testing.assert_close(ours(x, None, both_sides), ours(x, None, positive) + ours(x, None, negative))


def test_difference_the_sample_itself_in_memory():
    """Theirs takes it from the positives after mining, so that easy positives find nothing else; NCALoss never does."""
    x, y = embeddings(), torch.arange(N) % 4
    ours = losses.CrossBatchMemory(losses.NTXentLoss(), D, 40, miners.BatchEasyHardMiner("easy", "hard"))
    theirs = their_losses.CrossBatchMemory(
        their_losses.NTXentLoss(), D, 40, their_miners.BatchEasyHardMiner("easy", "hard")
    )
    assert theirs(x, y) == 0 and ours(x, y) > 0
    a1, p, a2, n = miners.BatchEasyHardMiner("easy", "hard")(x, y)
    fresh = losses.CrossBatchMemory(losses.NTXentLoss(), D, 40, miners.BatchEasyHardMiner("easy", "hard"))
    torch.testing.assert_close(fresh(x, y), losses.NTXentLoss()(x, y, (a1, p, a2, n)))
    memory = losses.CrossBatchMemory(losses.NCALoss(), D, 40)
    torch.testing.assert_close(memory(x, y), their_losses.NCALoss()(x, y))
    lifted = losses.CrossBatchMemory(losses.LiftedStructureLoss(), D, 40)
    torch.testing.assert_close(lifted(x, y), their_losses.LiftedStructureLoss()(x, y))


def test_difference_their_distributed_wrappers_refuse_these():
    distributed = pytest.importorskip("pytorch_metric_learning.utils.distributed")
    distributed.DistributedLossWrapper(their_losses.NTXentLoss())
    for wrapper, ours in (
        (distributed.DistributedLossWrapper, losses.NTXentLoss()),
        (distributed.DistributedMinerWrapper, miners.BatchHardMiner()),
    ):
        with pytest.raises(TypeError, match="must extend"):
            wrapper(ours)


def test_difference_exceptions_and_labels_of_floating_point():
    x, y = embeddings(), labels_of()
    ours, theirs = both("ContrastiveLoss")
    short = (y[:2], y[:1], y[:2], y[:2])
    with pytest.raises(AssertionError):
        theirs(x, None, short)
    with pytest.raises(ValueError, match="columns of pairs"):
        ours(x, None, short)
    with pytest.raises(TypeError, match="labels must be integers"):
        ours(x, y.double())
    torch.testing.assert_close(theirs(x, y.double()), ours(x, y))


def test_difference_negative_indices():
    x, last = embeddings(), torch.tensor([-1, 0])
    ours, theirs = both("ContrastiveLoss")
    assert theirs(x, None, (last, last + 3, last + 5)) > 0
    with pytest.raises(IndexError, match="rows of pairs"):
        ours(x, None, (last, last + 3, last + 5))


def test_difference_statistics_are_not_collected():
    x, y = embeddings(), labels_of()
    ours, theirs = (c.PairMarginMiner(collect_stats=True) for c in (miners, their_miners))
    ours(x, y), theirs(x, y)
    assert ours.num_pos_pairs == theirs.num_pos_pairs and ours.num_neg_pairs == theirs.num_neg_pairs
    assert hasattr(theirs, "pos_pair_dist") and not hasattr(ours, "pos_pair_dist")
