"""The tests of pair mining can fail: each mutant drops one piece of the mathematics, and the named test goes red."""

import pytest

from tests.support.mutants import UNCHANGED, Mutant, check, parameters

pytestmark = pytest.mark.mutants

# More than one tile, ignored labels, both bounds; x with itself; the value of a linear transform.
TILES = "tests/kernels/pair_mining/test_statistics_kernels.py::test_more_than_a_tile[tile1-dot-sizes0]"
GRADIENTS = "tests/kernels/pair_mining/test_statistics_kernels.py::test_gradcheck"
EXACT = "tests/kernels/pair_mining/test_selections_kernels.py::test_nan_is_the_largest_and_not_dropped[dot-dtype0]"

KERNELS = [
    Mutant(
        "pairs of equal ids count", "mask.h",
        "mask[j] = other[j] == own ? M(0) : mask[j];", "mask[j] = mask[j];",
        units=["statistics.cpp"],
        caught_by=["tests/pairs/test_pair_statistics.py::test_ids_exclude_what_equal_values_do_not"],
    ),
    Mutant(
        "ignored labels count", "mask.h",
        "mask[j] = other[j] < 0 ? M(0) : by_label;", "mask[j] = by_label;",
        units=["statistics.cpp"], caught_by=[TILES],
    ),
    Mutant(
        "bounds are not strict", "mask.h",
        "mask[j] = u[j] <= lower || u[j] >= upper ?", "mask[j] = u[j] < lower || u[j] > upper ?",
        units=["statistics.cpp"],
        caught_by=["tests/pairs/test_pair_statistics.py::test_bounds_are_strict_and_ties_go_to_the_lowest_column"],
    ),
    Mutant(
        "the last index wins ties", "rows.h",
        "(other == value && at < index)", "(other == value && at > index)",
        caught_by=["tests/kernels/pair_mining/test_statistics_kernels.py::test_the_lowest_index_wins_ties[None]"],
    ),
    Mutant("running sum not rescaled", "rows.h", "      total *= fade;\n", "", caught_by=[TILES]),
    Mutant(
        "a tile of x with itself not seen from its columns", "statistics.cpp",
        "if (!both || at.diagonal) return;", "if (!call.columns || at.diagonal) return;",
        caught_by=[TILES],
    ),
    Mutant(
        "the other end's weight left out of the gradient", "statistics_backward.cpp",
        "weigh(call.transform.kind, &tile, p.self ? !at.diagonal : call.columns);",
        "weigh(call.transform.kind, &tile, !p.self && call.columns);",
        caught_by=[f"{GRADIENTS}[linear-dot-None]"],
    ),
    Mutant(
        "1 / distance dropped", "weights.h", "squared ? A(2) : -1 / u[j]", "squared ? A(2) : A(1)",
        caught_by=[f"{GRADIENTS}[linear-euclidean-11]"],
    ),
    Mutant(
        "circle's strength not held constant", "weights.h",
        "return c0 * a * simd::exp(power", "return c0 * (a + v + p1) * simd::exp(power",
        caught_by=["tests/losses/test_weighted.py::test_value_and_gradients[circle soft-ref]"],
    ),
    Mutant(
        "the best k are filtered afterwards", "top_k.cpp",
        """count - j < 32 ? beating(u + j, mask + j, bar, count - j) : beating(u + j, mask + j, bar, 32);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t at = j + __builtin_ctz(bits);
        const Word word = Candidate<A>::pack(u[at], first + at);""",
        """beating(u + j, std::vector<Mask<A>>(32, -1).data(), bar, std::min<int64_t>(32, count - j));
        for (; bits != 0; bits &= bits - 1) {
          const int64_t at = j + __builtin_ctz(bits);
          const Word word = Candidate<A>::pack(u[at], mask[at] != 0 ? first + at : -1);""",
        caught_by=["tests/mining/test_retrieval.py::test_no_negative_is_lost_behind_the_filters"],
    ),
    Mutant(
        "columns of a list do not rise", "lists.cpp",
        """for (; bits != 0; bits &= bits - 1, ++at) {
        const int64_t k = j + __builtin_ctz(bits);""",
        """for (; bits != 0; bits &= ~(0x80000000u >> __builtin_clz(bits)), ++at) {
          const int64_t k = j + 31 - __builtin_clz(bits);""",
        caught_by=[EXACT],
    ),
    Mutant(
        "nine rounds of Philox", "sample.cpp", "round < 10", "round < 9",
        caught_by=["tests/mining/test_sampling.py::test_draws_are_those_of_the_reference[1.0]"],
    ),
    Mutant(
        "temperature dropped", "sample.cpp",
        "near * simd::log(positive)) / temperature;", "near * simd::log(positive));",
        caught_by=["tests/mining/test_sampling.py::test_graded_distances[4-2.0]"],
    ),
    Mutant(
        "an edge belongs to the bin above", "bins.h", "edge < u[j]", "edge <= u[j]",
        units=["bins.cpp"], caught_by=[EXACT],
    ),
]  # fmt: skip

MUTANTS = [Mutant(UNCHANGED), *KERNELS]
TESTS = sorted({test for mutant in MUTANTS for test in mutant.caught_by})


@pytest.mark.parametrize("mutant", parameters(MUTANTS))
def test_a_mutant_is_caught(mutant, tmp_path):
    check("pair_mining", mutant, TESTS, tmp_path)
