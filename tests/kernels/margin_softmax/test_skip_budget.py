"""skip_budget: what the backward leaves out is what it reports, and never more than was allowed.

With x the identity and nothing normalised, the logits are the weight and its gradient is theirs: dweight[j, i] / scale
is the gradient of logit z_ij. So what was dropped can be measured entry by entry, through the public function.
"""

import pytest
import torch

import hyperkernels as hk
from hyperkernels.heads.functional import check_head
from hyperkernels.kernels.margin_softmax import op as family
from tests.support import COMPILERS, report
from tests.support.margin_softmax_cases import problem

CPP = "cpp"


def random(n, c, target):
    return 3 * torch.randn(n, c, dtype=torch.float64)


def even(n, c, target):
    """Every tile weighs the same: nothing is light."""
    return torch.zeros(n, c, dtype=torch.float64)


def trained(n, c, target):
    """Most rows are learned, a few are not, and those have a handful of rivals."""
    logits = torch.randn(n, c, dtype=torch.float64)
    logits[torch.arange(n), target] += 30
    lost = torch.arange(0, n, 9)
    logits[lost, target[lost]] -= 25
    logits[lost[:, None], torch.randint(c, (len(lost), 5))] += 12
    return logits


def near_the_budget(n, c, target):
    """One rival a row holds all but about a hundredth of the gradient, which is spread over all the other classes."""
    logits = torch.zeros(n, c, dtype=torch.float64)
    logits[torch.arange(n), (target + c // 2) % c] = torch.tensor(99.0 * c, dtype=torch.float64).log()
    return logits


def extreme(n, c, target):
    """Exponents beyond what float32 holds."""
    logits = 200 * torch.randn(n, c, dtype=torch.float64)
    logits[::3] -= 1000
    return logits


def far_from_zero(n, c, target):
    """Logits near 1e5, where float32 rounds them, and their log-sum-exps, to a hundredth."""
    return 1e5 + torch.randn(n, c, dtype=torch.float64)


def gradient_of_logits(logits, target, budget, dtype, scale):
    n = len(logits)
    weight = (logits.T / scale).to(dtype).requires_grad_()
    seen = torch.zeros(2, dtype=torch.float64)
    loss = hk.margin_softmax_loss(
        torch.eye(n, dtype=dtype),
        weight,
        target,
        margin=hk.margins.NormFace(),
        scale=scale,
        normalize_x=False,
        normalize_weight=False,
        reduction="sum",
        skip_budget=budget,
        skip_report=seen,
    )
    (dweight,) = torch.autograd.grad(loss, weight)
    return weight.detach().double().T * scale, dweight.double().T / scale, *seen.tolist()


@pytest.mark.parametrize(
    "regime", [random, even, trained, near_the_budget, extreme, far_from_zero], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("budget", [1e-4, 1e-2, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropped_never_exceeds_the_report_nor_the_report_the_budget(regime, budget, dtype):
    n, c = 40, 9001
    target = torch.randint(c, (n,))
    with hk.backend(CPP):
        z, got, mass, tiles = gradient_of_logits(regime(n, c, target), target, budget, dtype, scale=16.0)
    own = torch.arange(n), target
    exact = z.softmax(1)
    exact[own] = 0
    whole = exact.sum()
    others = got.clone()
    others[own] = 0
    # An entry is dropped where nothing of it is left.
    dropped = exact[(others == 0) & (exact > 0)].sum() / whole
    tiny = 1e-30 if dtype == torch.float64 else 1e-6  # of what rounds to nothing in float32 in either case
    assert dropped <= mass + tiny
    assert 0 <= mass <= budget and 0 <= tiles <= 1
    kept = others != 0
    rtol = {torch.float64: 1e-6, torch.float32: 0.1 if regime is far_from_zero else 1e-3}[dtype]
    torch.testing.assert_close(others[kept], exact[kept], rtol=rtol, atol=1e-7)
    torch.testing.assert_close(got[own], -exact.sum(1), rtol=rtol, atol=1e-7)
    if regime is trained:
        assert tiles > 0.5
    if regime is even and budget < 1e-3:
        assert tiles == 0 and dropped <= tiny
    if budget == 1.0:
        assert tiles > 0.9 and mass > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sub_centers", [1, 3])
def test_the_gradient_is_near_the_exact_one(dtype, sub_centers):
    x, weight, target = problem(300, 6000, 32, near=2.0)
    target %= 6000 // sub_centers
    leaves = [v.detach().to(dtype).requires_grad_() for v in (x, weight)]
    exact, skipped = (
        torch.autograd.grad(
            hk.margin_softmax_loss(*leaves, target, scale=30.0, sub_centers=sub_centers, skip_budget=budget), leaves
        )
        for budget in (0.0, 1e-3)
    )
    for a, b in zip(exact, skipped, strict=True):
        error = (a.double() - b.double()).norm() / a.double().norm()
        assert 0 < error < (0.02 if dtype == torch.bfloat16 else 2e-3)


def test_a_budget_of_zero_is_exact_and_reports_nothing():
    x, weight, target = problem(30, 2000, 16)
    seen = torch.full((2,), 7.0, dtype=torch.float64)
    plain = torch.autograd.grad(hk.margin_softmax_loss(x, weight, target), (x, weight))
    zero = torch.autograd.grad(
        hk.margin_softmax_loss(x, weight, target, skip_budget=0.0, skip_report=seen), (x, weight)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))


def test_the_plan_takes_the_lightest_tiles_first():
    d_neg_lse = torch.tensor([1.0, -2.0], dtype=torch.float64)
    neg_lse = torch.zeros(2, dtype=torch.float64)
    block_lse = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04]], dtype=torch.float64).log()
    skip, (mass, tiles) = family.skip_plan(d_neg_lse, neg_lse, block_lse, 1, 0.15)
    assert skip.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert mass == pytest.approx((0.2 + 0.12 + 0.08) / 3, rel=1e-3)
    assert tiles == 0.5
    skip, (mass, tiles) = family.skip_plan(d_neg_lse, neg_lse, block_lse, 2, 0.15)
    assert skip.tolist() == [[0, 0, 1]]
    assert mass == pytest.approx(0.28 / 3, rel=1e-3)
    silent, (mass, tiles) = family.skip_plan(torch.zeros(2), torch.full((2,), -torch.inf), block_lse.float(), 1, 0.1)
    assert silent.all() and mass == 0 and tiles == 1


def test_tiles_that_must_stay_are_neither_skipped_nor_reported():
    block_lse = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04]], dtype=torch.float64).log()
    d_neg_lse, neg_lse = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    target_tile = torch.tensor([2, -1])
    skip, (mass, tiles) = family.skip_plan(d_neg_lse, neg_lse, block_lse, 2, 1.0, target_tile)
    assert skip.tolist() == [[1, 1, 0]]
    assert mass == pytest.approx(1.76 / 2, rel=1e-3) and tiles == pytest.approx(2 / 3)


def test_a_gradient_that_reaches_every_class_is_kept_whole():
    x, weight, target = problem(64, 20_000, 16)
    seen = torch.ones(2, dtype=torch.float64)
    gradients = []
    for budget in (0.0, 0.5):
        head = check_head(x, weight, target, scale=64.0, skip_budget=budget, skip_report=seen)
        s = head.statistics()
        gradients.append(torch.autograd.grad(s.neg_lse.sum() + s.neg_cos_sum.sum(), (x, weight)))
    assert not seen.any()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_module_reports_after_the_backward_in_eager_and_compiled_mode(compiler):
    torch.manual_seed(1)
    head = hk.nn.MarginSoftmax(16, 5000, scale=20.0, skip_budget=0.05)
    target = torch.randint(5000, (64,))
    x = head.weight.detach()[target].requires_grad_()
    head(x, target).backward()
    mass, tiles = head.dropped_mass.item(), head.skipped_tiles.item()
    assert 0 < mass <= 0.05 and 0 < tiles <= 1
    assert "_skip_report" not in head.state_dict()
    head._skip_report.zero_()
    torch.compile(head, fullgraph=True, backend=compiler)(x, target).backward()
    assert head.dropped_mass.item() == pytest.approx(mass, rel=1e-4)
    assert head.half()._skip_report.dtype == torch.float64


def test_backward_twice_and_a_report_shared_by_two_losses():
    x, weight, target = problem(30, 2000, 16, near=1.0)
    seen = torch.zeros(2, dtype=torch.float64)
    losses = [
        hk.margin_softmax_loss(x, weight, target, scale=s, skip_budget=0.01, skip_report=seen) for s in (20.0, 40.0)
    ]
    first = torch.autograd.grad(losses[0], (x, weight), retain_graph=True)
    before = seen.clone()
    torch.autograd.grad(losses[1], (x, weight))
    assert not torch.equal(seen, before)
    for a, b in zip(first, torch.autograd.grad(losses[0], (x, weight)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(seen, before)


def test_a_learned_batch_skips_nearly_everything():
    x, weight, target = problem(64, 20_000, 32, near=3.0)
    seen = torch.zeros(2, dtype=torch.float64)
    loss = hk.margin_softmax_loss(x, weight, target, scale=64.0, skip_budget=1e-3, skip_report=seen)
    loss.backward()
    report(f"learned batch, budget 1e-3: {seen[0]:.1e} of the gradient dropped, {seen[1]:.1%} of the tiles skipped")
    assert seen[1] > 0.5
