"""Every margin in a head: loss and gradients against the authors' formula over the full matrix, in float64."""

import math

import pytest
import torch

import hyperkernels as hk
from hyperkernels.margins import angles
from tests.support import head_formulas as authors
from tests.support.margin_softmax_cases import BACKENDS

from .cases import agree, forced, hard_problem, value_and_gradients

M = hk.margins
STRAIGHT = {"gradient": "straight_through"}
CLASS_MARGINS = torch.linspace(0.0, 0.6, 11, dtype=torch.float64)

# Without state or randomness: (margin, the authors' formula, whether its gradient is that of its value).
PLAIN = {
    "combined": (M.CombinedMargin(1.2, 0.3, 0.2), authors.combined(1.2, 0.3, 0.2), True),
    "combined straight": (
        M.CombinedMargin(1.2, 0.3, 0.2, **STRAIGHT),
        authors.detached(authors.combined(1.2, 0.3, 0.2)),
        False,
    ),
    "arcface": (M.ArcFace(0.5), authors.arcface(0.5), True),
    "arcface easy": (M.ArcFace(0.5, past_pi="easy"), authors.arcface(0.5, "easy"), True),
    "arcface insightface": (
        M.ArcFace(0.5, past_pi="wrap", **STRAIGHT),
        authors.detached(authors.arcface(0.5, "wrap")),
        False,
    ),
    "class cos": (M.ClassMargin(CLASS_MARGINS), authors.per_class(CLASS_MARGINS, "cos"), True),
    "class arc": (
        M.ClassMargin(CLASS_MARGINS, "arc", past_pi="wrap"),
        authors.per_class(CLASS_MARGINS, "arc"),
        True,
    ),
    "class arc straight": (
        M.ClassMargin(CLASS_MARGINS, "arc", past_pi="wrap", **STRAIGHT),
        authors.detached(authors.per_class(CLASS_MARGINS, "arc")),
        False,
    ),
    "sphereface": (M.SphereFace(1.7), authors.sphereface(1.7), True),
    "sphereface 4": (M.SphereFace(4.0), authors.sphereface(4.0), True),
    "sphereface straight": (M.SphereFace(1.7, **STRAIGHT), authors.detached(authors.sphereface(1.7)), False),
    "sphereface r1": (M.SphereFaceR1(1.5), authors.sphereface_r1(1.5), True),
    "sphereface r1 straight": (M.SphereFaceR1(1.5, **STRAIGHT), authors.detached(authors.sphereface_r1(1.5)), False),
    "sphereface r2": (M.SphereFaceR2(1.4), authors.sphereface_r2(1.4), True),
    "sphereface r2 straight": (M.SphereFaceR2(1.4, **STRAIGHT), authors.sphereface_r2(1.4, True), False),
    "magface": (M.MagFace(lambda_g=0.0), authors.magface(10, 110, 0.45, 0.8), True),
    "magface guard": (
        M.MagFace(lambda_g=0.0, easy_margin=False),
        authors.magface(10, 110, 0.45, 0.8, easy=False),
        True,
    ),
    "magface straight": (
        M.MagFace(lambda_g=0.0, **STRAIGHT),
        authors.magface_straight(10, 110, 0.45, 0.8),
        False,
    ),
    "mv am": (M.MVSoftmax(), authors.mv_softmax(0.35, 1.12, "am"), True),
    "mv arc": (M.MVSoftmax(0.4, 1.2, "arc"), authors.mv_softmax(0.4, 1.2, "arc"), True),
    "npcface": (M.NPCFace(), authors.npcface(0.5, 0.4, 0.2, 1.1, 0.2), False),
    "circle": (M.CircleMargin(), authors.circle(0.25), False),
    "arcneg": (M.ArcNegFace(), authors.arcneg(0.5, 1.2, 2.0), False),
    "filter": (M.InterClassFilter(0.4), authors.filtered(0.4, authors.arcface(0.5)), False),
    "filter cosface": (
        M.InterClassFilter(0.1, lambda cos, norm: cos - 0.35),
        authors.filtered(0.1, lambda c, y, norms: authors.put(c, y, c - 0.35)),
        False,
    ),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with forced(request.param):
        yield request.param


def head(margin, target, scale=20.0):
    return lambda x, weight: hk.margin_softmax_loss(x, weight, target, margin=margin, scale=scale)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", PLAIN)
def test_loss_and_gradients(name, seed, backend):
    margin, formula, _ = PLAIN[name]
    torch.manual_seed(seed)
    x, weight, target = hard_problem()
    found = value_and_gradients(head(margin, target), x, weight)
    wanted = value_and_gradients(lambda x, w: authors.softmax_loss(x, w, target, formula, 20.0), x, weight)
    agree(found, wanted)
    assert (found[1][:2] == 0).all(), "an ignored row moves nothing"


def test_the_hard_problem_is_hard():
    """Each branch of each formula is taken by some row: otherwise the test above shows less than it says."""
    x, weight, target = hard_problem()
    statistics = hk.class_statistics(x, weight, target)
    cos, norms = statistics.target_cos[2:], statistics.x_norm[2:]
    assert (cos < -math.cos(0.5)).any() and (cos > 0.9).any() and ((cos > 0) & (cos < 0.9)).any()
    assert (statistics.hardest_cos[2:] > cos).any() and (statistics.hardest_cos > 0.4).any()
    assert (norms < 10).any() and (norms > 110).any() and ((norms > 10) & (norms < 110)).any()


@pytest.mark.parametrize("name", [name for name, case in PLAIN.items() if case[2]])
def test_exact_gradients_are_those_of_the_value(name):
    x, weight, target = hard_problem(6, 11, 3, ignored=1)
    x = x / x.norm(dim=1, keepdim=True) * torch.linspace(30, 90, 6, dtype=torch.float64)[:, None]
    with hk.backend("reference"):
        leaves = (x.requires_grad_(), weight.requires_grad_())
        assert torch.autograd.gradcheck(head(PLAIN[name][0], target, 4.0), leaves)


@pytest.mark.parametrize("name", [name for name, case in PLAIN.items() if case[0].looks_ahead])
def test_looking_ahead_with_sub_centers(name, backend):
    """The target's cosine that the negatives are judged by is that of its nearest centre."""
    margin, formula, _ = PLAIN[name]
    x, weight, target = hard_problem()
    weight = torch.cat([weight, weight + 0.3 * torch.randn_like(weight)])[torch.arange(22).view(2, 11).T.flatten()]
    keep = target != -100

    def wanted(x, weight):
        unit = torch.nn.functional.normalize
        c = (unit(x[keep]) @ unit(weight).T).view(-1, 11, 2).amax(2)
        return torch.nn.functional.cross_entropy(20 * formula(c, target[keep], x[keep].norm(dim=1)), target[keep])

    def found(x, weight):
        return hk.margin_softmax_loss(x, weight, target, margin=margin, scale=20.0, sub_centers=2)

    agree(value_and_gradients(found, x, weight), value_and_gradients(wanted, x, weight))


def every_margin():
    """All margins of the package, in every kind of gradient that they have."""
    for name, (margin, _, _) in PLAIN.items():
        yield pytest.param(lambda margin=margin: margin, id=name)
    for options in ({}, STRAIGHT):
        suffix = " straight" if options else ""
        yield pytest.param(lambda options=options: M.AdaFace(**options), id="adaface" + suffix)
        yield pytest.param(lambda options=options: M.AdaFace(clip=None, **options), id="adaface unclipped" + suffix)
        yield pytest.param(lambda options=options: M.CurricularFace(**options), id="curricularface" + suffix)
        yield pytest.param(lambda options=options: M.ElasticFace(plus="rank", **options), id="elasticface" + suffix)
        yield pytest.param(lambda options=options: M.NPCFace(**options), id="npcface" + suffix)
        yield pytest.param(lambda options=options: M.ArcNegFace(**options), id="arcneg" + suffix)
        yield pytest.param(lambda options=options: M.MVSoftmax(kind="arc", **options), id="mv" + suffix)
        yield pytest.param(
            lambda options=options: M.ASoftmax(lambda_min=0.0, base=0.0, raw_norm=False, **options),
            id="asoftmax" + suffix,
        )
    yield pytest.param(lambda: M.AdaCos(11), id="adacos")
    yield pytest.param(lambda: M.MagFace(), id="magface whole")


EVERY_MARGIN = [*every_margin()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", EVERY_MARGIN)
def test_poles_are_finite(make, dtype, backend):
    """Rows exactly on their centre, opposite to it, on another's, zero rows, and ignored rows that hold NaN."""
    weight = torch.cat([torch.eye(5), -2 * torch.eye(5), torch.zeros(1, 5)]).to(dtype)
    target = torch.tensor([0, 1, 2, 3, 4, 6, 0, 10, -100, 3])
    x = torch.stack([*torch.eye(5)[:2], *-torch.eye(5)[2:4], torch.eye(5)[0], 20 * torch.eye(5)[1], torch.zeros(5)])
    x = torch.cat([x, torch.ones(1, 5), torch.full((1, 5), torch.nan), 30 * torch.ones(1, 5)]).to(dtype)
    for gradient in value_and_gradients(head(make(), target, 64.0), x, weight):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("make", EVERY_MARGIN)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(make, rows, backend):
    x, weight, target = hard_problem(rows, ignored=0)
    margin = make()
    for _ in range(2):
        loss, *gradients = value_and_gradients(head(margin, target), x, weight)
        assert loss.isfinite() and (rows or loss == 0)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("make", EVERY_MARGIN)
def test_all_rows_ignored(make, backend):
    x, weight, target = hard_problem(4, ignored=4)
    margin = make()
    before = margin.state_dict() if isinstance(margin, torch.nn.Module) else {}
    before = {name: value.clone() for name, value in before.items() if name != "iteration"}
    loss, *gradients = value_and_gradients(head(margin, target), x, weight)
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients)
    for name, value in before.items():
        assert torch.equal(margin.state_dict()[name], value)


@pytest.mark.parametrize(
    ("exact", "straight"),
    [
        (M.CombinedMargin(1.3, 0.2, 0.1), M.CombinedMargin(1.3, 0.2, 0.1, **STRAIGHT)),
        (M.SphereFace(1.7), M.SphereFace(1.7, **STRAIGHT)),
        (M.SphereFaceR1(1.7), M.SphereFaceR1(1.7, **STRAIGHT)),
        (M.MagFace(), M.MagFace(**STRAIGHT)),
        (M.AdaFace(), M.AdaFace(**STRAIGHT)),
        (M.MVSoftmax(kind="arc"), M.MVSoftmax(kind="arc", **STRAIGHT)),
        (M.NPCFace(), M.NPCFace(**STRAIGHT)),
        (M.ArcNegFace(), M.ArcNegFace(**STRAIGHT)),
        (M.CurricularFace(), M.CurricularFace(**STRAIGHT)),
    ],
    ids=lambda margin: type(margin).__name__,
)
def test_straight_through_changes_the_derivative_alone(exact, straight):
    cos = torch.linspace(-1, 1, 101).requires_grad_()
    norm = torch.linspace(1, 120, 101)
    assert torch.equal(exact(cos, norm), straight(cos, norm))
    (slope,) = torch.autograd.grad(straight(cos, norm).sum(), cos)
    assert torch.equal(slope, torch.ones_like(slope))
    (slope,) = torch.autograd.grad(exact(cos, norm).sum(), cos)
    assert (slope != 1).any() and slope.isfinite().all()


def test_the_raw_norm_form(backend):
    """z_y = |x| psi(theta_y), z_j = |x| cos(theta_j), with the gradient to the norm; a zero row is finite."""
    x, weight, target = hard_problem()
    x = x / 20

    def wanted(x, weight):
        keep = target != -100
        norms = x[keep].norm(dim=1)
        c = (x[keep] / norms[:, None]) @ torch.nn.functional.normalize(weight).T
        logits = norms[:, None] * authors.sphereface(4.0)(c, target[keep], norms)
        return torch.nn.functional.cross_entropy(logits, target[keep])

    def found(x, weight, margin=M.SphereFace(4.0, raw_norm=True)):
        return hk.margin_softmax_loss(x, weight, target, margin=margin, scale=1.0, normalize_x=False)

    agree(value_and_gradients(found, x, weight), value_and_gradients(wanted, x, weight))
    straight = lambda x, weight: found(x, weight, M.SphereFace(4.0, "straight_through", True))  # noqa: E731
    torch.testing.assert_close(straight(x, weight), found(x, weight))
    for tensor in value_and_gradients(straight, torch.cat([x[:-1], 0 * x[-1:]]), weight):
        assert tensor.isfinite().all()


def test_annealing_blends_the_target(backend):
    x, weight, target = hard_problem()
    margin = M.ASoftmax(3.0, base=10.0, gamma=0.5, power=2.0, lambda_min=1.5, raw_norm=False)
    for step in range(1, 5):
        found = value_and_gradients(head(margin, target), x, weight)
        blend = max(1.5, 10.0 / (1 + 0.5 * step) ** 2)

        def formula(c, y, norms, blend=blend):
            return authors.put(c, y, (blend * c + authors.sphereface_psi(torch.acos(c), 3.0)) / (1 + blend))

        wanted = value_and_gradients(lambda x, w: authors.softmax_loss(x, w, target, formula, 20.0), x, weight)
        agree(found, wanted)
    assert margin.iteration == 4 and margin.annealing() == 1.5


def test_magface_rewards_large_norms(backend):
    x, weight, target = hard_problem()
    margin = M.MagFace(lambda_g=3.0)

    def wanted(x, weight):
        a = x[target != -100].norm(dim=1).clamp(10, 110)
        loss = authors.softmax_loss(x, weight, target, authors.magface(10, 110, 0.45, 0.8), 20.0)
        return loss + 3.0 * (a / 110**2 + 1 / a).mean()

    found = value_and_gradients(head(margin, target), x, weight)
    agree(found, value_and_gradients(wanted, x, weight))
    along = (found[1] * x).sum(1)
    norms = x.norm(dim=1)
    held = (norms < 10) | (norms > 110) | (target == -100)
    assert (along[held].abs() < 1e-9).all() and (along[~held].abs() > 1e-6).any()
    slope = (0.8 - 0.45) / (110 - 10)
    assert margin.smallest_lambda_g(64.0) == pytest.approx(64 * slope * 110**2 * 10**2 / (110**2 - 10**2))


def test_learned_margins_get_their_gradient(backend):
    x, weight, target = hard_problem()
    start = torch.linspace(-0.2, 1.2, 11, dtype=torch.float64)

    def wanted(x, weight, margins):
        loss = authors.softmax_loss(x, weight, target, authors.per_class(margins, "cos"), 20.0)
        return loss + 7.0 * (1 - margins.mean())

    wanted = value_and_gradients(wanted, x, weight, start.clamp(0, 1))
    margin = M.ClassMargin(torch.nn.Parameter(start.clone()), reward=7.0)
    found = value_and_gradients(head(margin, target), x, weight)
    agree(found, wanted[:3])
    head(margin, target)(x, weight).backward()
    agree([margin.margins.grad], wanted[3:])
    assert torch.equal(margin.margins.detach(), start.clamp(0, 1)), "put back into [0, 1] before use"
    with torch.no_grad():
        margin.margins.copy_(start)
    margin.reward = 0.0
    evaluated = head(margin.eval(), target)(x, weight).detach()
    assert torch.equal(margin.margins.detach(), start)
    given = head(M.ClassMargin(start.clamp(0, 1)), target)(x, weight)
    torch.testing.assert_close(evaluated, given)


@pytest.mark.parametrize("kind", ["cos", "arc"])
def test_learned_margins_gradcheck(kind):
    x, weight, target = hard_problem(6, 5, 3)
    target[2:] = target[2:] % 5
    margins = torch.rand(5, dtype=torch.float64).mul(0.4).add(0.1)

    def loss(margins):
        margin = M.ClassMargin(torch.nn.Parameter(margins), kind)
        del margin._parameters["margins"]  # a plain tensor with a history, which a parameter cannot be
        margin.margins = margins
        return head(margin.eval(), target, 4.0)(x, weight)

    with hk.backend("reference"):
        assert torch.autograd.gradcheck(loss, margins.requires_grad_())


def test_the_safe_angle_is_the_angle():
    theta = torch.linspace(1e-3, math.pi - 1e-3, 1000, dtype=torch.float64)
    cos = theta.cos().requires_grad_()
    torch.testing.assert_close(angles.angle(cos).detach(), theta)
    (slope,) = torch.autograd.grad(angles.angle(cos).sum(), cos)
    torch.testing.assert_close(slope, -1 / theta.sin())
    pole = torch.tensor([1.0, 1 + 1e-7, -1.0, -1 - 1e-7], requires_grad=True)
    torch.testing.assert_close(angles.angle(pole).detach(), torch.tensor([0, 0, math.pi, math.pi]))
    (slope,) = torch.autograd.grad(angles.angle(pole).sum(), pole)
    assert torch.equal(slope, torch.zeros(4))
