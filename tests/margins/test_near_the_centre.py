"""Angular margins at small angles, where float32 cannot tell the cosine from 1: gradients against float64 truth."""

import math

import pytest
import torch

import hyperkernels as hk
from tests.support.margin_softmax_cases import BACKENDS, textbook_loss_and_gradients

D, C, SCALE = 128, 50, 8.0
ANGLES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
MARGINS = {
    "ArcFace": lambda: hk.margins.ArcFace(0.5),
    "ArcFace, wrap": lambda: hk.margins.ArcFace(0.5, past_pi="wrap"),
    "CombinedMargin": lambda: hk.margins.CombinedMargin(1.0, 0.3, 0.2),
    "ClassMargin": lambda: hk.margins.ClassMargin(torch.full((C,), 0.4), "arc"),
    "ElasticFace": lambda: hk.margins.ElasticFace(0.5, 0.0),
    "AdaFace": lambda: hk.margins.AdaFace(0.4, clip=None).eval(),
    "MagFace": lambda: hk.margins.MagFace(),
    "SphereFace": lambda: hk.margins.SphereFace(1.5),
    "SphereFaceR1": lambda: hk.margins.SphereFaceR1(1.5),
    "CurricularFace": lambda: hk.margins.CurricularFace().eval(),
    "MVSoftmax": lambda: hk.margins.MVSoftmax(0.5, kind="arc"),
    "NPCFace": lambda: hk.margins.NPCFace(),
    "ArcNegFace": lambda: hk.margins.ArcNegFace(),
    "InterClassFilter": lambda: hk.margins.InterClassFilter(0.4, hk.margins.ArcFace(0.5)),
}


def near(angle, n=8, dtype=torch.float32, sign=1):
    """Rows at about that angle to their centres, or to what is opposite of them."""
    weight = torch.randn(C, D, dtype=torch.float64)
    target = torch.randint(C, (n,))
    unit = weight[target] / weight[target].norm(dim=1, keepdim=True)
    aside = torch.randn(n, D, dtype=torch.float64)
    aside -= (aside * unit).sum(1, keepdim=True) * unit
    x = sign * unit * math.cos(angle) + aside / aside.norm(dim=1, keepdim=True) * math.sin(angle)
    return (x * 3).to(dtype), weight.to(dtype), target


def gradient(x, weight, target, margin):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(hk.margin_softmax_loss(x, weight, target, margin=margin, scale=SCALE), x)[0]


def error(ours, truth):
    return ((ours.double() - truth).norm(dim=1) / truth.norm(dim=1)).max().item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("name", MARGINS)
def test_gradient_at_small_angles(backend, angle, name):
    x, weight, target = near(angle)
    with hk.backend("reference"):
        truth = gradient(x.double(), weight.double(), target, MARGINS[name]())
    with hk.backend(backend):
        ours = gradient(x, weight, target, MARGINS[name]())
    assert ours.dtype == torch.float32
    assert error(ours, truth) <= 5e-7 / angle


@pytest.mark.parametrize("angle", ANGLES)
def test_the_truth_is_the_textbook(angle):
    x, weight, target = near(angle, dtype=torch.float64)
    margin = hk.margins.ArcFace(0.5)
    _, truth, _ = textbook_loss_and_gradients(x, weight, target, margin, SCALE)
    with hk.backend("reference"):
        assert error(gradient(x, weight, target, margin) * len(x), truth) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-7, 5e-7])
@pytest.mark.parametrize("name", MARGINS)
def test_rounding_is_not_magnified_on_the_pole(backend, sign, angle, name):
    """float32 knows no direction there: what comes out is bounded by the gradient a little further away."""
    x, weight, target = near(angle, sign=sign)
    if angle == 0:
        x = sign * weight[target] * 3
    there = near(1e-3, sign=sign)
    with hk.backend(backend):
        bound = gradient(*there, MARGINS[name]()).norm(dim=1).max()
        ours = gradient(x, weight, target, MARGINS[name]())
    assert ours.isfinite().all() and ours.norm(dim=1).max() <= 3 * bound


def test_a_function_of_the_users_gets_the_dtype_of_the_norms():
    x, weight, target = near(1e-2)
    seen = []

    def margin(cos, norm):
        seen.append((cos.dtype, norm.dtype))
        return cos - 0.1

    loss = hk.margin_softmax_loss(x, weight, target, margin=margin)
    statistics = hk.class_statistics(x, weight, target)
    assert seen == [(torch.float32, torch.float32)]
    assert loss.dtype == statistics.target_cos.dtype == torch.float32


def test_a_margin_of_the_users_may_ask_for_float64():
    class Own(hk.margins.Margin):
        angular = True

        def __call__(self, target_cos, x_norm):
            self.seen = target_cos.dtype
            return torch.cos(torch.acos(target_cos.clamp(-1, 1)) + 0.5)

    x, weight, target = near(1e-3)
    own = Own()
    truth = gradient(x.double(), weight.double(), target, hk.margins.ArcFace(0.5))
    ours = gradient(x, weight, target, own)
    assert own.seen == torch.float64 and ours.dtype == torch.float32
    assert error(ours, truth) <= 5e-7 / 1e-3
