"""The Triton kernels of the optimisers on the sphere in Triton's interpreter, whose bfloat16 is garbage: that dtype
waits for a GPU."""

import pytest
import torch

import hyperkernels as hk
from hyperkernels.kernels.optim.triton import sphere as triton_sphere
from hyperkernels.kernels.triton.rows import row_blocks
from tests.support import sphere_optim_cases as cases
from tests.support.launchers import launchers

TRITON = {kind: getattr(launchers, f"sphere_{kind}_") for kind in ("sgd", "adam")}
pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_against_the_loop_by_hand(kind, name, dtype):
    cases.check(TRITON[kind], kind, name, dtype=dtype, grad_scale=8.0)


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
def test_vectors_of_more_than_a_block(kind, name, monkeypatch):
    monkeypatch.setattr(
        triton_sphere, "configuration", lambda dim, _: {"blocks": row_blocks(dim, 2, 16), "num_warps": 1}
    )
    cases.check(TRITON[kind], kind, name, shapes=[(5, 37), (2, 64)])


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
def test_scaler_and_learning_rate(kind, name):
    cases.check_skipped(TRITON[kind], kind, name)


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
def test_the_last_step(kind, name):
    cases.check_last_step(TRITON[kind], kind, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_edges(dtype):
    cases.check_edges(TRITON, dtype)


@pytest.mark.parametrize("block", [64, 16])
@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 100), (torch.float64, 600), (torch.float64, 1000)])
def test_long_points(dtype, power, block, monkeypatch):
    monkeypatch.setattr(
        triton_sphere, "configuration", lambda dim, _: {"blocks": row_blocks(dim, 2, block), "num_warps": 1}
    )
    cases.check_long_points(TRITON, dtype, power)


@pytest.mark.parametrize("block", [64, 16])
def test_ends_out_of_range(block, monkeypatch):
    """Steps whose squares overflow float32, whole and in blocks; a step to the centre of the sphere, where the point
    stays and its momentum does not."""
    monkeypatch.setattr(
        triton_sphere, "configuration", lambda dim, _: {"blocks": row_blocks(dim, 1, block), "num_warps": 1}
    )
    for kind, name in (("sgd", "plain"), ("adam", "usual")):
        p, options = cases.problem(kind, name, [(4, 33)]), cases.OPTIONS[kind][name]
        p.gradients[0][:, 20:] *= 1e3
        found, right = cases.run(TRITON[kind], p, options, 1e30), cases.by_hand(kind, p, options, 1e30)
        torch.testing.assert_close(found.points[0].double(), right.points[0], rtol=0, atol=1e-6)
    p, buffer = torch.eye(2, 33), torch.zeros(2, 33)
    steps, gradient = torch.zeros(2, dtype=torch.int32), 4 * torch.eye(33)[:1].repeat(2, 1)
    TRITON["sgd"]([p], [buffer], [steps], [gradient], None, None, None, 0.5, 0.5, 0.0, False, False)
    assert torch.equal(p[0], torch.eye(33)[0]) and not buffer[0].any() and buffer[1].any()


def test_what_does_not_fit_is_refused():
    for kind, name in (("sgd", "momentum"), ("adam", "amsgrad")):
        p, options = cases.problem(kind, name, [(6, 3)]), cases.OPTIONS[kind][name]
        for change, said in (
            ({"gradients": [torch.randn(6, 4)]}, "gradients must be contiguous"),
            ({"gradients": [torch.randn(6, 3), torch.randn(6, 3)]}, "gradients must be 1 tensors"),
            ({"steps": [torch.zeros(6)]}, "steps must be contiguous torch.int32"),
            ({"state": tuple([s[0].double()] for s in p.state)}, "must be contiguous torch.float32"),
            ({"points": [torch.randn(3, 6).t()]}, "points must be contiguous"),
        ):
            with pytest.raises(ValueError, match=said):
                cases.run(TRITON[kind], p._replace(**change), options, 0.1)
        with pytest.raises(ValueError, match="found_inf must hold one number"):
            cases.run(TRITON[kind], p, options, 0.1, found_inf=torch.zeros(2))


@pytest.mark.parametrize("make", [hk.optim.SphereSGD, hk.optim.SphereAdam])
def test_the_optimisers(make):
    first = torch.nn.Parameter(hk.unit_norm(torch.randn(9, 6)))
    second = torch.nn.Parameter(first.detach().clone())
    for parameter, backend in ((first, "triton"), (second, "reference")):
        torch.manual_seed(0)
        optimizer = make([parameter], lr=0.1)
        for _ in range(3):
            parameter.grad = torch.randn(9, 6)
            with hk.backend(backend):
                optimizer.step()
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
