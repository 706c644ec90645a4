"""A head whose classes are sharded gives the numbers of one process, and its checkpoints come back on any number."""

import copy
from functools import partial

import pytest
import torch

import hyperkernels as hk
from hyperkernels.distributed import Shards
from hyperkernels.distributed.draws import sample_classes
from tests.support import combinations
from tests.support.ranks import launch

from . import checkpoint_cases as resumed
from . import partial_fc_cases as cases
from . import training_cases as training
from . import wrapping_cases as wrapping

NOT_HERE = ("check_margin", "check_options", "check_sums", "check_sampling")
CHECKS = {
    **{f"margin {name}": partial(cases.check_margin, name) for name in cases.MARGINS},
    **{name: partial(cases.check_options, name) for name in cases.OPTIONS},
    **{name: partial(cases.check_sampling, name) for name in cases.SAMPLING},
    "sface": partial(cases.check_sums, "sface", None),
    "sphereface2": partial(cases.check_sums, "sphereface2", "exact"),
    "uniface": partial(cases.check_sums, "uniface", None),
    **{
        name.removeprefix("check_"): check
        for name, check in {**vars(cases), **vars(training)}.items()
        if name.startswith("check_") and name not in NOT_HERE
    },
}


# With 3 classes the fourth rank has none.
RUNS = [(name, classes) for name in [*resumed.OPTIMIZERS, "two"] for classes in (cases.CLASSES, 3)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What four ranks saved."""
    folder = tmp_path_factory.mktemp("saved")
    launch(4, {f"save {run}": partial(resumed.check_save, *run, folder) for run in RUNS})
    return folder


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_agree_with_one_process(saved, tmp_path, world_size):
    resumes = {f"resume {run}": partial(resumed.check_resume, *run, saved) for run in RUNS}
    others = {
        "state_dict": resumed.check_state_dict,
        "insightface": partial(resumed.check_insightface, tmp_path),
    }
    launch(world_size, {**CHECKS, **resumes, **others}, ("kill", partial(resumed.check_killed, tmp_path)))
    if world_size == 3:
        check_the_killed_run_goes_on(tmp_path)


def check_the_killed_run_goes_on(folder):
    """From its last checkpoint, on another number of ranks, as if nothing had happened."""
    model, optimizer = resumed.made("SGD", seed=9)
    extra = hk.distributed.load(hk.distributed.latest(folder), model, optimizer)
    found = resumed.train(model, optimizer, range(extra["step"], 8))
    resumed.close(found, resumed.train(*resumed.made("SGD"), range(8))[4:])
    with pytest.raises(FileExistsError):
        hk.distributed.save(folder / "step-4", model)


@pytest.mark.ranks
@pytest.mark.slow
def test_four_ranks_agree_with_one_process():
    launch(4, CHECKS)


@pytest.mark.ranks
def test_wrapped():
    launch(2, {name: check for name, check in vars(wrapping).items() if name.startswith("check_")})


@pytest.mark.ranks
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_resume_on_one_process(saved, run):
    resumed.check_resume(*run, saved)


def test_every_margin_is_checked():
    assert set(hk.margins.__all__) - {"Margin", "Rows"} <= set(cases.MARGINS)


def test_shards():
    for classes in (1, 2, 10, 11, 12):
        for size in (1, 3, 4, 20):
            shards = Shards(classes, size)
            sizes = [shards.size(rank) for rank in range(size)]
            assert sum(sizes) == classes and sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1
            assert [shards.start(rank) for rank in range(size)] == [sum(sizes[:rank]) for rank in range(size)]


def test_samples_are_uniform():
    """Every class that is no positive is as likely as any other, in any step and shard."""
    counts = torch.zeros(50)
    for step in range(1000):
        taken = sample_classes(torch.tensor([3, -2, 3, 7]), 1000, 50, 10, 5, torch.tensor(step))
        assert {3, 7} <= set(taken.tolist()) and len(taken) == 10 and bool((taken[1:] > taken[:-1]).all())
        counts[taken] += 1
    counts = counts[[i for i in range(50) if i not in (3, 7)]]
    expected = 1000 * 8 / 48
    assert ((counts - expected) ** 2 / expected).sum() < 90  # chi-squared of 47 degrees, p about 1e-4


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_alone_it_is_an_ordinary_head(sample_rate):
    """Without a process group; a copy of it goes on alike."""
    head = hk.nn.PartialFC(5, 30, hk.margins.AdaFace(), 16.0, sample_rate=sample_rate)
    twin = hk.nn.MarginSoftmax(5, 30, hk.margins.AdaFace(), 16.0)
    twin.weight.data.copy_(head.weight.data)
    x, target = torch.randn(6, 5, requires_grad=True), torch.randint(30, (6,))
    other = copy.deepcopy(head)
    loss = head(x, target)
    loss.backward()
    assert torch.equal(other(x, target), loss) and head.weight.grad.is_sparse == (sample_rate < 1)
    if sample_rate == 1:
        (dweight,) = torch.autograd.grad(twin(x, target), twin.weight)
        torch.testing.assert_close(head.weight.grad, dweight)
    twin.margin.load_state_dict(head.margin.state_dict())
    before = copy.deepcopy(head.state_dict())
    found, statistics = head.eval()(x, target, return_statistics=True)
    wanted, others = twin.eval()(x, target, return_statistics=True)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(tuple(statistics), tuple(others))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


MARGINS = [hk.margins.ElasticFace, hk.margins.CurricularFace]
COMPILED = combinations(MARGINS, ["aot_eager", "inductor"], everyday=lambda margin, by: by == "aot_eager")


@pytest.mark.parametrize(("margin", "compiler"), COMPILED)
def test_compiled(margin, compiler):
    """In one graph, with what is drawn in each step, and with 133 classes, which fill no vector."""
    head = hk.nn.PartialFC(5, 133, margin(), 16.0, sample_rate=0.3)
    other = copy.deepcopy(head)
    compiled = torch.compile(other, fullgraph=True, backend=compiler)
    for _ in range(3):
        x, target = torch.randn(6, 5), torch.randint(133, (6,))
        losses = head(x, target), compiled(x, target)
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(head.weight.grad.to_dense(), other.weight.grad.to_dense())
    assert torch.equal(head.draws, other.draws)
    with pytest.raises(IndexError, match="target"):
        compiled(x, target + 133)


@pytest.mark.parametrize("sample_rate", [0.0, 0.01, 0.3, 1.0])
def test_a_batch_of_no_rows(sample_rate):
    head = hk.nn.PartialFC(4, 10, sample_rate=sample_rate)
    x = torch.zeros(0, 4, requires_grad=True)
    loss = head(x, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and x.grad.shape == x.shape and not head.weight.grad.to_dense().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 1.1}, "sample_rate"),
        ({"sample_rate": "all"}, "sample_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"gradient_reduction": "none"}, "gradient_reduction"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"label_smoothing": 0.1, "skip_budget": 0.1}, "skip_budget"),
        ({"margin": hk.margins.AdaCos(12)}, "12 classes"),
        ({"margin": hk.margins.ArcFace}, "margin"),
        ({"num_classes": 0}, "num_classes"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        hk.nn.PartialFC(**{"embedding_size": 4, "num_classes": 10, **options})


@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), "4 columns"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), "one entry per row"),
        (torch.zeros(3, 4), torch.zeros(3), "int64"),
        (torch.zeros(3, 4).double(), torch.zeros(3, dtype=torch.int64), "dtype of weight"),
        (torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64), "batch_size=3"),
    ],
)
def test_wrong_batches(x, target, message):
    with pytest.raises((TypeError, ValueError), match=message):
        hk.nn.PartialFC(4, 10, batch_size=3)(x, target)


def test_a_sampled_gradient_says_that_its_rows_are_distinct():
    """Over one backward, several that add up, and a copy of the module; the sum is that of the dense gradients."""
    head = hk.nn.PartialFC(16, 100, sample_rate=0.3, sub_centers=2, dtype=torch.float64)
    x, target = torch.randn(8, 16, dtype=torch.float64), torch.randint(100, (8,))
    before = torch.zeros_like(head.weight)
    for _ in range(3):
        head(x, target).backward()
        gradient = head.weight.grad
        assert gradient.is_sparse and gradient.is_coalesced()
        rows = gradient.indices()[0]
        assert (rows.diff() > 0).all()
        alone = copy.deepcopy(head)
        alone.zero_grad()
        alone.draws -= 1
        alone(x, target).backward()
        assert alone.weight.grad.is_coalesced()
        torch.testing.assert_close(gradient.to_dense(), before + alone.weight.grad.to_dense())
        before = gradient.to_dense()


@pytest.mark.parametrize("others", [[7, 7, 7, 9, 7], [7, 7]])
def test_a_gradient_from_elsewhere_is_not_said_to_be_distinct(others):
    """However many rows it has."""
    head = hk.nn.PartialFC(4, 100, sample_rate=0.05)
    loss = head(torch.randn(3, 4), torch.tensor([1, 2, 3]))
    torch.nn.functional.embedding(torch.tensor(others), head.weight, sparse=True).sum().backward()
    assert not head.weight.grad.is_coalesced()
    wanted = head.weight.grad.to_dense()
    head.weight.grad = None
    loss.backward()
    assert head.weight.grad.is_coalesced()
    wanted += head.weight.grad.to_dense()
    torch.nn.functional.embedding(torch.tensor(others), head.weight, sparse=True).sum().backward()
    torch.testing.assert_close(head.weight.grad.to_dense(), wanted)
    torch.testing.assert_close(head.weight.grad.coalesce().to_dense(), wanted)


def test_sampled_with_a_weight_that_is_frozen_or_computed():
    head = hk.nn.PartialFC(4, 100, sample_rate=0.05)
    x, target = torch.randn(3, 4, requires_grad=True), torch.tensor([1, 2, 3])
    computed = torch.func.functional_call(head, {"weight": head.weight * 1.0}, (x, target))
    computed.backward()
    head.draws -= 1
    head.weight.requires_grad_(False)
    frozen = head(x, target)
    (dx,) = torch.autograd.grad(frozen, x)
    assert torch.equal(frozen, computed)
    torch.testing.assert_close(dx, x.grad)


def test_sampled_with_the_update_in_the_backward():
    heads = [hk.nn.PartialFC(4, 100, sample_rate=0.05, dtype=torch.float64) for _ in range(2)]
    optimizers = [hk.optim.AdamW(head.parameters(), 0.1) for head in heads]
    hk.optim.update_in_backward(heads[0].weight, optimizers[0])
    for _ in range(3):
        x, target = torch.randn(3, 4, dtype=torch.float64), torch.randint(100, (3,))
        for head, optimizer in zip(heads, optimizers, strict=True):
            head(x, target).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-12, atol=1e-12)
