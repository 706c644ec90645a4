"""The Triton kernels of the pair statistics in Triton's interpreter, against the reference and its autograd.

The interpreter's bfloat16 is garbage: that dtype waits for a GPU. Tiles are far smaller than on a GPU, so that small
problems have many of them, whole and cut short.
"""

import itertools

import pytest
import torch

import hyperkernels as hk
from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.pair_mining import op
from hyperkernels.kernels.pair_mining.reference import PairProblem, Transform
from hyperkernels.kernels.pair_mining.triton import kernels as triton_kernels
from hyperkernels.kernels.pair_mining.triton import product as triton_product
from tests.support import combinations
from tests.support.accuracy import assert_as_accurate

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.float16: 1e-3}
TRANSFORMS = (Transform(), Transform("linear"), Transform("circle", 0.3, -0.2), Transform("softplus"))
SELECTS = ("positive", "negative", "all")
SIMILARITIES = ("dot", "euclidean", "squared_euclidean")

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("poisoned_memory"),
    # numpy reports what the kernels let happen on purpose: log 0, NaN and infinities past the edges.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]


def tiles(monkeypatch, rows=16, columns=32, depth=16, block=16, workspace=2**11, parts=2):
    config = triton_kernels.PairConfiguration(rows, columns, depth, 4, 2, parts)
    monkeypatch.setattr(triton_kernels, "configuration", lambda *_: config)
    monkeypatch.setattr(triton_product, "PROGRAMS", 2)
    monkeypatch.setattr(triton_product, "BLOCK", block)
    monkeypatch.setattr(triton_product, "WORKSPACE", workspace)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    tiles(monkeypatch)


class Case:
    """Inputs of one call, with a gradient for every statistic that has one."""

    def __init__(
        self, n, m, d, dtype=torch.float32, select="negative", similarity="dot", transform=TRANSFORMS[1],
        labels="codes", ids=True, window=True, columns=False, offset=True,
    ):  # fmt: skip
        accumulator = accumulate_dtype(dtype)
        self.n, self.m, self.transform = n, m, transform
        self.x = (torch.randn(n, d) / max(d, 1) ** 0.5 * 1.5).to(dtype).requires_grad_()
        ref = None if m is None else (torch.randn(m, d) / max(d, 1) ** 0.5 * 1.5).to(dtype).requires_grad_()
        sides = [self._side(size, labels, ids, window, accumulator) for size in (n, n if m is None else m)]
        (label, id, lower, upper, scale, shift), of_columns = sides[0], sides[1]
        ref_label, ref_id = (label, id) if m is None else of_columns[:2]
        self.problem = PairProblem(self.x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity)
        given = transform.name != "none"
        self.scale, self.offset = scale if given else None, shift if given and offset else None
        self.columns = None
        if columns:
            _, _, lower, upper, scale, shift = of_columns
            self.columns = op.Columns(lower, upper, scale if given else None, shift if given and offset else None)

    @staticmethod
    def _side(n, labels, ids, window, dtype):
        label = {
            "codes": lambda: torch.randint(-1, 5, (n,), dtype=torch.int32),
            "sets": lambda: torch.randint(0, 2**40, (n,)) & torch.randint(0, 2**40, (n,)) & 0x7000000F07,
            "none": lambda: torch.empty(0, dtype=torch.int32),
        }[labels]()
        id = torch.randint(-1, max(n // 2, 1), (n if ids else 0,), dtype=torch.int32)
        lower = torch.rand(n, dtype=dtype) - 3.5 if window else None
        upper = torch.rand(n, dtype=dtype) - 0.2 if window else None
        scale = torch.rand(n, dtype=dtype) * 8 - 2
        return label, id, lower, upper, scale, torch.randn(n, dtype=dtype)

    def exact(self):
        """The same in float64, with leaves of its own."""
        other = object.__new__(Case)
        other.__dict__.update(self.__dict__)

        def wide(t):
            if t is None or not t.is_floating_point():
                return t
            return t.detach().double().requires_grad_(t.requires_grad)

        other.problem = PairProblem(*(wide(t) if isinstance(t, torch.Tensor) else t for t in self.problem))
        other.x, other.scale, other.offset = other.problem.x, wide(self.scale), wide(self.offset)
        other.columns = None if self.columns is None else op.Columns(*map(wide, self.columns))
        return other

    def run(self, backend, moments=True, extremes=True):
        with hk.backend(backend):
            return op.pair_statistics(
                self.problem, self.scale, self.offset, moments, extremes, self.transform, self.columns
            )

    def leaves(self):
        leaves = [self.problem.x, self.problem.ref]
        return [t for t in leaves if t is not None]

    def gradients(self, out, incoming):
        total = 0
        for side, given in zip(out, incoming, strict=True):
            if side is None:
                continue
            for name, d in given.items():
                value = getattr(side, name)
                if value.requires_grad:
                    total = total + torch.where(side.count > 0, value, 0).to(d.dtype) @ d
        if not isinstance(total, torch.Tensor):
            return [torch.zeros_like(t) for t in self.leaves()]
        return torch.autograd.grad(total, self.leaves())

    def incoming(self):
        names = ["sum", "sum_squares"] + (["lse"] if self.transform.name != "none" else [])
        if self.transform.name == "linear":
            names.append("d_scale")
        sizes = (self.n, 0 if self.columns is None else self.m)
        return [{name: torch.randn(size, dtype=torch.float64) for name in names} for size in sizes]


def check(case, gradients=True):
    ours, theirs, truth = case.run("triton"), case.run("reference"), case.exact()
    right = truth.run("reference")
    tolerance = TOLERANCE[case.x.dtype]
    for mine, peer, wide in zip(ours, theirs, right, strict=True):
        if mine is None:
            continue
        for name, a, b, c in zip(mine._fields, mine, peer, wide, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape, name
            if a.is_floating_point():
                assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf()), name
                finite = c.isfinite()
                error = (a.double() - c)[finite].norm()
                assert error <= tolerance * c[finite].norm().clamp_min(1e-3), f"{name}: {error}"
            else:
                assert torch.equal(a, b), name
    if not gradients:
        return ours
    incoming = case.incoming()
    both = case.gradients(ours, incoming), truth.gradients(right, incoming)
    for leaf, mine, wide in zip(("x", "ref"), *both, strict=False):
        error = (mine.double() - wide).norm()
        assert error <= tolerance * wide.norm().clamp_min(1e-3), f"d{leaf}: {error} of {wide.norm()}"
    return ours


KINDS = list(itertools.product(SELECTS, SIMILARITIES, TRANSFORMS))


def turn_is_of_every_day(turn):
    """A third of them, in which each similarity has every transform and what takes turns is there and is not."""
    return (turn // 12 + turn // 4 % 3 + turn % 4) % 3 == 0


TURNS = combinations(range(len(KINDS)), everyday=turn_is_of_every_day)


@pytest.mark.parametrize("turn", TURNS, ids=lambda i: f"{KINDS[i][0]}-{KINDS[i][1]}-{KINDS[i][2].name}")
def test_every_kind(turn):
    """Ids, bounds, sets of labels, statistics of the columns and ref as x itself take turns."""
    select, similarity, transform = KINDS[turn]
    own, n, m, d = turn % 5 == 1, *((18, 40, 5) if turn % 4 == turn // 4 % 4 else (18, 32, 3))
    case = Case(
        n, None if own else m, d, select=select, similarity=similarity, transform=transform,
        labels="sets" if turn % 7 < 2 else "codes", ids=own or turn // 4 % 2 == turn % 2, window=turn % 3 > 0,
        columns=turn % 5 == 3,
    )  # fmt: skip
    if own:  # where a row meets itself its distance is a rounding error
        ids = torch.arange(n, dtype=torch.int32)
        case.problem = case.problem._replace(id=ids, ref_id=ids)
    check(case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("transform", TRANSFORMS[1:3], ids=lambda t: t.name)
def test_dtypes(dtype, transform):
    # Float16 operands are exact: what is compared with is the same numbers in float64.
    window = dtype == torch.float64
    check(Case(9, 37, 33, dtype, similarity="squared_euclidean", transform=transform, window=window))


@pytest.mark.parametrize(("select", "labels"), [("all", "none"), ("all", "sets"), ("positive", "sets")])
def test_sets_and_no_labels(select, labels):
    check(Case(10, 33, 5, select=select, labels=labels))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_columns(similarity):
    transform = TRANSFORMS[1 if similarity == "euclidean" else 3]
    check(Case(18, 35, 7, similarity=similarity, transform=transform, columns=True))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_against_itself(similarity):
    check(Case(35, None, 7, similarity=similarity, window=similarity == "dot", offset=False))


@pytest.mark.parametrize(
    ("n", "m", "d"), [(0, 5, 4), (5, 0, 4), (5, 7, 0), (1, 1, 1), (1, 40, 3), (0, None, 4), (17, 1, 2)]
)
def test_ragged(n, m, d):
    check(Case(n, m, d, select="all", labels="codes", window=False), gradients=min(n, d) > 0 and m != 0)


@pytest.mark.parametrize("select", SELECTS)
def test_sorted_labels_skip_tiles(select):
    """Tiles that labels rule out are never computed: those that are left give the same."""
    case = Case(40, 70, 6, select=select, similarity="euclidean", ids=False, window=False)
    ref_label = torch.randint(-1, 5, (70,), dtype=torch.int32).sort().values
    ref_label[32:64] = 3
    label = torch.full((40,), 3, dtype=torch.int32)
    label[16:] = torch.randint(-1, 6, (24,), dtype=torch.int32).sort().values
    label[32:] = -1
    case.problem = case.problem._replace(label=label, ref_label=ref_label)
    check(case)


@pytest.mark.parametrize("at", ["x", "ref"])
def test_nan_that_counts_shows(at):
    case = Case(20, 40, 6, labels="none", ids=False, window=True)
    with torch.no_grad():
        getattr(case.problem, at)[3, 2] = torch.nan
    rows, _ = check(case, gradients=False)
    assert rows.lse.isnan().any() and rows.max.isnan().any()


def test_nan_that_does_not_count_is_left_out():
    case = Case(20, 40, 6, ids=False, window=False)
    with torch.no_grad():
        case.x[3] = torch.nan
    case.problem.label[3] = -1
    rows, _ = check(case, gradients=False)
    assert not rows.lse.isnan().any()


POISONED = combinations(range(4), everyday=lambda turn: turn == 2)


@pytest.mark.parametrize("turn", POISONED, ids=lambda turn: TRANSFORMS[turn].name)
def test_gradients_of_rows_that_are_not_finite(turn):
    """A row that no pair counts with, for its label, its id, or as none has its label, contributes nothing. One that
    counts reaches the rows that it counts for and no others."""
    poison = (torch.nan, torch.inf)[turn % 2]
    similarity = SIMILARITIES[turn % 3]
    case = Case(12, 40, 6, similarity=similarity, transform=TRANSFORMS[turn], columns=True, select="positive")
    p = case.problem
    p.label[3], p.ref_label[[4, 35]] = -1, torch.tensor([-1, 9], dtype=torch.int32)
    p.id[:], p.ref_id[5] = 7, 7
    incoming = case.incoming()
    clean = case.gradients(case.run("triton"), incoming)
    with torch.no_grad():
        p.x[3, 2], p.ref[[4, 5]], p.ref[35, 1] = poison, poison, -poison
    for mine, right in zip(case.gradients(case.run("triton"), incoming), clean, strict=True):
        assert right.any() and torch.equal(mine, right)
    p.id[:] = -1
    case.problem = p._replace(lower=None, upper=None)
    p.label[8] = p.ref_label[5] = 2
    out = case.run("triton")
    mine = torch.autograd.grad(out[0].sum.sum(), p.x)[0]
    assert torch.equal(mine.isnan().any(1), p.label == 2)


def test_layouts_and_labels_of_any_size():
    case = Case(12, 20, 6)
    label = torch.tensor([2**31 - 1, -(2**31), -5, 7] * 5, dtype=torch.int32)
    wide = torch.randn(6, 24).T
    case.problem = case.problem._replace(
        x=wide[::2].detach().requires_grad_(), label=label[:12], ref_label=label.repeat(2)[::2], select="all"
    )
    case.x = case.problem.x
    check(case)


def test_indices_do_not_depend_on_the_tiles(monkeypatch):
    """Products of small integers are exact: ties go to the lowest index whatever the tiles."""
    case = Case(20, 70, 8, select="all", labels="none", ids=False, window=False, transform=TRANSFORMS[0])
    with torch.no_grad():
        for t in case.leaves():
            t.copy_(torch.randint(-1, 2, t.shape))
    results = []
    for rows, columns, parts in ((16, 32, 1), (16, 128, 4), (32, 16, 1)):
        tiles(monkeypatch, rows, columns, parts=parts)
        results.append(case.run("triton")[0])
    for name in ("count", "sum", "min", "max", "argmin", "argmax"):
        values = [getattr(r, name) for r in (*results, case.run("reference")[0])]
        assert all(torch.equal(values[0], v) for v in values[1:]), name


def test_accuracy_and_determinism():
    case = Case(24, 100, 33, select="all", labels="none", ids=False, window=False)
    ours, peer, right = case.run("triton"), case.run("reference"), case.exact().run("reference")
    for name in ("sum", "sum_squares", "max", "lse", "d_scale"):
        assert_as_accurate(*(getattr(r[0], name).detach() for r in (ours, peer, right)), what=name)
    incoming = case.incoming()
    first, again = (case.gradients(out, incoming) for out in (ours, case.run("triton")))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_wrong_inputs_raise():
    case = Case(6, 9, 4)
    p = case.problem
    for wrong in (
        p._replace(label=p.label[:5]), p._replace(ref_id=p.ref_id[:5]), p._replace(lower=p.lower[:5]),
        p._replace(lower=p.lower.double()), p._replace(ref=p.ref.double()), p._replace(ref=p.ref[:, :3]),
        p._replace(label=p.label.long()), p._replace(select="some"), p._replace(similarity="cosine"),
    ):  # fmt: skip
        case.problem = wrong
        with pytest.raises((TypeError, ValueError)):
            case.run("triton")
