"""The Triton kernels of unit_norm in Triton's interpreter, whose bfloat16 is garbage: that dtype waits for a GPU."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperkernels as hk
from hyperkernels.kernels.triton.rows import row_blocks, row_tile
from hyperkernels.kernels.unit_norm.triton import kernels as triton_kernels
from tests.support import combinations
from tests.support.launchers import launchers

from . import cases

DTYPES = (torch.float32, torch.float16, torch.float64)
KERNELS = cases.Kernels(launchers.unit_norm, launchers.unit_norm_backward, launchers.unit_norm_)

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("poisoned_memory"),
    # numpy reports what the kernels let happen on purpose: 0 * inf, overflow on the way to float16.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    dim=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from(cases.FLOORS),
    seed=st.integers(0, 2**31),
)
def test_ragged(rows, dim, dtype, eps, seed):
    torch.manual_seed(seed)
    cases.check_shape(KERNELS, rows, dim, dtype, eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim"), [(130, 3), (33, 64), (2, 512), (3, 1000), (2, 1025), (2, 16384), (2, 20000)])
def test_every_configuration(rows, dim, dtype):
    cases.check_shape(KERNELS, rows, dim, dtype)


@pytest.fixture(params=["narrow", "wide"])
def loop(request, monkeypatch):
    """The kernels for wide rows, on rows that the interpreter gets through quickly."""
    if request.param == "wide":
        wide = triton_kernels.UnitNormConfiguration(1, 32, 1, wide=True)
        monkeypatch.setattr(triton_kernels, "configuration", lambda *_: wide)


def floor_is_of_every_day(loop, eps, dtype):
    """Of the wide kernels, each floor and each dtype once."""
    return loop == "narrow" or FLOORS.index(eps) == DTYPES.index(dtype)


FLOORS = (0.0, 1e-40, 1e-12)
EXTREME = combinations(["narrow", "wide"], FLOORS, DTYPES, everyday=floor_is_of_every_day)


@pytest.mark.parametrize(("loop", "eps", "dtype"), EXTREME, indirect=["loop"])
def test_extreme_rows(eps, dtype, loop):
    cases.check_extreme(KERNELS, 37, dtype, eps)


# The powers at the ends of the range are the hard ones.
FAR = combinations(
    ["narrow", "wide"], [-1074, -600, 510, 1013], everyday=lambda loop, power: loop == "narrow" or abs(power) > 1000
)


@pytest.mark.parametrize(("loop", "power"), FAR, indirect=["loop"])
def test_doubles_whose_squares_leave_their_range(power, loop):
    cases.check_far_doubles(KERNELS, 37, power)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 37])
def test_special_rows(dim, dtype, loop):
    cases.check_special(KERNELS, dim, dtype, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype):
    cases.check_layouts(KERNELS, dtype)


@triton.jit
def tile_of(base_ptr, count_ptr, program, rows, blocks):
    base, _, mask = row_tile(program, 0, rows, blocks)
    tl.store(base_ptr, base)
    within = tl.arange(0, blocks.BLOCK_D)[None, :] < blocks.D
    tl.store(count_ptr, tl.sum(tl.sum((mask & within).to(tl.int32), axis=1), axis=0))


@pytest.mark.parametrize(("program", "rows"), [(2**26, 2**28), (2**27 + 5, 2**31 + 100), (2**29 + 7, 2**31 + 29)])
def test_offsets_of_far_rows_do_not_wrap(program, rows):
    base, count = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    tile_of[(1,)](base, count, program, rows, row_blocks(511, 4, 512))
    assert base.item() == program * 4 * 511
    assert count.item() == 511 * max(0, min(4, rows - program * 4))


def test_through_the_public_functions():
    x = torch.randn(4, 5, 6, requires_grad=True)
    g = torch.randn(4, 5, 6)
    with hk.backend("triton"):
        y = hk.unit_norm(x, dim=1)
        (dx,) = torch.autograd.grad(y, x, g)
        torch.testing.assert_close(hk.unit_norm_(x.detach().clone(), dim=1), y.detach())
    with hk.backend("reference"):
        truth = hk.unit_norm(x, dim=1)
        torch.testing.assert_close(y, truth)
        torch.testing.assert_close(dx, torch.autograd.grad(truth, x, g)[0])


def test_gradients_in_float64():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    with hk.backend("triton"):
        for eps in (1e-12, 100.0):
            assert torch.autograd.gradcheck(lambda v, eps=eps: hk.unit_norm(v, eps=eps), x)


@pytest.mark.parametrize("name", ["unit_norm_triton", "unit_norm__triton", "unit_norm_backward_triton"])
def test_wrong_tensors_are_refused(name):
    op, rows = getattr(torch.ops.hyperkernels, name), torch.randn(4, 3)
    with pytest.raises(ValueError, match="x must have at least one dimension"):
        op(*[torch.tensor(1.0)] * (1 + ("backward" in name)), 1e-12)
    with pytest.raises(TypeError, match="x must have dtype float64, float32, bfloat16, float16; got int64"):
        op(*[rows.long()] * (1 + ("backward" in name)), 1e-12)
    if "backward" in name:
        for grad in (rows[:3], rows.double(), rows.long(), torch.randn(4, 4), torch.empty(0, 3)):
            with pytest.raises(ValueError, match="grad must have the shape and dtype of x"):
                op(grad, rows, 1e-12)


def test_rows_that_are_not_contiguous_are_written_in_place():
    around = torch.randn(5, 8)
    x, before = around[1:, 1:7:2], around.clone()
    wanted = torch.nn.functional.normalize(x)
    torch.ops.hyperkernels.unit_norm__triton(x, 1e-12)
    torch.testing.assert_close(x, wanted)
    x.copy_(before[1:, 1:7:2])
    assert torch.equal(around, before)
