"""Every method of docs/methods.md: its code, as it stands on the page, against the paper's formula in plain PyTorch."""

import functools
import re
from pathlib import Path

import pytest

import hyperkernels as hk

from . import geometry as methods_geometry
from . import heads as methods_heads
from . import pairs as methods_pairs
from . import rows as method_rows
from .rows import CASES, SEEN, TOLERANCE, difference

METHODS = methods_heads.METHODS + methods_geometry.METHODS + methods_pairs.METHODS
SECTIONS, TABLE = method_rows.sections(), method_rows.table()
BY_NAME = {f"{method.number}-{method.name}": method for method in METHODS}
ALTERATIONS = [(name, *altered) for name, method in BY_NAME.items() for altered in method.constants().items()]


@functools.cache
def _on_page(name, case):
    """What the page's code for the method gives."""
    method = BY_NAME[name]
    same = [other.name for other in METHODS if other.number == method.number]
    blocks = SECTIONS.get(method.number, [])
    assert len(blocks) == len(same), f"section {method.number} has {len(blocks)} blocks for {same}"
    return method.on_page(blocks[same.index(method.name)], case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BY_NAME)
def test_the_page_computes_the_formula_and_its_gradient(name, case):
    found = difference(_on_page(name, case), BY_NAME[name].in_paper(case))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize(
    ("name", "constant", "value"), ALTERATIONS, ids=[f"{name}-{constant}" for name, constant, _ in ALTERATIONS]
)
def test_an_altered_formula_is_seen(name, constant, value):
    assert value is not NotImplemented, f"say in Method.altered what {constant} may be altered to"
    differences = (difference(_on_page(name, c), BY_NAME[name].in_paper(c, **{constant: value})) for c in CASES)
    assert any(max(found.values()) > SEEN for found in differences), f"nothing depends on {constant}"


@pytest.mark.parametrize("name", BY_NAME)
def test_something_can_be_altered(name):
    assert BY_NAME[name].constants()


def test_no_two_methods_have_one_name():
    assert len(BY_NAME) == len(METHODS)


def test_the_table_has_every_paper():
    assert list(TABLE) == [str(number) for number in range(1, 33)]


@pytest.mark.parametrize("number", TABLE)
def test_a_paper_has_a_section_and_a_method_or_is_a_survey(number):
    row = " ".join(TABLE[number])
    served = {method.number for method in METHODS}
    assert (number in SECTIONS and number in served) or "survey" in row.lower()
    for link in re.findall(r"\(#([^)]*)\)", row):
        assert link in method_rows.anchors(), link
    assert f"(#{number}-" in row or "survey" in row.lower()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`hk\.([\w.]+)", method_rows.PAGE.read_text()))))
def test_a_name_on_the_page_exists(name):
    found = hk
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("number", SECTIONS)
def test_every_block_belongs_to_a_method(number):
    names = [method.name for method in METHODS if method.number == number]
    assert len(names) == len(SECTIONS[number]) == len(set(names))


@pytest.mark.parametrize("rows", [methods_heads, methods_geometry, methods_pairs], ids=["heads", "geometry", "pairs"])
def test_the_formulas_owe_nothing_to_the_package(rows):
    assert not re.search(r"hyperkernels|\bhk\b", Path(rows.__file__).read_text())
