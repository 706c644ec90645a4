"""hyperkernels.compat.insightface trains as insightface's arcface_torch does, step by step."""

import subprocess
import sys
from functools import partial

import pytest
import torch

import hyperkernels as hk
from hyperkernels.compat import insightface
from hyperkernels.compat.insightface import ArcFace, CombinedMarginLoss, CosFace, PartialFC_V2
from tests.support.ranks import launch

from . import insightface_cases as cases
from . import insightface_formulas as formulas

FILTERED = [name for name in cases.MARGINS if "filtered" in name]
RANKS = {
    **{
        f"{name}, {rate}": partial(cases.check_training, name, torch.float64, rate)
        for name, rate in (
            ("ArcFace", 1.0),
            ("ArcFace", 0.7),
            ("combined, CosFace", 0.3),
            ("filtered ArcFace", 1.0),
            ("filtered CosFace", 0.7),
        )
    },
    "float32": partial(cases.check_training, "combined, ArcFace", torch.float32, 1.0),
    "ragged": cases.check_ragged,
    "few classes": cases.check_few_classes,
    "state_dict": cases.check_state_dict,
}


@pytest.mark.parametrize("sample_rate", [1.0, 0.7, 0.3, 0.0])
@pytest.mark.parametrize("name", cases.MARGINS)
def test_training(name, sample_rate):
    cases.check_training(name, torch.float64, sample_rate)


@pytest.mark.parametrize("sample_rate", [1.0, 0.7])
@pytest.mark.parametrize("name", [name for name in cases.MARGINS if name not in FILTERED])
def test_training_in_float32(name, sample_rate):
    cases.check_training(name, torch.float32, sample_rate)


@pytest.mark.parametrize("sample_rate", [1.0, 0.7])
@pytest.mark.parametrize("name", FILTERED)
def test_steps_in_float32(name, sample_rate):
    cases.check_steps(name, sample_rate)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks(world_size):
    launch(world_size, RANKS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("name", cases.MARGINS)
def test_margins_by_themselves(name, column, dtype):
    """Values and gradients over the whole range of cosines, rows without a class among them."""
    ours, scale, margin = cases.MARGINS[name]
    cos = (torch.rand(30, 9, dtype=dtype) * 2 - 1).requires_grad_()
    with torch.no_grad():
        cos[0, :2] = torch.tensor([-1.0, 1.0])
    labels = torch.randint(-1, 9, (30,))
    labels[0] = 0
    own = labels[:, None] == torch.arange(9)
    found, wanted = ours()(cos, labels[:, None] if column else labels), scale * margin(cos, own)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    slope = torch.rand_like(cos)
    gradients = [torch.autograd.grad(z, cos, slope)[0] for z in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", cases.MARGINS)
def test_margins_by_themselves_give_the_loss_of_the_head(name):
    ours, _, _ = cases.MARGINS[name]
    head = PartialFC_V2(ours(), 8, 20).double()
    labels = torch.randint(20, (15,))
    x = (head.weight.detach()[labels] + 3e-3 * torch.randn(15, 8).double()).requires_grad_()  # no loss above 69
    cos = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(head.weight).T
    wanted = torch.nn.functional.cross_entropy(head.margin_softmax(cos, labels), labels)
    gradients = torch.autograd.grad(wanted, [x, head.weight])
    found = head(x, labels)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, [x, head.weight]), gradients)


def test_past_pi():
    """Samples opposite to their centres, where cos(theta + m) grows again."""
    head = PartialFC_V2(ArcFace(5.0, 0.5), 8, 20).double()
    formula = formulas.Head(head.weight.detach(), 5.0, cases.MARGINS["ArcFace"][2])
    labels = torch.arange(10)
    x = (1e-3 * torch.randn(10, 8).double() - head.weight.detach()[labels]).requires_grad_()
    found, wanted = head(x, labels), formula(x, labels)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, [x, one.weight]) for loss, one in ((found, head), (wanted, formula))]
    torch.testing.assert_close(*gradients)


def test_margins_follow_their_attributes():
    """A schedule that sets them between steps."""
    x, labels = torch.randn(6, 5), torch.arange(6)
    margin = CombinedMarginLoss(64, 1.0, 0.1, 0.0)
    head = PartialFC_V2(margin, 5, 9)
    for s, m2, threshold in ((64.0, 0.1, 0.0), (64.0, 0.5, 0.3), (30.0, 0.2, 0.0)):
        margin.s, margin.m2, margin.interclass_filtering_threshold = s, m2, threshold
        fresh = PartialFC_V2(CombinedMarginLoss(s, 1.0, m2, 0.0, threshold), 5, 9)
        fresh.load_state_dict(head.state_dict())
        assert head(x, labels) == fresh(x, labels)


def test_initial_centres():
    """insightface's own draw."""
    for seed in (0, 2048):
        torch.manual_seed(seed)
        wanted, after = torch.normal(0, 0.01, (1030, 16)), torch.rand(3)
        torch.manual_seed(seed)
        head = PartialFC_V2(ArcFace(), 16, 1030)
        assert torch.equal(head.weight, wanted) and torch.equal(torch.rand(3), after)


def test_attributes_and_state_dict():
    margin = CosFace()
    head = PartialFC_V2(margin, embedding_size=6, num_classes=25, sample_rate=0.3, fp16=False)
    assert (head.rank, head.world_size, head.num_local, head.class_start) == (0, 1, 25, 0)
    assert (head.embedding_size, head.sample_rate, head.num_sample, head.fp16) == (6, 0.3, 7, False)
    assert head.margin_softmax is margin and head.weight_index is None
    state = head.state_dict()
    assert list(state) == ["weight"] and state._metadata[""]["version"] == 2
    head(torch.randn(4, 6), torch.arange(4)).backward()
    assert len(head.weight_index) == 7 and head.weight_index[:4].tolist() == [0, 1, 2, 3]
    assert head.weight.grad.layout == torch.strided and list(head.state_dict()) == ["weight"]
    theirs = {"weight": torch.randn(25, 6)}
    assert str(head.load_state_dict(theirs)) == "<All keys matched successfully>"
    assert torch.equal(head.weight, theirs["weight"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        head.load_state_dict({"weight": torch.randn(24, 6)})


def test_their_checkpoints_come_back_on_other_ranks(tmp_path):
    """As hk.nn.PartialFC reads them."""
    weight = torch.randn(25, 6)
    paths = [tmp_path / f"checkpoint_gpu_{rank}.pt" for rank in range(3)]
    shards = hk.distributed.Shards(25, 3)
    for rank, path in enumerate(paths):
        part = weight[shards.start(rank) : shards.start(rank + 1)].clone()
        torch.save({"epoch": 3, "state_dict_softmax_fc": {"weight": part}}, path)
    head = PartialFC_V2(ArcFace(), 6, 25)
    hk.distributed.load_insightface(head, paths)
    assert torch.equal(head.weight, weight)


def test_a_margin_of_hyperkernels():
    """With its state in the state_dict, and the scale of the head."""
    x, labels = torch.randn(6, 5, dtype=torch.float64), torch.arange(6)
    head = PartialFC_V2(hk.margins.CurricularFace(), 5, 9, scale=20.0).double()
    wanted = hk.margin_softmax_loss(x, head.weight, labels, margin=hk.margins.CurricularFace().double(), scale=20.0)
    torch.testing.assert_close(head(x, labels), wanted)
    assert set(head.state_dict()) == {"weight", "margin.t"}


def test_scaled_loss():
    """GradScaler multiplies the loss."""
    head = PartialFC_V2(ArcFace(), 5, 9)
    x, labels = torch.randn(6, 5, requires_grad=True), torch.arange(6)
    one = torch.autograd.grad(head(x, labels), [x, head.weight])
    many = torch.autograd.grad(head(x, labels) * 1024, [x, head.weight])
    torch.testing.assert_close([g * 1024 for g in one], list(many))


def test_update_in_the_backward():
    """Of all classes; of sampled ones it would not move the others, which insightface's momentum and decay do."""
    heads = [PartialFC_V2(ArcFace(), 5, 9, dtype=torch.float64) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    optimizers = [hk.optim.SGD(head.parameters(), 0.1, momentum=0.9, weight_decay=0.1) for head in heads]
    hk.optim.update_in_backward(heads[0].weight, optimizers[0])
    for _ in range(3):
        x, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(9, (6,))
        for head, optimizer in zip(heads, optimizers, strict=True):
            head(x, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-12, atol=1e-12)
    heads[0].sample_rate = 0.5
    with pytest.raises(RuntimeError, match="sample_rate < 1"):
        heads[0](x, labels)
    with torch.no_grad():
        heads[0](x, labels)


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_half_precision(sample_rate):
    """fp16=True rounds what is multiplied; fp16=False is float32 in spite of an autocast around it."""
    x, labels = torch.randn(16, 32, requires_grad=True), torch.arange(16)
    heads = [PartialFC_V2(ArcFace(), 32, 40, sample_rate, fp16) for fp16 in (False, True)]
    heads[1].load_state_dict(heads[0].state_dict())
    results = []
    for head in heads:
        torch.manual_seed(1)
        loss = head(x, labels)
        results.append([loss, *torch.autograd.grad(loss, [x, head.weight])])
    assert all(part.dtype == torch.float32 for result in results for part in result)
    assert results[0][0] != results[1][0]
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=0)
    for found, wanted in zip(results[1][1:], results[0][1:], strict=True):
        assert (found - wanted).norm() < 0.01 * wanted.norm()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        assert heads[0](x, labels) == results[0][0]


def test_largest_loss():
    """The loss of a row ends at -log(1e-30), as in insightface; its gradient does not."""
    weight, x = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:2].requires_grad_()
    labels = torch.tensor([0, 3])  # one at its own centre, one at that of another class
    for s in (40.0, 64.0, 200.0):
        head, formula = PartialFC_V2(CosFace(s), 4, 4).double(), formulas.Head(weight, s, cases.MARGINS["CosFace"][2])
        head.load_state_dict({"weight": weight})
        found, wanted = head(x, labels), formula(x, labels)
        torch.testing.assert_close(found, wanted)
        assert (found > 34.5) == (s > 50)
        torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (found, wanted)))


@pytest.mark.parametrize(
    "wrong, error, said",
    [
        (lambda: CombinedMarginLoss(64, 1.35, 0.0, 0.0), ValueError, "m1, m2, m3"),
        (lambda: CombinedMarginLoss(64, 1.0, 0.5, -0.1), ValueError, "m1, m2, m3"),
        (lambda: CombinedMarginLoss(64, 1.0, 2.0, 0.0), ValueError, "m2 must be in"),
        (lambda: CombinedMarginLoss(0, 1.0, 0.5, 0.0), ValueError, "s must be"),
        (lambda: ArcFace(margin=-0.1), ValueError, "margin must be"),
        (lambda: CosFace(m="0.4"), TypeError, "m must be"),
        (lambda: PartialFC_V2(ArcFace, 4, 9), TypeError, "margin_loss must be"),
        (lambda: PartialFC_V2(ArcFace(), 0, 9), ValueError, "embedding_size"),
        (lambda: PartialFC_V2(ArcFace(), 4, 9, 1.5), ValueError, "sample_rate"),
        (lambda: PartialFC_V2(ArcFace(), 4, 9)(torch.randn(2, 4), torch.zeros(3).long()), ValueError, "local_labels"),
        (lambda: PartialFC_V2(ArcFace(), 4, 9)(torch.randn(2, 5), torch.zeros(2).long()), ValueError, "columns"),
        (lambda: PartialFC_V2(ArcFace(), 4, 9)(torch.randn(2, 4), torch.zeros(2)), TypeError, "local_labels"),
        (lambda: ArcFace()(torch.zeros(2, 3), torch.tensor([0, 3])), IndexError, "labels must lie"),
        (lambda: ArcFace()(torch.zeros(2, 3), torch.tensor([0, -2])), IndexError, "labels must lie"),
    ],
)
def test_wrong_arguments(wrong, error, said):
    with pytest.raises(error, match=said):
        wrong()


def test_import_needs_no_process_group_and_nothing_else():
    code = "import hyperkernels.compat.insightface, sys; assert 'insightface' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(insightface.__all__) == {"ArcFace", "CombinedMarginLoss", "CosFace", "PartialFC_V2"}
