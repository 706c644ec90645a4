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
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


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
