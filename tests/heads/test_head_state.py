"""Margins that keep state, draw at random, scale the head or wrap another margin."""

import copy
import math

import pytest
import torch

import hyperkernels as hk
from tests.support import head_formulas as authors
from tests.support.margin_softmax_cases import BACKENDS

from .cases import agree, forced, hard_problem, value_and_gradients

M = hk.margins
STATEFUL = {
    "adaface": M.AdaFace,
    "curricularface": M.CurricularFace,
    "adacos": lambda: M.AdaCos(11),
    "asoftmax": lambda: M.ASoftmax(raw_norm=False),
    "class margin": lambda: M.ClassMargin(torch.nn.Parameter(torch.linspace(-0.5, 1.5, 11))),
    "filtered": lambda: M.InterClassFilter(0.4, M.AdaFace()),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with forced(request.param):
        yield request.param


def head(margin, target, scale=20.0):
    return lambda x, weight: hk.margin_softmax_loss(x, weight, target, margin=margin, scale=scale)


def counted_norms(x, target):
    return x[target != -100].norm(dim=1)


@pytest.mark.parametrize(
    ("options", "wrap"),
    [
        ({}, lambda formula: formula),
        ({"gradient": "straight_through"}, authors.detached),
        ({"gradient": "straight_through", "clip": None}, authors.detached),
    ],
    ids=["repository", "straight, clipped", "cvlface"],
)
def test_adaface(options, wrap, backend):
    """Three steps: the averages as computed by hand, and the loss and gradients that go with them."""
    margin = M.AdaFace(0.5, 0.7, 0.3, **options)
    mean, std = 20.0, 100.0
    for _ in range(3):
        x, weight, target = hard_problem()
        found = value_and_gradients(head(margin, target), x, weight)
        norms = counted_norms(x, target).clip(0.001, 100)
        mean, std = 0.3 * norms.mean() + 0.7 * mean, 0.3 * norms.std() + 0.7 * std
        torch.testing.assert_close(margin.batch_mean, mean.float())
        torch.testing.assert_close(margin.batch_std, std.float())
        state = margin.batch_mean.double(), margin.batch_std.double()
        formula = wrap(authors.adaface(0.5, 0.7, *state, options.get("clip", 1e-3)))
        agree(found, value_and_gradients(lambda x, w: authors.softmax_loss(x, w, target, formula, 20.0), x, weight))  # noqa: B023


def test_adaface_angles_are_clipped():
    """Both ends are reached, with their values; the exact gradient ends there, the straight one does not."""
    margin = M.AdaFace(0.4, 10.0).eval()
    cos = torch.tensor([0.999, -0.999], dtype=torch.float64, requires_grad=True)
    norms = torch.tensor([100.0, 0.001], dtype=torch.float64)
    margin.batch_std.fill_(1.0)  # q is +1 and -1
    psi = margin(cos, norms)
    torch.testing.assert_close(psi.detach(), torch.tensor([math.cos(1e-3) - 0.8, -math.cos(1e-3)]).double())
    assert torch.equal(torch.autograd.grad(psi.sum(), cos)[0], torch.zeros_like(cos))
    margin.gradient = "straight_through"
    assert torch.equal(torch.autograd.grad(margin(cos, norms).sum(), cos)[0], torch.ones_like(cos))


def test_one_row_has_no_deviation():
    margin = M.AdaFace()
    x, weight, target = hard_problem(5, ignored=4)
    head(margin, target)(x, weight)
    torch.testing.assert_close(margin.batch_mean, 0.01 * x[4].norm().clip(max=100).float() + 0.99 * 20)
    assert margin.batch_std == 100


@pytest.mark.parametrize("make", [STATEFUL[name] for name in ("adaface", "curricularface", "adacos")])
def test_a_nan_row_does_not_stay(make):
    """One NaN would otherwise remain in a running average for good; autocast produces them at its first steps."""
    x, weight, target = hard_problem()
    whole, without = make(), make()
    head(whole, target)(torch.cat([x[:-1], x[-1:] * torch.nan]), weight)
    head(without, target[:-1])(x[:-1], weight)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, without.state_dict()[name])


def test_curricularface(backend):
    """T moves before it is used, over the rows that count."""
    margin, t = M.CurricularFace(0.5, momentum=0.4), 0.0
    for _ in range(3):
        x, weight, target = hard_problem()
        found = value_and_gradients(head(margin, target), x, weight)
        keep = target != -100
        cos = torch.nn.functional.cosine_similarity(x[keep], weight[target[keep]])
        t = 0.4 * cos.mean() + 0.6 * t
        torch.testing.assert_close(margin.t, t.float())
        formula = authors.curricular(0.5, margin.t.double())
        agree(found, value_and_gradients(lambda x, w: authors.softmax_loss(x, w, target, formula, 20.0), x, weight))  # noqa: B023


def test_adacos(backend):
    """Three steps of the scale by hand, each with the loss under the new scale, constant for the gradient."""
    margin, scale = M.AdaCos(11), math.sqrt(2) * math.log(10)
    assert margin.scale.item() == pytest.approx(scale)
    for _ in range(3):
        x, weight, target = hard_problem()
        found = value_and_gradients(head(margin, target, 1.0), x, weight)
        y = target[target != -100]
        unit = torch.nn.functional.normalize
        c = unit(x[target != -100]) @ unit(weight).T
        b = torch.where(authors.one_hot(c, y), 0, torch.exp(scale * c)).sum(1).mean()
        theta = torch.acos(authors.own(c, y)).median().clamp(max=math.pi / 4)
        scale = (b.log() / theta.cos()).float().double()
        torch.testing.assert_close(margin.scale, scale.float())
        scale = margin.scale.double()
        formula = lambda c, y, norms: c  # noqa: E731
        agree(found, value_and_gradients(lambda x, w: authors.softmax_loss(x, w, target, formula, scale), x, weight))  # noqa: B023


def test_adacos_takes_the_lower_middle_angle():
    """Below pi/4, where the median shows, with even and odd numbers of rows and the ignored ones first."""
    for n in (6, 7):
        theta = torch.linspace(0.05, 0.7, n, dtype=torch.float64)[torch.randperm(n)]
        x = torch.stack([theta.cos(), theta.sin(), 0 * theta], 1)
        weight = torch.eye(3, dtype=torch.float64)
        target = torch.zeros(n, dtype=torch.int64)
        target[0] = -100
        margin = M.AdaCos(3)
        before = margin.scale.double()
        head(margin, target)(x, weight)
        b = (torch.exp(before * x[1:, 1]) + 1).mean()
        torch.testing.assert_close(margin.scale, (b.log() / theta[1:].median().cos()).float())


def test_adacos_never_takes_a_scale_that_is_no_scale():
    x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    margin = M.AdaCos(3)
    before = margin.scale.clone()
    head(margin, torch.tensor([0]))(x, weight)  # log of 2 exp(-s) is about 0.7 - s
    expected = math.log(2) - before
    assert expected < 0 and torch.equal(margin.scale, before)


def test_fixed_adacos_is_a_scale(backend):
    x, weight, target = hard_problem()
    margin = M.AdaCos(11, dynamic=False)
    found = value_and_gradients(head(margin, target, 1.0), x, weight)
    agree(found, value_and_gradients(head(M.NormFace(), target, float(margin.scale)), x, weight))
    assert margin.scale == M.AdaCos(11).scale


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_evaluation_leaves_the_state(make):
    x, _, target = hard_problem()
    module = hk.nn.MarginSoftmax(5, 11, margin=make(), normalize_x=True)
    before = copy.deepcopy(module.state_dict())
    module.eval()(x.float(), target)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.train()(x.float(), target)
    assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_state_dict_reproduces_the_next_step(make):
    """Of another instance, bit for bit; the copy taken is of the state then."""
    first, second = make(), make()
    x, weight, target = hard_problem()
    head(first, target)(x, weight)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for one, other in zip(*(value_and_gradients(head(m, target), x, weight) for m in (first, second)), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_a_second_forward_before_the_backward(make):
    """The state moves in place, and nothing that the first backward needs moves with it."""
    x, weight, target = hard_problem()
    margin = make()
    x.requires_grad_()
    first = head(margin, target)(x, weight)
    twin = head(copy.deepcopy(margin).eval(), target)(x, weight)
    head(margin, target)(2 * x.detach().roll(1, 1), weight)
    (wanted,) = torch.autograd.grad(twin, x)
    torch.testing.assert_close(torch.autograd.grad(first, x)[0], wanted)


def test_elasticface_draws_anew(backend):
    x, weight, target = hard_problem()
    for kind, mean in (("arc", 0.5), ("cos", 0.35)):
        margin = M.ElasticFace(mean, 0.05, kind, generator=torch.Generator().manual_seed(3))
        found = [value_and_gradients(head(margin, target), x, weight) for _ in range(2)]
        assert found[0][0] != found[1][0]
        generator = torch.Generator().manual_seed(3)
        for one in found:
            drawn = torch.empty(16, dtype=torch.float64).normal_(mean, 0.05, generator=generator)[2:]
            # One margin a row is one a class where every row has a class of its own.
            formula = lambda c, y, norms, m=drawn[:, None]: authors.put(  # noqa: E731
                c,
                y,
                torch.cos(torch.acos(c) + m) if kind == "arc" else c - m,  # noqa: B023
            )
            agree(one, value_and_gradients(lambda x, w: authors.softmax_loss(x, w, target, formula, 20.0), x, weight))  # noqa: B023
    torch.manual_seed(5)
    loss = head(M.ElasticFace(), target)(x, weight)
    torch.manual_seed(5)
    assert torch.equal(loss, head(M.ElasticFace(), target)(x, weight))


def test_elasticface_margins_are_normal():
    drawn = M.ElasticFace(0.4, 0.1).draw(torch.empty(200_000))
    assert abs(drawn.mean() - 0.4) < 2e-3 and abs(drawn.std() - 0.1) < 2e-3


COS = torch.tensor([0.1, 0.9, 0.5])
MARGINS = torch.tensor([0.6, 0.4, 0.5])


@pytest.mark.parametrize(
    ("plus", "wanted"), [(False, [0.6, 0.4, 0.5]), ("permutation", [0.5, 0.6, 0.4]), ("rank", [0.6, 0.4, 0.5])]
)
def test_elasticface_plus(plus, wanted):
    """The smallest cosine gets the largest margin, unless the authors' indices are asked for; ignored rows are out."""
    margin = M.ElasticFace(plus=plus)
    for order in ([0, 1, 2], [2, 0, 1]):
        if order != [0, 1, 2] and plus is False:
            continue
        counted = torch.tensor([False, True, True, False, True])
        cos, margins = torch.tensor([[5.0], [-5.0]]).expand(2, 5).clone()
        cos[counted], margins[counted] = COS, MARGINS[order]
        found = margin.assign(margins, cos, counted)
        assert torch.equal(found[counted], torch.tensor(wanted))
        assert torch.equal(found[~counted], margins[~counted])
        assert torch.equal(margin.assign(MARGINS[order], COS, torch.ones(3, dtype=torch.bool)), torch.tensor(wanted))


def test_elasticface_plus_against_the_definitions():
    counted = torch.rand(50) > 0.3
    cos, margins = torch.rand(50), torch.rand(50)
    rank = M.ElasticFace(plus="rank").assign(margins, cos, counted)
    order = cos[counted].argsort()
    assert (rank[counted][order].diff() < 0).all()
    assert torch.equal(rank[counted].sort().values, margins[counted].sort().values)
    permuted = M.ElasticFace(plus="permutation").assign(margins, cos, counted)
    indices = cos[counted].argsort(descending=True)
    assert torch.equal(permuted[counted], margins[counted].sort().values[indices])


def test_a_filter_hands_everything_on(backend):
    """State, scale, penalty, checks and parameters of the margin inside."""
    x, weight, target = hard_problem()
    never = 1.0
    for make in (M.AdaFace, M.MagFace, lambda: M.AdaCos(11), lambda: M.ClassMargin(torch.full((11,), 0.3))):
        inside, alone = make(), make()
        found = value_and_gradients(head(M.InterClassFilter(never, inside), target), x, weight)
        agree(found, value_and_gradients(head(alone, target), x, weight), rtol=1e-6)
        if isinstance(alone, torch.nn.Module):
            for name, value in alone.state_dict().items():
                torch.testing.assert_close(inside.state_dict()[name], value)
    learned = M.InterClassFilter(never, M.ClassMargin(torch.nn.Parameter(torch.zeros(11))))
    assert dict(learned.named_parameters()).keys() == {"margin.margins"}
    for margin in (M.CurricularFace(), M.MVSoftmax(), M.SphereFaceR2(), M.InterClassFilter()):
        with pytest.raises(ValueError, match="margin must leave the negatives as they are"):
            M.InterClassFilter(0.4, margin)


def test_a_filter_freezes_what_is_frozen():
    x, weight, target = hard_problem()
    margin = M.InterClassFilter(0.4, M.AdaFace().eval())
    head(margin, target)(x, weight)
    assert margin.margin.batch_mean == 20


COMPILED = [
    *STATEFUL.values(),
    M.NPCFace,
    M.CircleMargin,
    M.ArcNegFace,
    M.MVSoftmax,
    M.MagFace,
    M.CombinedMargin,
    M.SphereFace,
    M.SphereFaceR2,
    lambda: M.ElasticFace(std=0.0, plus="rank"),
    lambda: M.ElasticFace(std=0.0, plus="permutation"),
]


@pytest.mark.parametrize("make", COMPILED)
def test_compiles_whole(make):
    """In one graph, twice, with the state moving as it does without the compiler."""
    torch._dynamo.reset()
    plain, traced = make(), make()

    def step(x, weight, target):
        return hk.margin_softmax_loss(x, weight, target, margin=traced, scale=20.0)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, weight, target = hard_problem()
        found = value_and_gradients(lambda x, w: compiled(x, w, target), x, weight)  # noqa: B023
        agree(found, value_and_gradients(head(plain, target), x, weight))
    if isinstance(plain, torch.nn.Module):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(traced.state_dict()[name], value)
