"""The Triton kernels of the class softmax in Triton's interpreter, against the reference and its autograd.

The interpreter's bfloat16 is garbage: that dtype waits for a GPU. Tiles are far smaller than on a GPU, so that small
problems have many of them, whole and cut short.
"""

import pytest
import torch
import triton
import triton.language as tl

import hyperkernels as hk
from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.margin_softmax import op, reference
from hyperkernels.kernels.margin_softmax.negatives import KINDS, SUMS, negatives
from hyperkernels.kernels.margin_softmax.problem import ClassRowStatistics, Options
from hyperkernels.kernels.margin_softmax.rows import unit_rows
from hyperkernels.kernels.margin_softmax.triton import kernels as triton_kernels
from hyperkernels.kernels.margin_softmax.triton import plans as triton_plans
from hyperkernels.kernels.margin_softmax.triton import transforms as triton_transforms
from tests.support import combinations
from tests.support.accuracy import assert_as_accurate

IGNORED, ABSENT = -100, -7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 3e-3}
PARAMETERS = {
    "cosine": {},
    "quadratic": {"threshold": 0.05, "q2": 1.0, "q1": 0.3, "q0": 0.1, "d1": 2.0, "d0": 0.3, "easy": 0.9},
    "gaussian": {"center": 0.3, "alpha": 1.2, "sigma": 2.0},
    "angle": {"divisor": 1.5, "straight": 0.0},
    "sface": {"steepness": 20.0, "angle": 1.5},
    "sphereface2": {"margin": 0.3, "power": 3.0, "straight": 0.0},
    "uniface": {},
}
NAMES = ClassRowStatistics._fields

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("poisoned_memory"),
    # numpy reports what the kernels let happen on purpose: overflow on the way to float16, NaN past the edges.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]


class Problem:
    """Leaves and constants of one call; the first rows are ignored and absent where there are enough."""

    def __init__(self, n, c, d, dtype=torch.float32, kind="cosine", per_class=False, special=True, **options):
        self.options = Options(kind, ignore_index=IGNORED, absent_index=ABSENT)._replace(**options)
        k, accumulator = self.options.sub_centers, accumulate_dtype(dtype)
        x, weight = torch.randn(n, d) * 2, torch.randn(c * k, d) * torch.rand(c * k, 1).add(0.3)
        if not self.options.normalize_x:
            x /= 2 * d**0.5
        if not self.options.normalize_weight:
            weight /= d**0.5
        self.x, self.weight = (v.to(dtype).requires_grad_() for v in (x, weight))
        self.target = torch.randint(c, (n,))
        if special and n > 3:
            self.target[0], self.target[1] = IGNORED, ABSENT
        self.scale = (torch.rand(n, dtype=accumulator) * 10 + 8).requires_grad_()
        self.class_scale = torch.rand(c, dtype=accumulator).add(0.5).requires_grad_() if per_class else None
        self.bias = torch.randn(c, dtype=accumulator).requires_grad_() if per_class else None
        self.transform = negatives(kind, self.scale, **PARAMETERS[kind]).parameters
        self.classes = None
        self.incoming = [torch.randn(n, dtype=accumulator) for _ in range(4)]

    def arguments(self):
        tensors = (self.x, self.weight, self.target, self.scale, self.class_scale, self.bias, self.transform)
        return (*tensors, self.classes, *self.options)

    def leaves(self):
        # The kernels give no gradient to the scale of a sum, which is a constant of those losses; sface has no bias.
        scale = None if self.options.negatives in SUMS else self.scale
        bias = None if self.options.negatives == "sface" else self.bias
        return [t for t in (self.x, self.weight, scale, self.class_scale, bias) if t is not None]

    def kernels(self, block=32, skip_budget=0.0, skip_report=None):
        return torch.ops.hyperkernels.class_statistics_triton(*self.arguments(), block, 0, skip_budget, skip_report)

    def gradients(self, statistics, leaves=None):
        """Of a sum over the four differentiable statistics, where they are finite."""
        loss = sum(
            (torch.where(statistics[i].isfinite(), statistics[i], 0) * d).sum()
            for i, d in zip((0, 1, 2, 5), self.incoming, strict=True)
        )
        return [g.to_dense() for g in torch.autograd.grad(loss, leaves or self.leaves())]


def checked(problem, block=32):
    """What the kernels give: statistics and gradients, as close to the reference's as they must be."""
    tolerance = TOLERANCE[problem.x.dtype]
    # Statistics come from float32 sums of exact products, whatever the inputs: a tie broken by rounding is no error.
    close = min(tolerance, 2e-5)
    truth, ours = reference.class_statistics(*problem.arguments()), problem.kernels(block)
    for name, mine, right in zip(NAMES, ours, truth, strict=False):
        assert mine.dtype == right.dtype, name
        torch.testing.assert_close(mine, right, rtol=close, atol=close, msg=lambda m, name=name: f"{name}: {m}")
    gradients = problem.gradients(ours)
    for i, (mine, right) in enumerate(zip(gradients, problem.gradients(truth), strict=True)):
        assert mine.dtype == right.dtype and mine.isfinite().all()
        error, size = (mine.double() - right.double()).norm(), right.double().norm()
        assert error <= tolerance * size + 1e-7, f"gradient {i}: {error:.2e} of {size:.2e}"
    return ours, gradients


def check(problem, block=32):
    return checked(problem, block)[0]


def kind_is_of_every_day(kind, dtype):
    return kind == "cosine" or dtype == torch.float32


@pytest.mark.parametrize(("kind", "dtype"), combinations(KINDS, TOLERANCE, everyday=kind_is_of_every_day))
def test_kinds(kind, dtype):
    check(Problem(9, 50, 24, dtype, kind))


@pytest.mark.parametrize("kind", combinations(KINDS, everyday=lambda kind: kind in ("cosine", "quadratic")))
def test_numbers_per_class(kind):
    check(Problem(9, 50, 20, torch.float32, kind, per_class=True))


@pytest.mark.parametrize("sub_centers", combinations([2, 3], everyday=lambda k: k == 3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sub_centers(sub_centers, dtype):
    check(Problem(9, 41, 24, dtype, per_class=dtype == torch.float32, sub_centers=sub_centers), 16)


@pytest.mark.parametrize("normalize_x", [False, True])
@pytest.mark.parametrize("normalize_weight", [False, True])
def test_flags(normalize_x, normalize_weight):
    check(Problem(7, 40, 24, normalize_x=normalize_x, normalize_weight=normalize_weight))


@pytest.mark.parametrize("kind", ["angle", "sphereface2"])
def test_straight_slopes(kind, monkeypatch):
    monkeypatch.setitem(PARAMETERS[kind], "straight", 1.0)
    for power in (1.0, 6.0, 8.0) if kind == "sphereface2" else (0.0,):
        monkeypatch.setitem(PARAMETERS[kind], "power" if power else "straight", power or 1.0)
        check(Problem(5, 30, 16, kind=kind))


SHAPES = [(1, 1, 1), (3, 1, 5), (5, 32, 64), (33, 65, 3), (130, 20, 8)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.slow) for shape in ((1, 200, 8), (17, 300, 70), (9, 70, 300))]


@pytest.mark.parametrize(("n", "c", "d"), SHAPES)
def test_ragged(n, c, d):
    check(Problem(n, c, d))


@pytest.mark.parametrize(("dtype", "n", "c", "d"), [(torch.float16, 33, 300, 72), (torch.float32, 20, 150, 40)])
def test_production_tiles(dtype, n, c, d):
    check(Problem(n, c, d, dtype), triton_plans.tile_classes(d, dtype, 1))


@pytest.mark.parametrize("kind", combinations(["cosine", "quadratic", "sface"], everyday=lambda kind: kind == "cosine"))
@pytest.mark.parametrize("sub_centers", [1, 2])
def test_chunks_of_classes(kind, sub_centers, monkeypatch):
    """Two tiles at a time: running statistics, chunks of H and the last, shorter one fit together."""
    monkeypatch.setattr(triton_kernels, "WORKSPACE", 9 * 16 * 16 * 4 * sub_centers)
    check(Problem(9, 90, 20, torch.float32, kind, per_class=True, sub_centers=sub_centers), 16)


def test_lowest_class_wins_ties():
    problem = Problem(4, 100, 16, special=False)
    with torch.no_grad():
        problem.weight[70] = problem.weight[41] = problem.weight[43] = problem.x[2]
        problem.target[2] = 9
    assert check(problem, 16)[4][2] == 41


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_lengths(dtype):
    """Rows of nothing, rows whose squares overflow or vanish, a sample on its centre."""
    problem = Problem(12, 60, 32, dtype)
    large, small = (1e30, 1e-30) if dtype == torch.float32 else (3e4, 1e-6)
    with torch.no_grad():
        problem.x[2] = 0
        problem.weight[3] = 0
        problem.x[4] *= large / problem.x[4].abs().max()
        problem.weight[5] *= large / problem.weight[5].abs().max()
        problem.x[6] *= small / problem.x[6].abs().max()
        problem.weight[problem.target[7]] = problem.x[7]
        problem.x[0] = torch.nan  # ignored
    problem = problem if dtype == torch.float16 else with_floor(problem, 1e-35)
    ours, truth = problem.kernels(), reference.class_statistics(*problem.arguments())
    for name, mine, right in zip(NAMES, ours, truth, strict=False):
        torch.testing.assert_close(mine, right, rtol=2e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
    for mine, right in zip(problem.gradients(ours)[:2], problem.gradients(truth)[:2], strict=True):
        # Relative to each row: their gradients differ by as much as their lengths, and float16 may end before them.
        fits = right.isfinite() & mine.isfinite()
        assert (fits == right.isfinite()).double().mean() > 0.99
        error = torch.where(fits, mine.double() - right.double(), 0).norm(dim=1)
        size = torch.where(fits, right, 0).double().norm(dim=1)
        assert (error <= (0.01 if dtype == torch.float16 else 1e-4) * size + 1e-5).all()


def with_floor(problem, eps):
    problem.options = problem.options._replace(eps=eps)
    return problem


def test_rows_below_the_floor():
    check(with_floor(Problem(8, 40, 16), 4.0))


def test_gradients_scaled_up_in_float16():
    """What a GradScaler multiplies the loss with goes through H and comes out again."""
    problem = Problem(9, 50, 24, torch.float16)
    plain = problem.gradients(problem.kernels())[0]
    problem.incoming = [d * 65536 for d in problem.incoming]
    scaled = problem.gradients([s.double() for s in problem.kernels()])[0]
    fits = scaled.isfinite()
    assert fits.double().mean() > 0.5
    torch.testing.assert_close(scaled[fits].double() / 65536, plain[fits].double(), rtol=2e-3, atol=1e-4)


def test_accuracy_rule():
    """Against float64 the loss and gradients err at most twice as much as the reference in float32."""
    problem = Problem(24, 200, 64, special=False)
    exact = Problem(24, 200, 64, torch.float64, special=False)
    for name in ("x", "weight", "scale"):
        setattr(exact, name, getattr(problem, name).detach().double().requires_grad_())
    exact.target, exact.incoming = problem.target, [d.double() for d in problem.incoming]
    ours, peer = problem.kernels(64), reference.class_statistics(*problem.arguments())
    truth = reference.class_statistics(*exact.arguments())
    for i in (0, 1, 2, 3, 5):
        assert_as_accurate(ours[i], peer[i], truth[i], what=NAMES[i])
    gradients = zip(problem.gradients(ours), problem.gradients(peer), exact.gradients(truth), strict=True)
    for mine, theirs, right in gradients:
        assert_as_accurate(mine, theirs, right, what="gradient")


def test_target_out_of_range():
    problem = Problem(6, 20, 16, special=False)
    problem.target[2], problem.target[4] = 20, -3
    ours = problem.kernels()
    rows = torch.tensor([2, 4])
    assert ours[0][rows].isnan().all() and ours[1][rows].isnan().all()
    rest = torch.tensor([0, 1, 3, 5])
    problem.target[rows] = ABSENT
    torch.testing.assert_close(ours[0][rest], problem.kernels()[0][rest])


def test_all_rows_ignored_and_no_rows():
    problem = Problem(5, 20, 16)
    problem.target[:] = IGNORED
    assert (check(problem)[0] == -torch.inf).all()
    assert all((g == 0).all() for g in problem.gradients(problem.kernels()))
    empty = Problem(0, 20, 16)
    assert all((g == 0).all() for g in empty.gradients(empty.kernels()))


@pytest.mark.parametrize(("n", "sub_centers"), [(9, 2), pytest.param(130, 1, marks=pytest.mark.slow)])
def test_skipped_tiles(n, sub_centers):
    """The gradient is that of the tiles that count: those kept by the plan and those that hold a target."""
    block, c = 16, 90
    problem = Problem(n, c, 16, sub_centers=sub_centers)
    problem.target[problem.target >= 64] -= 64  # the last tiles hold no target
    problem.incoming[3].zero_()
    report = torch.full((2,), torch.nan, dtype=torch.float64)
    ours = problem.kernels(block, 0.4, report)
    block_lse = ours[13]
    torch.testing.assert_close(block_lse.logsumexp(1)[2:], ours[0].detach()[2:], rtol=1e-5, atol=1e-5)
    # Without a gradient for neg_cos_sum: it reaches every class, and nothing would be left out.
    finite = [torch.where(v.isfinite(), v, 0) for v in ours[:3]]
    mine = torch.autograd.grad(finite, problem.leaves()[:2], problem.incoming[:3])
    assert 0 < report[0] <= 0.4 and 0 < report[1] < 1

    target_tile = torch.where(problem.target >= 0, problem.target // block, -1)
    d_neg_lse = problem.incoming[0] * ours[0].isfinite()
    plan, _ = op.skip_plan(d_neg_lse, ours[0].detach(), block_lse, 128, 0.4, target_tile)
    out = plan.bool()
    assert out.any()
    for i, tile in enumerate(target_tile.tolist()):
        assert tile < 0 or not out[i // 128, tile]
    out = out.repeat_interleave(block, 1)[:, :c].repeat_interleave(128, 0)[:n]
    # The reference, with the cosines of those entries held constant.
    leaves = problem.leaves()
    x_hat, x_norm = unit_rows(torch.where(problem.target[:, None] == IGNORED, 0, problem.x), 1e-12)
    cos = x_hat @ unit_rows(problem.weight, 1e-12)[0].T
    cos = cos.view(n, c, sub_centers).amax(2)
    cos = torch.where(out, cos.detach(), cos)
    level = torch.where(out, problem.scale.detach()[:, None], problem.scale[:, None]) * cos
    own = torch.arange(c) == problem.target[:, None]
    active = problem.target != IGNORED
    neg_lse = level.masked_fill(own, -torch.inf).logsumexp(1)
    loss = torch.where(active, neg_lse, 0) @ problem.incoming[0]
    loss = loss + torch.where(own, cos, 0).sum(1) @ problem.incoming[1] + x_norm @ problem.incoming[2]
    for leaf, a, b in zip("xw", mine, torch.autograd.grad(loss, leaves[:2]), strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, leaf=leaf: f"{leaf}: {m}")


def test_only_what_is_needed():
    problem = Problem(5, 40, 16, per_class=True)
    for leaf in problem.leaves():
        for other in problem.leaves():
            other.requires_grad_(other is leaf)
        (alone,) = problem.gradients(problem.kernels(), [leaf])
        (right,) = problem.gradients(reference.class_statistics(*problem.arguments()), [leaf])
        torch.testing.assert_close(alone, right, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["angle", "sphereface2"])
def test_gradients_in_float64(kind):
    """The slopes of the kinds that hold no factor constant are those of their values."""
    problem = Problem(2, 14, 4, torch.float64, kind, special=False)

    def statistics(x, weight):
        problem.x, problem.weight = x, weight
        return sum(problem.kernels(16)[i] @ d for i, d in zip((0, 1, 2, 5), problem.incoming, strict=True))

    if kind in SUMS:
        problem.incoming[0].zero_()
    assert torch.autograd.gradcheck(statistics, (problem.x, problem.weight), fast_mode=True)


@triton.jit
def transformed(cos_ptr, transform_ptr, scale_ptr, value_ptr, slope_ptr, KIND: tl.constexpr, N: tl.constexpr):
    cos = tl.load(cos_ptr + tl.arange(0, N))[:, None]
    row = tl.arange(0, N).to(tl.int64)
    scale = tl.load(scale_ptr + row)[:, None]
    value, slope, _ = triton_transforms._transform(KIND, cos, transform_ptr, row, row >= 0, scale, cos * 0)
    tl.store(value_ptr + row[:, None], value)
    tl.store(slope_ptr + row[:, None], tl.broadcast_to(slope, [N, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["angle", "sface", "sphereface2", "uniface"])
def test_elementary_functions(kind, dtype):
    """acos, cos, softplus and sigmoid are arithmetic here: they hold over all cosines, the ends included."""
    n = 4096
    cos = torch.linspace(-1.0, 1.0, n, dtype=torch.float64).to(dtype).requires_grad_()
    scale = torch.full((n,), 64.0, dtype=dtype)
    transform = negatives(kind, scale, **PARAMETERS[kind]).parameters
    value, slope = torch.empty(n, dtype=dtype), torch.empty(n, dtype=dtype)
    transformed[(1,)](cos.detach(), transform, scale, value, slope, KIND=kind, N=n)
    exact = cos.detach().double().requires_grad_()
    wide = None if transform is None else transform.double()
    truth = reference.transform_cosines(kind, exact[:, None], wide, scale.double(), None)[:, 0]
    (right,) = torch.autograd.grad(truth.sum(), exact)
    unit = 64 * torch.finfo(dtype).eps
    # Next to the ends the slope of an angle is a quotient of two small numbers.
    inner = exact.detach().abs() < 0.9999
    for mine, other, at in ((value, truth.detach(), inner | True), (slope, right, inner)):
        size = other.abs().max() if kind in ("angle", "sface") else other.abs()
        worst = ((mine.double() - other).abs() / size.clamp_min(1e-300))[at].max()
        assert worst < (16 if kind == "sface" else 2) * unit, worst


def test_offsets_of_far_classes_do_not_wrap(monkeypatch):
    """The last tile of a weight of more than 2^31 elements, of which only that tile's pages are ever touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    n, c, d, block = 5, 2**21 + 40, 1024, 32
    first = c // block  # the last tile, which is cut short
    near = Problem(n, c - first * block, d, torch.float16, special=False)
    far = Problem(n, 1, d, torch.float16, special=False)
    far.x, far.scale, far.incoming = near.x, near.scale, near.incoming
    far.weight = torch.empty(c, d, dtype=torch.float16)
    far.weight[first * block :] = near.weight.detach()
    far.weight.requires_grad_()
    far.target = near.target + first * block
    norms = torch.ones(c)
    norms[first * block :] = near.weight.detach().float().norm(dim=1)
    right, truth = near.kernels(block), near.gradients(near.kernels(block), [near.x, near.weight])
    monkeypatch.setattr(triton_kernels.Launches, "chunks", lambda *_: [(first, 1)])
    monkeypatch.setattr(triton_kernels.Launches, "center_norms", lambda _, out: out.copy_(norms))
    ours = far.kernels(block)
    for name, mine, other in zip(NAMES, ours, right, strict=False):
        offset = first * block if name == "hardest_class" else 0
        torch.testing.assert_close(mine, other + offset, rtol=1e-6, atol=1e-6)
    dx, dweight = far.gradients(ours, [far.x, far.weight])
    torch.testing.assert_close(dx, truth[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(dweight[first * block :], truth[1], rtol=1e-3, atol=1e-5)


def test_determinism():
    problem = Problem(20, 100, 24, per_class=True)
    first, second = problem.kernels(), problem.kernels()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(problem.gradients(first), problem.gradients(second), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_through_the_public_function(dtype, monkeypatch):
    monkeypatch.setattr(triton_plans, "tile_classes", lambda *_: 16)
    x, weight = (torch.randn(n, 24).to(dtype).requires_grad_() for n in (6, 50))
    target = torch.randint(50, (6,))
    results = {}
    for name in ("triton", "reference"):
        with hk.backend(name):
            loss = hk.margin_softmax_loss(x, weight, target, label_smoothing=0.1)
            results[name] = (loss.detach(), *torch.autograd.grad(loss, (x, weight)))
    for mine, right in zip(*results.values(), strict=True):
        assert mine.dtype == right.dtype
        assert (mine - right).double().norm() <= TOLERANCE[dtype] * right.double().norm()
