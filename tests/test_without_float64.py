"""The reference backend on a device that has no float64, such as MPS.

The device is the CPU, with two changes: the one function that knows which devices have float64 says that this one has
not, and every op that makes or takes a float64 tensor raises what MPS raises.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hyperkernels as hk
from hyperkernels import _dtypes
from hyperkernels.kernels.pair_mining import reference
from tests import recorded
from tests.support.accuracy import assert_as_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAMILIES = {
    "losses": recorded._losses, "miners": recorded._miners, "heads": recorded._heads, "sphere": recorded._sphere,
    "optim": recorded._optim,
}  # fmt: skip


class NoFloat64(TorchDispatchMode):
    """A float64 tensor without dimensions may come in: Python's numbers reach an op as such, on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [v for v in tree_leaves((args, kwargs)) if not isinstance(v, torch.Tensor) or v.dim() > 0]
        if any(v is torch.float64 or getattr(v, "dtype", None) is torch.float64 for v in (*given, *tree_leaves(out))):
            raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype as MPS doesn't support float64: {func}")
        return out


@pytest.fixture
def no_float64(monkeypatch):
    """A context in which there is none, for the reference backend."""

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch, NoFloat64(), hk.backend("reference"):
            patch.setattr(_dtypes, "has_float64", lambda device: False)
            yield

    return context


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.double(),
        lambda x: torch.zeros(2, dtype=torch.float64),
        lambda x: torch.tensor([1.0], dtype=torch.float64),
        lambda x: torch.rand((), dtype=torch.float64),
        lambda x: x + torch.ones(1, dtype=torch.float32).to(torch.float64),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: Widened.apply(x).sum().backward(),
    ],
)
def test_what_is_refused(run, no_float64):
    x = torch.ones(3, requires_grad=True)
    with no_float64(), pytest.raises(TypeError, match="float64"):
        run(x)


class Widened(torch.autograd.Function):
    """float64 in the backward alone."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return (grad.double() * 2).float()


def test_what_is_not_refused(no_float64):
    x = torch.ones(3, requires_grad=True)
    with no_float64():
        (torch.where(x > 0.5, 2.0, x) * 0.1 + 1 / 3).sum().backward()


CALLS = [
    pytest.param(family, dtype, marks=pytest.mark.slow if family == "losses" and dtype != torch.float32 else ())
    for family in FAMILIES
    for dtype in DTYPES
]


@pytest.mark.parametrize(("family", "dtype"), CALLS, ids=str)
def test_every_public_function(family, dtype, no_float64):
    """With its gradients; and what it returns is finite or not where it is so on a device that has float64."""
    failed, ran, left_out = {}, 0, 0
    for name, call in FAMILIES[family](16, 7, dtype):
        with hk.backend("reference"):
            try:
                usual = numbers(call())
            except (TypeError, ValueError):  # of options that this function does not take, or not together
                left_out += 1
                continue
        try:
            with no_float64():
                found = numbers(call())
        except TypeError as error:
            failed[name] = error
            continue
        ran += 1
        for mine, other in zip(found, usual, strict=True):
            assert torch.equal(mine.isfinite(), other.isfinite()), name
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert ran > 4 * left_out


def test_a_head_that_reports_moves_there(no_float64):
    with no_float64():
        head = hk.nn.MarginSoftmax(7, 40, skip_budget=0.05, scale=8.0)
        head.to("cpu").half().float()
        head(torch.randn(5, 7), torch.arange(5)).backward()
        assert head.dropped_mass.dtype == torch.float32
        norm = hk.distributed.clip_grad_norm_(head, 0.1)
    assert norm.isfinite() and torch.linalg.vector_norm(head.weight.grad) <= 0.1 + 1e-6


def numbers(out):
    """The floating tensors in a result."""
    found = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return [t.to_dense() if t.is_sparse else t for t in found]


def gradients(function, *leaves):
    """The value, and the gradients to the leaves."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    weights = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float32).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out.dtype))]


def arc_face(x, weight):
    target = torch.arange(len(x)) % len(weight)
    cos = F.normalize(x) @ F.normalize(weight).T
    own = torch.cos(torch.acos(cos.gather(1, target[:, None])) + 0.3)
    return F.cross_entropy(16 * cos.scatter(1, target[:, None], own), target, reduction="none")


def multi_similarity(x, _):
    """With alpha = 2, beta = 5 and base = 0.5, without mining."""
    labels = torch.arange(len(x)) % 3
    same = labels[:, None] == labels
    unit = F.normalize(x)
    s = unit @ unit.T
    positive = torch.where(same & ~torch.eye(len(x), dtype=torch.bool), torch.exp(-2 * (s - 0.5)), 0).sum(1)
    negative = torch.where(same, 0, torch.exp(5 * (s - 0.5))).sum(1)
    return torch.log1p(positive) / 2 + torch.log1p(negative) / 5


def slerp(x, y):
    x, y = F.normalize(x), F.normalize(y)
    angle = torch.acos((x * y).sum(1, keepdim=True))
    return (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)


def supcon(x, _):
    labels = torch.arange(len(x)) % 3
    unit, own = F.normalize(x), torch.eye(len(x), dtype=torch.bool)
    logits = (unit @ unit.T / 0.2).masked_fill(own, -torch.inf)
    positive = (labels[:, None] == labels) & ~own
    share = torch.where(positive, logits - torch.logsumexp(logits, 1, keepdim=True), 0)
    return -share.sum(1) / positive.sum(1)


def labels_of(x):
    return torch.arange(len(x)) % 3


def log_norm_in_space(kappa, _):
    """The constant of von Mises and Fisher in three dimensions."""
    return (kappa / (4 * torch.pi * torch.sinh(kappa))).log()


def concentrations(x):
    return 1 + 2 * x.abs().clamp_max(6)


PEERS = {
    "unit_norm": (lambda x, y: hk.unit_norm(x), lambda x, y: F.normalize(x)),
    "angle": (hk.sphere.angle, lambda x, y: torch.acos(F.cosine_similarity(x, y))),
    "slerp": (lambda x, y: hk.sphere.slerp(x, y, 0.3), slerp),
    "vmf_log_norm": (
        lambda x, y: hk.sphere.vmf_log_norm(concentrations(x), 3),
        lambda x, y: log_norm_in_space(concentrations(x), y),
    ),
    "vmf_mean_length": (
        lambda x, y: hk.sphere.vmf_mean_length(concentrations(x), 3),
        lambda x, y: 1 / torch.tanh(concentrations(x)) - 1 / concentrations(x),
    ),
    "margin_softmax_loss": (
        lambda x, y: hk.margin_softmax_loss(
            x, y, torch.arange(len(x)) % len(y), margin=hk.margins.ArcFace(0.3), scale=16.0, reduction="none"
        ),
        arc_face,
    ),
    "supcon": (lambda x, y: hk.losses.supcon(x, labels_of(x), temperature=0.2, reduction="none"), supcon),
    "multi_similarity": (
        lambda x, y: hk.losses.multi_similarity(
            x, labels_of(x), alpha=2.0, beta=5.0, base=0.5, epsilon=None, reduction="none"
        ),
        multi_similarity,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_no_less_accurate_than_pytorch(name, dtype, no_float64):
    ours, peer = PEERS[name]
    given = [torch.randn(12, 9).to(dtype), torch.randn(12, 9).to(dtype)]
    leaves = given if name in ("angle", "slerp", "margin_softmax_loss") else given[:1]

    def of(function):
        return lambda *x: function(*x, *given[len(x) :])

    with no_float64():
        found = gradients(of(ours), *leaves)
    theirs = gradients(of(peer), *leaves)
    truth = gradients(of(peer), *(leaf.double() for leaf in leaves))
    for mine, other, right in zip(found, theirs, truth, strict=True):
        assert_as_accurate(mine, other.to(mine.dtype), right, what=name)


def steps(kind, options, points, slopes):
    weight = torch.nn.Parameter(points.clone())
    optimizer = kind([weight], **options)
    for slope in slopes:
        weight.grad = slope.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}), ("AdamW", {"lr": 0.01, "weight_decay": 0.1})],
)
def test_optimizers_are_no_less_accurate_than_pytorch(name, options, dtype, no_float64):
    points, slopes = torch.randn(5, 7).to(dtype), [torch.randn(5, 7).to(dtype) for _ in range(200)]
    peer = getattr(torch.optim, name)
    with no_float64():
        found = steps(getattr(hk.optim, name), options, points, slopes)
    truth = steps(peer, options, points.double(), [slope.double() for slope in slopes])
    assert_as_accurate(found, steps(peer, options, points, slopes), truth, what=name)


def test_random_numbers_of_draws(no_float64):
    """The logarithm of an exponential variable, also of the random numbers whose neighbours float32 rounds to 2^32."""
    bits = torch.tensor([0, 1, 77, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 200, 2**32 - 2, 2**32 - 1])
    truth = reference._log_exponential(bits)
    with no_float64():
        found = reference._log_exponential(bits)
    assert truth.dtype == torch.float64
    torch.testing.assert_close(found, truth.float(), rtol=4e-7, atol=4e-7)


def test_vmf(no_float64):
    mu, kappa = F.normalize(torch.randn(5, 6)), torch.tensor([0.0, 0.5, 3.0, 40.0, 900.0], requires_grad=True)
    truth = hk.sphere.vmf_log_prob(mu.double(), mu.double(), kappa.double())
    length = hk.sphere.vmf_mean_length(kappa.detach().double(), 6)
    some = length[1:4].float()
    with no_float64():
        found = hk.sphere.vmf_log_prob(mu, mu, kappa)
        found.sum().backward()
        again = hk.sphere.vmf_concentration(some, 6)
        drawn = hk.sphere.sample_vmf(mu, 40.0, 2000)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(kappa.grad.double(), 1 - length, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, kappa.detach()[1:4], rtol=1e-5, atol=1e-6)
    mean = (drawn * mu).sum(-1).mean()
    assert abs(mean - length[3]) < 0.01, mean
