"""A row into which no gradient flows: it gets none, and nothing of it reaches anyone else, be it NaN or infinite."""

import pytest
import torch

import hyperkernels as hk
from tests.support.margin_softmax_cases import BACKENDS, problem

BAD = 2  # the row that is masked out
WAYS = {
    "plain": {},
    "computed again": {"workspace": 0},
    "sub-centres": {"sub_centers": 3},
    "few classes": {"classes": torch.arange(0, 600, 2)},
    "skipped": {"skip_budget": 0.05},
    "norms": {"margin": hk.margins.MagFace()},
    "hard negatives": {"margin": hk.margins.NPCFace()},
    "smoothed": {"label_smoothing": 0.1},
}


def masked_gradients(x, weight, target, value, loss, extra=()):
    """Of the sum of the losses of all rows but BAD, whose x holds `value`."""
    x = x.detach().clone()
    x[BAD, 3] = value
    leaves = [v.detach().clone().requires_grad_() for v in (x, weight, *extra)]
    losses = loss(leaves[0], leaves[1], target, *leaves[2:])
    keep = torch.arange(len(x)) != BAD
    gradients = torch.autograd.grad(losses[keep].sum(), leaves)
    return [g.to_dense() for g in gradients]


def check(x, weight, target, loss, extra=()):
    wanted = masked_gradients(x, weight, target, 1.0, loss, extra)
    assert all(g.isfinite().all() and g.any() for g in wanted) and not wanted[0][BAD].any()
    for value in (torch.nan, torch.inf, -torch.inf):
        got = masked_gradients(x, weight, target, value, loss, extra)
        for ours, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, right, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_a_row_without_gradient_reaches_no_one(backend, dtype, way):
    options = {"margin": hk.margins.ArcFace(0.3), **WAYS[way]}
    x, weight, target = problem(9, 600 * options.get("sub_centers", 1), 24, dtype)
    target = target % 300 * 2

    def loss(x, weight, target, scale, class_scale, bias):
        return hk.margin_softmax_loss(
            x, weight, target, scale=scale, class_scale=class_scale, bias=bias, reduction="none", **options
        )

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    extra = (torch.tensor(16.0, dtype=wide), torch.rand(600, dtype=wide) + 0.5, torch.randn(600, dtype=wide))
    with hk.backend(backend):
        check(x, weight, target, loss, extra)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["sface", "sphereface2", "uniface"])
def test_sums_over_the_classes(backend, name):
    x, weight, target = problem(9, 300, 24)

    def loss(x, weight, target, *bias):
        return getattr(hk, f"{name}_loss")(x, weight, target, *bias, reduction="none")

    with hk.backend(backend):
        check(x, weight, target, loss, () if name == "sface" else (torch.tensor(-1.0),))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_that_counts_is_not_hidden(backend):
    x, weight, target = (v.detach() for v in problem(9, 300, 24))
    x[BAD] = torch.nan
    leaves = [v.clone().requires_grad_() for v in (x, weight)]
    with hk.backend(backend):
        losses = hk.margin_softmax_loss(*leaves, target, reduction="none")
        dx, dweight = torch.autograd.grad(losses.sum(), leaves)
    assert losses.isnan().nonzero().tolist() == [[BAD]]
    assert dx[BAD].isnan().all() and dx[:BAD].isfinite().all() and dweight.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_statistics_themselves(backend):
    x, weight, target = problem(9, 300, 24)

    def loss(x, weight, target):
        found = hk.class_statistics(x, weight, target)
        return found.neg_lse + found.target_cos + found.x_norm + found.neg_cos_sum

    with hk.backend(backend):
        check(x, weight, target, loss)
