"""The C++ kernels and the reference of the optimisers on the sphere, against loops by hand."""

import pytest
import torch

from tests.support import LOWER_CAPABILITIES, REFUSED, assert_passes_at
from tests.support import sphere_optim_cases as cases
from tests.support.launchers import reference_updates

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CPP = {kind: getattr(torch.ops.hyperkernels, f"sphere_{kind}_") for kind in ("sgd", "adam")}
REFERENCE = {kind: getattr(reference_updates, f"sphere_{kind}_") for kind in ("sgd", "adam")}
FUNCTIONS = pytest.mark.parametrize("functions", [CPP, REFERENCE], ids=["cpp", "reference"])


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_loop_by_hand(kind, name, dtype):
    cases.check(CPP[kind], kind, name, dtype=dtype)
    cases.check(CPP[kind], kind, name, dtype=dtype, grad_scale=8.0, shapes=[(3, 37), (2, 16)])


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
def test_the_reference_itself(kind, name):
    """Half of its own error and a few units of rounding: its own error alone would allow any."""
    cases.check(REFERENCE[kind], kind, name, dtype=torch.float64, grad_scale=4.0, factor=0.5)
    cases.check_skipped(REFERENCE[kind], kind, name)


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaler_and_learning_rate(kind, name, dtype):
    cases.check_skipped(CPP[kind], kind, name, dtype)


@pytest.mark.parametrize(("kind", "name"), cases.CASES)
@FUNCTIONS
def test_the_last_step(functions, kind, name):
    cases.check_last_step(functions[kind], kind, name)


@pytest.mark.parametrize("dtype", DTYPES)
@FUNCTIONS
def test_edges(functions, dtype):
    cases.check_edges(functions, dtype)


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 100), (torch.float64, 600), (torch.float64, 1000)])
@FUNCTIONS
def test_long_points(functions, dtype, power):
    cases.check_long_points(functions, dtype, power)


@FUNCTIONS
@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_no_step_where_there_is_nothing_to_divide_by(functions, beta2):
    """No gradient yet, and eps = 0; the next row moves."""
    points, mean = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    gradient = torch.tensor([[0.0, 0], [1, 0]], dtype=torch.float64)
    square, step = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int32)
    functions["adam"]([points], [mean], [square], [], [step], [gradient], None, None, None, 0.5, 0.9, beta2, 0.0, False)
    right = torch.tensor([[1.0, 0], [-(0.2**0.5), 0.8**0.5]], dtype=torch.float64)
    torch.testing.assert_close(points, right)
    assert torch.equal(mean[0], torch.zeros(2, dtype=torch.float64)) and step.tolist() == [1, 1]


@FUNCTIONS
def test_an_end_without_a_direction(functions):
    """A step to the centre of the sphere: the point stays, its momentum does not. The next row moves."""
    for dtype in DTYPES:
        p = torch.tensor([[1.0, 0], [0, 1]], dtype=dtype)
        buffer = torch.zeros(2, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        gradient = torch.tensor([[4.0, 0], [1, 0]], dtype=dtype)
        functions["sgd"](
            [p],
            [buffer],
            [torch.zeros(2, dtype=torch.int32)],
            [gradient],
            None,
            None,
            None,
            0.5,
            0.5,
            0.0,
            False,
            False,
        )
        assert torch.equal(p[0], torch.tensor([1.0, 0], dtype=dtype)) and torch.equal(buffer[0], 0 * buffer[0])
        assert p[1, 0] < 0 and buffer[1].norm() > 0


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_of_any_length(kind):
    """Squares of the end would overflow float32."""
    name = "plain" if kind == "sgd" else "usual"
    p = cases.problem(kind, name, [(4, 33)])
    found = cases.run(CPP[kind], p, cases.OPTIONS[kind][name], 1e30)
    right = cases.by_hand(kind, p, cases.OPTIONS[kind][name], 1e30)
    torch.testing.assert_close(found.points[0].double(), right.points[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("capability", LOWER_CAPABILITIES)
def test_every_instruction_set_is_right(capability):
    assert_passes_at(capability, __file__, "against_the_loop")


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_many_vectors_over_threads(kind):
    """The same bits whatever the number of threads and whatever else is in the list."""
    name = "nesterov" if kind == "sgd" else "amsgrad"
    p = cases.problem(kind, name, [(3000, 64), (7, 3), (400, 200)])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cases.run(CPP[kind], p, cases.OPTIONS[kind][name], 0.1))
    finally:
        torch.set_num_threads(before)
    alone = cases.Problem(*(part[:1] for part in (p.points, [], p.steps, p.gradients)))
    alone = alone._replace(state=tuple(s[:1] for s in p.state))
    found.append(cases.run(CPP[kind], alone, cases.OPTIONS[kind][name], 0.1))
    for other in found[1:]:
        for i in range(len(other.points)):
            assert torch.equal(other.points[i], found[0].points[i])
            assert torch.equal(other.state[0][i], found[0].state[0][i])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"points": [torch.randn(3, 6).t()]}, REFUSED, "points must be contiguous"),
        ({"points": [torch.zeros(6, 3, dtype=torch.int64)]}, REFUSED, "must have dtype"),
        ({"gradients": [torch.randn(6, 4)]}, REFUSED, "gradients must have shape"),
        ({"gradients": [torch.randn(6, 3).double()]}, REFUSED, "gradients must have dtype float32; got float64"),
        ({"gradients": []}, REFUSED, "gradients must be 1 tensors"),
        ({"steps": [torch.zeros(5, dtype=torch.int32)]}, REFUSED, "steps must have one entry per row"),
        ({"steps": [torch.zeros(6)]}, REFUSED, "steps must have dtype int32"),
        ({"steps": []}, REFUSED, "steps must be 1 tensors"),
    ],
)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_op_refuses_what_does_not_fit(kind, change, error, said):
    name = "momentum" if kind == "sgd" else "amsgrad"
    p = cases.problem(kind, name, [(6, 3)])
    with pytest.raises(error, match=said):
        cases.run(CPP[kind], p._replace(**change), cases.OPTIONS[kind][name], 0.1)
    for i in range(len(p.state)):
        for bad, wanted in ((torch.zeros(6, 4), REFUSED), (p.state[i][0].double(), REFUSED)):
            state = tuple([bad] if j == i else s for j, s in enumerate(p.state))
            with pytest.raises(wanted, match=r"must (be contiguous of shape|have dtype)"):
                cases.run(CPP[kind], p._replace(state=state), cases.OPTIONS[kind][name], 0.1)
