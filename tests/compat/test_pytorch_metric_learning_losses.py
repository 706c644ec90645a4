"""The losses of hyperkernels.compat.pytorch_metric_learning against that library: value and gradient, in float64."""

import pytest
import torch

from hyperkernels.compat.pytorch_metric_learning import distances, losses, reducers

from .pml_cases import (
    CLASSES,
    COLUMNS,
    COSINE_ONLY,
    DISTANCES,
    OTHER_REF,
    PAIRWISE,
    D,
    M,
    N,
    both,
    compare,
    embeddings,
    labels_of,
    memories,
    pairs_tuple,
    triplets_tuple,
)

their_distances = pytest.importorskip("pytorch_metric_learning.distances")
their_losses = pytest.importorskip("pytorch_metric_learning.losses")
their_miners = pytest.importorskip("pytorch_metric_learning.miners")
their_reducers = pytest.importorskip("pytorch_metric_learning.reducers")
their_regularizers = pytest.importorskip("pytorch_metric_learning.regularizers")


@pytest.mark.parametrize("distance", [None, *DISTANCES])
@pytest.mark.parametrize("name", PAIRWISE)
def test_batch_and_reference(name, distance):
    if name in COSINE_ONLY and distance not in (None, "cosine"):
        pytest.skip("knows the cosine only")
    ours, theirs = both(name, distance, **PAIRWISE[name])
    x, y, ref, ref_y = embeddings(), labels_of(), embeddings(M), labels_of(M)
    compare(ours, theirs, (x,), x, y)
    if name in OTHER_REF:
        return
    compare(ours, theirs, (x, ref), x, y, ref_emb=ref, ref_labels=ref_y)
    compare(ours, theirs, (x,), x, y, ref_emb=x, ref_labels=y)
    twin = embeddings()
    if name != "NCALoss":  # theirs looks at ref_emb, not at ref_labels
        compare(ours, theirs, (x, twin), x, y, ref_emb=twin, ref_labels=y)  # the labels themselves: (i, i) is no pair
    compare(ours, theirs, (x, twin), x, y, ref_emb=twin, ref_labels=y.clone())  # other labels: (i, i) is a positive


@pytest.mark.parametrize("distance", [None, "lp", "cosine"])
@pytest.mark.parametrize("name", PAIRWISE)
def test_indices_tuple(name, distance):
    if name in COSINE_ONLY and distance == "lp":
        pytest.skip("knows the cosine only")
    ours, theirs = both(name, distance, **PAIRWISE[name])
    x, y, ref, ref_y = embeddings(), labels_of(), embeddings(M), labels_of(M)
    for indices in (pairs_tuple(y), triplets_tuple(y)):
        found = compare(ours, theirs, (x,), x, y, indices)
        if not ours.needs_labels:
            assert compare(ours, theirs, (x,), x, None, indices) == found
    if name in OTHER_REF:
        return
    for indices in (pairs_tuple(y, ref_y), triplets_tuple(y, ref_y)):
        compare(ours, theirs, (x, ref), x, y, indices, ref_emb=ref, ref_labels=ref_y)


@pytest.mark.parametrize(
    "name, options",
    [
        ("ContrastiveLoss", {}),
        ("TripletMarginLoss", {}),
        ("TripletMarginLoss", {"swap": True}),
        ("TripletMarginLoss", {"smooth_loss": True}),
        ("TripletMarginLoss", {"swap": True, "smooth_loss": True, "distance": "cosine"}),
        ("MultiSimilarityLoss", {}),
        ("SupConLoss", {}),
        ("NTXentLoss", {}),
        ("CircleLoss", {}),
        ("GeneralizedLiftedStructureLoss", {}),
        ("NCALoss", {}),
        ("NPairsLoss", {}),
        ("RankedListLoss", {"margin": 0.6, "Tn": 2}),
        ("FastAPLoss", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "reducer",
    [
        ("MeanReducer", {}),
        ("SumReducer", {}),
        ("AvgNonZeroReducer", {}),
        ("ThresholdReducer", {"low": 0.05, "high": 0.9}),
        ("ClassWeightedReducer", {"weights": torch.tensor([0.2, 1.0, 3.0, 0.5])}),
    ],
    ids=lambda r: r[0],
)
def test_reducers(name, options, reducer):
    ours, theirs = both(name, reducer=reducer, **options)
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    if reducer[0] == "ClassWeightedReducer" and name in COLUMNS:
        return
    compare(ours, theirs, (x,), x, y)
    if name != "RankedListLoss":
        compare(ours, theirs, (x,), x, y, triplets_tuple(y))
    if reducer[0] == "ThresholdReducer":  # their object in ours
        ours = getattr(losses, name)(reducer=theirs.reducer, **{k: v for k, v in options.items() if k != "distance"})
        if "distance" not in options and name != "ContrastiveLoss":
            compare(ours, theirs, (x,), x, y)


def test_reducers_of_parts_and_none_at_all():
    ours, theirs = (
        c.ContrastiveLoss(reducer=r.MultipleReducers({"pos_loss": r.SumReducer()}, r.AvgNonZeroReducer()))
        for c, r in ((losses, reducers), (their_losses, their_reducers))
    )
    x, y = embeddings(), labels_of()
    compare(ours, theirs, (x,), x, y)
    ours, theirs = both("SupConLoss", reducer=("DoNothingReducer", {}))
    found, wanted = ours(x, y)["loss"], theirs(x, y)["loss"]
    torch.testing.assert_close(found["losses"], wanted["losses"])
    assert found["reduction_type"] == wanted["reduction_type"]
    assert found["indices"].equal(wanted["indices"])
    with pytest.raises(ValueError, match=r"MeanReducer.* LiftedStructureLoss; got ThresholdReducer"):
        losses.LiftedStructureLoss(reducer=reducers.ThresholdReducer(low=0))


@pytest.mark.parametrize("distance", ["cosine", "lp"])
@pytest.mark.parametrize("options", [{}, {"beta": 1.0, "learn_beta": True, "nu": 0.3}, {"num_classes": CLASSES}, {
    "num_classes": CLASSES, "learn_beta": True, "nu": 0.3}], ids=str)  # fmt: skip
def test_margin_loss_and_its_beta(options, distance):
    ours, theirs = both("MarginLoss", distance, **options)
    if ours.learn_beta:
        ours, theirs = ours.double(), theirs.double()
        with torch.no_grad():
            theirs.beta.copy_(ours.beta.add_(torch.randn_like(ours.beta) * 0.2))
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    for indices in (None, pairs_tuple(y), triplets_tuple(y)):
        compare(ours, theirs, (x,), x, y, indices)
        if ours.learn_beta:
            slopes = [torch.autograd.grad(loss(x, y, indices).sum(), loss.beta)[0] for loss in (ours, theirs)]
            torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reducer", ["MeanReducer", "SumReducer", "AvgNonZeroReducer"])
def test_margin_loss_and_its_reducers(reducer):
    ours, theirs = both("MarginLoss", reducer=(reducer, {}), learn_beta=True, nu=0.1, num_classes=CLASSES)
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    for indices in (None, pairs_tuple(y), triplets_tuple(y)):
        compare(ours, theirs, (x,), x, y, indices)


def test_triplets_drawn_for_every_anchor():
    loss = losses.TripletMarginLoss(triplets_per_anchor=400)
    exact = losses.TripletMarginLoss(reducer=reducers.MeanReducer())
    drawn = losses.TripletMarginLoss(triplets_per_anchor=400, reducer=reducers.MeanReducer())
    x, y = embeddings(12), torch.arange(12) % 3
    assert loss(x, y) > 0
    torch.testing.assert_close(drawn(x, y), exact(x, y), rtol=0.1, atol=0)
    assert losses.MarginLoss(triplets_per_anchor=5)(x, y).isfinite()


def test_n_pairs_ranked_list_and_fast_ap():
    x, y = embeddings(), labels_of()
    for distance in ("cosine", "dot", "lp"):
        ours, theirs = both("NPairsLoss", distance)
        compare(ours, theirs, (x,), x, y)
        for indices in (pairs_tuple(y), triplets_tuple(y)):
            compare(ours, theirs, (x,), x, y, indices)
    for options in ({"margin": 0.4, "Tn": 0}, {"margin": 0.6, "Tn": 3, "Tp": 1, "imbalance": 0.3, "alpha": 1.2}):
        for distance in ("lp", "lp_squared", "lp_raw"):
            ours, theirs = both("RankedListLoss", distance, **options)
            compare(ours, theirs, (x,), x, y)
    for bins in (5, 10):
        ours, theirs = both("FastAPLoss", num_bins=bins)
        compare(ours, theirs, (x,), x, y)
        compare(ours, theirs, (x,), x, y, pairs_tuple(y))


@pytest.mark.parametrize("name", ["ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss"])
@pytest.mark.parametrize("distance", [None, "cosine", "lp"])
def test_proxies(name, distance):
    if name == "SoftTripleLoss" and distance == "lp":
        pytest.skip("knows the cosine only")
    ours, theirs = both(name, distance, num_classes=CLASSES + 1, embedding_size=D)
    parameter = "fc" if name == "SoftTripleLoss" else "proxies"
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.double(), theirs.double()
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    weights = [getattr(loss, parameter) for loss in (ours, theirs)]
    for indices in (None, triplets_tuple(y), pairs_tuple(y)):
        if indices is not None and name == "ProxyAnchorLoss" and distance == "lp":
            with pytest.raises(ValueError, match="CosineSimilarity"):
                ours(x, y, indices)
            continue
        compare(ours, theirs, (x,), x, y, indices)
        slopes = [
            torch.autograd.grad(loss(x, y, indices), w)[0] for loss, w in zip((ours, theirs), weights, strict=True)
        ]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(ours.get_logits(x), theirs.get_logits(x))
    with pytest.raises(ValueError, match="ref_emb"):
        ours(x, y, ref_emb=x.clone(), ref_labels=y)
    with pytest.raises(ValueError, match="labels"):
        ours(x)


def test_regularizers():
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    options = {"embedding_regularizer": their_regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}
    compare(*both("ContrastiveLoss", **options), (x,), x, y)
    ours, theirs = both(
        "ProxyAnchorLoss", num_classes=CLASSES, embedding_size=D, **options,
        weight_regularizer=their_regularizers.RegularFaceRegularizer(), weight_reg_weight=0.7,
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    compare(ours.double(), theirs.double(), (x,), x, y)


@pytest.mark.parametrize("name", PAIRWISE)
def test_nothing_to_compare(name):
    ours = getattr(losses, name)(**PAIRWISE[name])
    none = torch.empty(0, dtype=torch.int64)
    x = embeddings()
    for y, indices in (
        (torch.zeros(N, dtype=torch.int64), None),
        (torch.arange(N), None),
        (torch.zeros(N, dtype=torch.int64), (none, none, none)),
        (torch.arange(N), (none, none, none, none)),
    ):
        loss = ours(x, y, indices)
        (slope,) = torch.autograd.grad(loss, x)
        assert loss.isfinite() and slope.isfinite().all()
        if indices is not None and name != "NCALoss":
            assert loss == 0 and not slope.any()
    for n in (0, 1):
        y = torch.zeros(n, dtype=torch.int64)
        x = embeddings(n)
        loss = ours(x, y)
        (slope,) = torch.autograd.grad(loss, x)
        assert loss == 0 and not slope.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", PAIRWISE)
def test_dtypes(name, dtype):
    ours = getattr(losses, name)(**PAIRWISE[name])
    x = torch.randn(N, D).to(dtype).requires_grad_()
    y = labels_of()
    for indices in (None, triplets_tuple(y)):
        loss = ours(x, y, indices)
        assert loss.dtype == torch.float32 and loss.dim() == 0
        (slope,) = torch.autograd.grad(loss, x)
        assert slope.dtype == dtype and slope.isfinite().all()


def test_wrong_arguments_are_named():
    x, y = embeddings(), labels_of()
    with pytest.raises(ValueError, match=r"ContrastiveLoss: no kernel.*SNRDistance.*use CosineSimilarity"):
        losses.ContrastiveLoss(distance=their_distances.SNRDistance())
    with pytest.raises(ValueError, match=r"LpDistance\(p=1, power=1\)"):
        losses.ContrastiveLoss(distance=their_distances.LpDistance(p=1))
    with pytest.raises(ValueError, match="CircleLoss must have distance=CosineSimilarity"):
        losses.CircleLoss(distance=distances.LpDistance())
    with pytest.raises(ValueError, match="labels or indices_tuple must be given"):
        losses.SupConLoss()(x)
    with pytest.raises(ValueError, match="labels must be given"):
        losses.NCALoss()(x, None, triplets_tuple(y))
    with pytest.raises(ValueError, match="indices_tuple"):
        losses.RankedListLoss(margin=0.4, Tn=1)(x, y, triplets_tuple(y))
    with pytest.raises(ValueError, match="indices_tuple must be"):
        losses.SupConLoss()(x, y, (y, y))
    with pytest.raises(ValueError, match="one per embedding"):
        losses.SupConLoss()(x, y[1:])
    with pytest.raises(TypeError, match="integers"):
        losses.SupConLoss()(x, y.double())
    with pytest.raises(ValueError, match="imbalance"):
        losses.RankedListLoss(margin=0.4, Tn=1, imbalance=2)
    with pytest.raises(ValueError, match="loss must be one of"):
        losses.CrossBatchMemory(losses.FastAPLoss(), D)


def test_labels_of_other_integers():
    x, y = embeddings(), torch.randint(0, CLASSES, (N,))
    for dtype in (torch.int32, torch.uint8, torch.int16):
        assert losses.SupConLoss()(x, y.to(dtype)) == losses.SupConLoss()(x, y)


@pytest.mark.parametrize("name", [n for n in PAIRWISE if n in losses.CrossBatchMemory.supported_losses()])
def test_cross_batch_memory(name):
    ours, theirs = memories(name, **PAIRWISE[name])
    for step in range(6):
        x, y = embeddings(), torch.randint(0, CLASSES, (N,))
        if name in ("NCALoss", "LiftedStructureLoss"):
            assert ours(x, y).isfinite()  # tests of differences follow
            continue
        compare(ours, theirs, (x,), x, y)
        assert ours.queue_idx == theirs.queue_idx and ours.has_been_filled == theirs.has_been_filled, step
        assert ours.embedding_memory.equal(theirs.embedding_memory)
        assert ours.label_memory.equal(theirs.label_memory)


def test_cross_batch_memory_with_an_indices_tuple_and_with_a_mask():
    ours, theirs = memories("NTXentLoss", temperature=0.3)
    for _ in range(4):
        y = torch.randint(0, CLASSES, (N,))
        for indices in (triplets_tuple(y), pairs_tuple(y)):
            x = embeddings()
            compare(ours, theirs, (x,), x, y, indices)
    ours, theirs = memories("ContrastiveLoss")
    for _ in range(6):
        x, y = embeddings(), torch.randint(0, CLASSES, (N,))
        mask = torch.rand(N) < 0.5
        mask[:2] = torch.tensor([True, False])
        compare(ours, theirs, (x,), x, y, enqueue_mask=mask)
    with pytest.raises(ValueError, match="enqueue_mask"):
        ours(x, y, triplets_tuple(y), mask)
    with pytest.raises(ValueError, match="memory_size"):
        losses.CrossBatchMemory(losses.ContrastiveLoss(), D, N - 1)(x, y)


def test_cross_batch_memory_takes_their_losses_and_miners():
    theirs = their_losses.CrossBatchMemory(their_losses.AngularLoss(), D, 40, their_miners.TripletMarginMiner())
    ours = losses.CrossBatchMemory(their_losses.AngularLoss(), D, 40, their_miners.TripletMarginMiner())
    without = losses.CrossBatchMemory(their_losses.AngularLoss(), D, 40)
    their_without = their_losses.CrossBatchMemory(their_losses.AngularLoss(), D, 40)
    for _ in range(4):
        x, y = embeddings(), torch.randint(0, CLASSES, (N,))
        compare(ours, theirs, (x,), x, y)
        compare(without, their_without, (x,), x, y)


def test_memory_is_reset_and_saved():
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), D, 20)
    x, y = embeddings(), labels_of()
    memory(x, y)
    assert {"embedding_memory", "label_memory"} <= set(memory.state_dict())
    memory.reset_queue()
    assert not memory.embedding_memory.any() and memory.queue_idx == 0 and not memory.has_been_filled
