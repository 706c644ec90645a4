"""Margins against the angle formulas in float64, and against what the public heads do."""

import math

import pytest
import torch

import hyperkernels as hk

NORM = torch.tensor(1.0)
ANGLES = torch.linspace(0.02, math.pi - 0.02, 200, dtype=torch.float64)


def slope(margin, cos):
    cos = cos.detach().requires_grad_()
    psi = margin(cos, NORM)
    return psi.detach(), torch.autograd.grad(psi.sum(), cos)[0]


def test_cosface_subtracts():
    psi, derivative = slope(hk.margins.CosFace(0.35), ANGLES.cos())
    assert torch.equal(psi, ANGLES.cos() - 0.35)
    assert torch.equal(derivative, torch.ones_like(psi))


def test_normface_does_nothing():
    assert torch.equal(hk.margins.NormFace()(ANGLES, NORM), ANGLES)


@pytest.mark.parametrize("m", [0.1, 0.5, 1.2])
def test_arcface_adds_to_the_angle(m):
    psi, derivative = slope(hk.margins.ArcFace(m), ANGLES.cos())
    below = ANGLES + m < math.pi
    torch.testing.assert_close(psi[below], (ANGLES + m).cos()[below])
    torch.testing.assert_close(derivative[below], ((ANGLES + m).sin() / ANGLES.sin())[below])
    torch.testing.assert_close(psi[~below], (ANGLES.cos() - m * math.sin(m))[~below])
    assert torch.equal(derivative[~below], torch.ones_like(derivative[~below]))
    assert (psi.diff() < 0).all(), "a larger angle must never be rewarded"


def test_arcface_wraps_when_asked():
    psi, _ = slope(hk.margins.ArcFace(0.5, past_pi="wrap"), ANGLES.cos())
    torch.testing.assert_close(psi, (ANGLES + 0.5).cos())
    assert psi[-1] > ANGLES.cos()[-1]


def test_straight_through_changes_the_gradient_alone():
    psi, derivative = slope(hk.margins.ArcFace(0.5, gradient="straight_through"), ANGLES.cos())
    torch.testing.assert_close(psi, hk.margins.ArcFace(0.5)(ANGLES.cos(), NORM))
    assert torch.equal(derivative, torch.ones_like(psi))


def test_arcface_has_an_easy_margin():
    """None from a right angle on, as in the first face heads."""
    psi, derivative = slope(hk.margins.ArcFace(0.5, past_pi="easy"), ANGLES.cos())
    near = ANGLES.cos() > 0
    torch.testing.assert_close(psi[near], (ANGLES + 0.5).cos()[near])
    assert torch.equal(psi[~near], ANGLES.cos()[~near])
    assert torch.equal(derivative[~near], torch.ones_like(derivative[~near]))


def test_combined_margin_is_all_three():
    psi, derivative = slope(hk.margins.CombinedMargin(1.3, 0.4, 0.1), ANGLES.cos())
    torch.testing.assert_close(psi, (1.3 * ANGLES + 0.4).cos() - 0.1)
    torch.testing.assert_close(derivative, 1.3 * (1.3 * ANGLES + 0.4).sin() / ANGLES.sin())


@pytest.mark.parametrize("m", [1.0, 1.7, 2.0, 4.0])
def test_sphereface_falls_from_zero_to_pi(m):
    """Continuously, through (-1)^k - 2k at k pi / m, to 1 - 2m at pi for a whole m; m = 1 is the cosine itself."""
    angles = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    psi = hk.margins.SphereFace(m)(angles.cos(), NORM)
    assert (psi.diff() <= 1e-9).all() and psi.diff().abs().max() < 0.01
    assert psi[0] == 1
    if m == int(m):
        assert psi[-1] == pytest.approx(1 - 2 * m)
    if m == 1:
        torch.testing.assert_close(psi, angles.cos())


def test_sphereface_r1_stays_at_its_lowest():
    psi, derivative = slope(hk.margins.SphereFaceR1(2.0), ANGLES.cos())
    below = ANGLES.cos() > 0
    torch.testing.assert_close(psi[below], (2 * ANGLES).cos()[below])
    assert (psi[~below] == -1).all() and (derivative[~below] == 0).all()


def test_class_margins_may_be_negative():
    """Then theta + m does not reach pi, and nothing needs continuing."""
    margin = hk.margins.ClassMargin(torch.tensor([-0.3], dtype=torch.float64), "arc")
    rows = hk.margins.Rows(ANGLES.cos(), NORM, torch.zeros(200, dtype=torch.int64), torch.ones(200, dtype=torch.bool))
    torch.testing.assert_close(margin.target_logits(rows, None), (ANGLES - 0.3).cos())


def test_npcface_knows_its_hard_negatives_in_a_head_alone():
    cos = ANGLES.cos()
    wanted = torch.where(cos > 0, (ANGLES + 0.4).cos(), cos)
    torch.testing.assert_close(hk.margins.NPCFace()(cos, NORM), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_arcface_at_the_poles(dtype, gradient):
    """Cosines that rounding has pushed past 1 included: the value is right and the slope finite."""
    eps = torch.finfo(dtype).eps
    cos = torch.tensor([1.0, 1 + eps, 1 - eps, -1.0, -1 - eps], dtype=dtype)
    psi, derivative = slope(hk.margins.ArcFace(0.5, gradient=gradient), cos)
    assert derivative.isfinite().all()
    far = -1 - 0.5 * math.sin(0.5)
    wanted = torch.tensor([math.cos(0.5)] * 3 + [far] * 2, dtype=dtype)
    torch.testing.assert_close(psi, wanted, rtol=2 * eps**0.5, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hk.margins.ArcFace(4.0), r"m must be in \[0.0, 1.57"),
        (lambda: hk.margins.ArcFace(-0.1), "m must be in"),
        (lambda: hk.margins.ArcFace(0.5, gradient="detached"), "gradient must be one of 'exact', 'straight_through'"),
        (lambda: hk.margins.ArcFace(0.5, past_pi="clip"), "past_pi must be one of"),
        (lambda: hk.margins.CosFace(math.nan), "m must be finite"),
        (lambda: hk.margins.CombinedMargin(0.0), "m1 must be greater than 0"),
        (lambda: hk.margins.CombinedMargin(1.0, -0.1), "m2 must be in"),
        (lambda: hk.margins.CombinedMargin(1.0, 0.1, math.inf), "m3 must be finite"),
        (lambda: hk.margins.ClassMargin(torch.zeros(3), "sum"), "kind must be one of 'cos', 'arc'"),
        (lambda: hk.margins.ClassMargin(torch.zeros(3, 1)), "margins must have 1 dimension"),
        (lambda: hk.margins.ClassMargin(torch.zeros(3), reward=-1.0), "reward must be at least 0"),
        (lambda: hk.margins.SphereFace(0.5), "m must be at least 1"),
        (lambda: hk.margins.SphereFaceR1(0.5), "m must be at least 1"),
        (lambda: hk.margins.SphereFaceR2(0.5), "m must be at least 1"),
        (lambda: hk.margins.ASoftmax(gamma=-1.0), "gamma must be at least 0"),
        (lambda: hk.margins.ElasticFace(std=-1.0), "std must be at least 0"),
        (lambda: hk.margins.ElasticFace(kind="sphere"), "kind must be one of 'arc', 'cos'"),
        (lambda: hk.margins.ElasticFace(plus=True), "plus must be one of 'rank', 'permutation'"),
        (lambda: hk.margins.AdaFace(h=0.0), "h must be greater than 0"),
        (lambda: hk.margins.AdaFace(t_alpha=2.0), "t_alpha must be in"),
        (lambda: hk.margins.AdaFace(clip=-1.0), "clip must be in"),
        (lambda: hk.margins.MagFace(10.0, 5.0), "u_a must be greater than 10"),
        (lambda: hk.margins.MagFace(0.0), "l_a must be greater than 0"),
        (lambda: hk.margins.AdaCos(2), "num_classes must be at least 3"),
        (lambda: hk.margins.CurricularFace(momentum=-0.1), "momentum must be in"),
        (lambda: hk.margins.MVSoftmax(weight=0.9), "weight must be at least 1"),
        (lambda: hk.margins.MVSoftmax(kind="sv"), "kind must be one of 'am', 'arc'"),
        (lambda: hk.margins.NPCFace(m1=-0.1), "m1 must be in"),
        (lambda: hk.margins.CircleMargin(1.5), "m must be in"),
        (lambda: hk.margins.ArcNegFace(sigma=0.0), "sigma must be greater than 0"),
        (lambda: hk.margins.InterClassFilter(1.5), "threshold must be in"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: hk.margins.ClassMargin([0.1, 0.2]),
        lambda: hk.margins.InterClassFilter(0.4, 0.5),
        lambda: hk.margins.AdaFace(m="large"),
    ],
)
def test_wrong_types(make):
    with pytest.raises(TypeError, match=r"(margins|margin|m) must be"):
        make()


@pytest.mark.parametrize(
    ("margin", "options", "message"),
    [
        (hk.margins.ClassMargin(torch.zeros(8)), {}, r"margins must have one entry per class \(9\); got"),
        (hk.margins.SphereFace(2.0), {"normalize_x": False}, "works on cosines"),
        (hk.margins.SphereFace(2.0, raw_norm=True), {}, "normalize_x must be False"),
        (hk.margins.ASoftmax(), {}, "normalize_x must be False"),
        (hk.margins.ASoftmax(), {"normalize_x": False, "normalize_weight": False}, "normalize_weight True"),
        (hk.margins.AdaFace(), {"normalize_weight": False}, "works on cosines"),
        (hk.margins.InterClassFilter(), {"normalize_x": False}, "works on cosines"),
    ],
)
def test_heads_that_do_not_fit(margin, options, message):
    x, weight, target = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6,))
    with pytest.raises(ValueError, match=message):
        hk.margin_softmax_loss(x, weight, target, margin=margin, **options)


@pytest.mark.parametrize(
    ("margin", "name"),
    [
        (hk.margins.CurricularFace(), "t"),
        (hk.margins.ClassMargin(torch.nn.Parameter(torch.zeros(9))), "margins"),
        (hk.margins.InterClassFilter(0.4, hk.margins.AdaFace()), "margin.batch_mean"),
        (torch.nn.PReLU(), "weight"),
    ],
)
def test_state_on_another_device_is_refused(margin, name):
    """Nothing is copied from device to device behind the caller's back."""
    x, weight, target = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6,))
    message = rf"margin must be on the device of x \(cpu\).*margin.to\(x.device\).*got {name} on meta"
    with pytest.raises(ValueError, match=message):
        hk.margin_softmax_loss(x, weight, target, margin=margin.to("meta"))


def test_class_margins_need_their_classes():
    with pytest.raises(TypeError, match="ClassMargin needs the rows' classes"):
        hk.margins.ClassMargin(torch.zeros(3))(ANGLES.cos(), NORM)


def test_a_users_function_serves():
    x, weight, target = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6,))
    mine = hk.margin_softmax_loss(x, weight, target, margin=lambda cos, norm: cos - 0.35)
    assert torch.equal(mine, hk.margin_softmax_loss(x, weight, target, margin=hk.margins.CosFace(0.35)))


def test_the_norm_carries_gradient():
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight, target = torch.randn(9, 4, dtype=torch.float64), torch.randint(9, (6,))
    loss = lambda x: hk.margin_softmax_loss(x, weight, target, scale=4.0, margin=lambda cos, norm: cos - 0.1 * norm)  # noqa: E731
    assert torch.autograd.gradcheck(loss, x)
    (dx,) = torch.autograd.grad(loss(x), x)
    assert ((dx * x).sum(1).abs() > 1e-3).all(), "only the norm can move a sample along itself"
