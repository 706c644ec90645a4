"""Statistics over blocks of columns, merged, and their gradients block by block, are those over all columns at once."""

import contextlib
from itertools import pairwise

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.pair_mining import blocks, op
from tests.support.pair_cases import make

BOUNDS = (0, 5, 5, 6, 13)  # one block is empty
TILE = op.Tile(4, 8)


def part(problem, columns):
    ref_id = problem.ref_id[columns] if problem.ref_id.numel() else problem.ref_id
    return problem._replace(ref=problem.ref[columns], ref_label=problem.ref_label[columns], ref_id=ref_id)


def statistics(case, problem, columns):
    return op.pair_statistics(problem, case.scale, case.offset, case.moments, False, case.transform, columns, TILE)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("similarity", ["dot", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("transform", ["none", "linear", "softplus"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("select", ["positive", "negative", "all"])
def test_blocks(reference, similarity, transform, both, select):
    torch.manual_seed(3)
    case = make(
        n=9, m=13, d=4, select=select, similarity=similarity, transform=transform, scale=2.0, id="shared", columns=both,
        extremes=False,
    )  # fmt: skip
    with hk.backend("reference") if reference else contextlib.nullcontext():
        x, ref = (v.detach().requires_grad_() for v in case.problem[:2])
        columns = case.columns._replace(lower=None, upper=None) if both else None
        truth = statistics(case, case.problem._replace(x=x, ref=ref), columns)
        sides = [side for side in truth if side is not None]
        names = ["sum", "sum_squares", *(["lse"] if transform != "none" else [])]
        given = [torch.randn_like(getattr(side, name)) for side in sides for name in names]
        values = [getattr(side, name) for side in sides for name in names]
        finite = [torch.where(v.isfinite(), v, 0) for v in values]  # rows without a pair
        wanted = torch.autograd.grad(sum((g * v).sum() for g, v in zip(given, finite, strict=True)), [x, ref])

        problem = case.problem._replace(x=x.detach(), ref=ref.detach())
        slices = [slice(*bounds) for bounds in pairwise(BOUNDS)]
        found = []
        for here in slices:
            own = op.Columns(*(None if v is None else v[here] for v in columns)) if both else None
            found.append(statistics(case, part(problem, here), own))
        rows = blocks.merged([of_rows for of_rows, _ in found], case.transform)
        for name in ("count", "sum", "sum_squares", "lse", "d_scale", "d_offset"):
            torch.testing.assert_close(getattr(rows, name), getattr(truth[0], name).detach(), rtol=1e-10, atol=1e-10)

        def side(scale, offset, of, gradients):
            by_name = dict(zip(names, gradients, strict=True))
            zero = torch.zeros_like(of.sum).detach()
            c0 = torch.where(of.lse.isfinite(), by_name["lse"] * scale, 0) if "lse" in by_name else zero
            if transform == "softplus":
                c0 = by_name["lse"] * scale
            coefficients = torch.stack([c0, zero, by_name["sum"], 2 * by_name["sum_squares"]]).detach()
            return blocks.RowSide(coefficients, scale, offset, of.lse.detach())

        of_rows = side(case.scale, case.offset, truth[0], given[: len(names)])
        of_columns = side(columns.scale, columns.offset, truth[1], given[len(names) :]) if both else None
        dx, dref = torch.zeros_like(x), torch.zeros_like(ref)
        for here in slices:
            problem_here = part(problem, here)
            own = None if of_columns is None else of_columns.part(here)
            a, b = blocks.gradients(problem_here, case.transform, of_rows, own, TILE, True, True)
            only_x, nothing = blocks.gradients(problem_here, case.transform, of_rows, own, TILE, True, False)
            assert torch.equal(a, only_x) and not nothing.numel()
            dx += a
            dref[here] += b
        torch.testing.assert_close(dx, wanted[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dref, wanted[1], rtol=1e-9, atol=1e-9)
