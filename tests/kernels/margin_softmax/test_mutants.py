"""The tests of the margin softmax can fail: each mutant drops one piece of the mathematics, and a test goes red."""

import pytest

from tests.support.mutants import PLUGIN, UNCHANGED, Mutant, assert_caught, check, parameters, run_tests

pytestmark = pytest.mark.mutants

TESTS = "double_loop or gradcheck or tile_size or cannot_poison or margins or dropped_never or nearest_and_ties"
FILES = (
    *(f"tests/kernels/margin_softmax/test_{name}.py" for name in ("margin_softmax", "edges", "options", "skip_budget")),
    "tests/margins/test_margins.py",
)

MUTANTS = [
    Mutant(UNCHANGED),
    Mutant("projection of dx dropped", "rows.h", "(v[k] - u * radial) * outer", "v[k] * outer"),
    Mutant("projection of dweight dropped", "rows.h", "v[k] - A(simd::load(w + k)) * inverse * radial", "v[k]"),
    Mutant(
        "last ragged block dropped",
        "problem.h",
        "return blocks() * lane / lanes();",
        "return std::max<int64_t>(1, c / block) * lane / lanes();",
    ),
    Mutant(
        "target not left out of the sum",
        "fold_tile.cpp",
        "const int64_t own = tile.own(row[i]);",
        "const int64_t own = classes;",
    ),
    Mutant(
        "target's gradient dropped", "gradient_tile.cpp", "mine[r.own_center] = r.target *", "mine[r.own_center] = 0 *"
    ),
    Mutant("running sum not rescaled", "rows.h", "sum = sum * fade + other.sum;", "sum = sum + other.sum;"),
    Mutant(
        "second chunk of rows overwrites the first", "backward.cpp", "centre_sums(), r > 0)", "centre_sums(), false)"
    ),
    Mutant("ignored rows take part", "problem.h", "row.active = p.target[i] != p.ignore_index;", "row.active = true;"),
    Mutant(
        "every centre gets the gradient",
        "gradient_tile.cpp",
        "winner[j] == number ? g[j] * inverse[at] : A(0)",
        "g[j] * inverse[at]",
    ),
    Mutant(
        "skipped rows lose their target",
        "backward.cpp",
        "        add_strays_alone();",
        "        strays_ = 0, add_strays_alone();",
    ),
    Mutant(
        "tiles skipped beyond the budget",
        python="from hyperkernels.kernels.margin_softmax import op\nreal = op.skip_plan\n"
        "op.skip_plan = lambda d, n, b, r, budget, tile: "
        "(real(d, n, b, r, 3 * budget, tile)[0], real(d, n, b, r, budget, tile)[1])",
    ),
]


CHOSEN = ["--maxfail=3", "-k", TESTS, *FILES]


@pytest.mark.parametrize("mutant", parameters(MUTANTS))
def test_a_mutant_is_caught(mutant, tmp_path):
    check("margin_softmax", mutant, CHOSEN, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "caught"), [("AssertionError", True), ("TypeError", False)])
def test_a_mutant_that_cannot_run_is_not_caught(error, caught, tmp_path):
    """Only an assertion counts."""
    (tmp_path / "mutant_plugin.py").write_text(PLUGIN)
    broken = tmp_path / "test_broken.py"
    broken.write_text(f"def test_it():\n    raise {error}('of a mutant')\n")
    result = run_tests(None, "", [str(broken), "--rootdir", str(tmp_path)], tmp_path)
    if caught:
        assert_caught(Mutant("of the test"), result)
        return
    with pytest.raises(AssertionError, match=error):
        assert_caught(Mutant("of the test"), result)
