"""Every method of docs/methods.md: its code, as it stands on the page, against the paper's formula in plain PyTorch."""

import re
from pathlib import Path

import method_rows
import methods_geometry
import methods_heads
import methods_pairs
import pytest
from method_rows import CASES, SEEN, TOLERANCE, difference

import hyperkernels as hk

METHODS = methods_heads.METHODS + methods_geometry.METHODS + methods_pairs.METHODS
ALTERATIONS = [(method, name, value) for method in METHODS for name, value in method.constants().items()]
SECTIONS, TABLE = method_rows.sections(), method_rows.table()


def _named(method):
    return f"{method.number}-{method.name}"


def _block(method):
    """The code of the page that computes the method."""
    same = [other.name for other in METHODS if other.number == method.number]
    blocks = SECTIONS.get(method.number, [])
    assert len(blocks) == len(same), f"section {method.number} has {len(blocks)} blocks for {same}"
    return blocks[same.index(method.name)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS, ids=_named)
def test_the_page_computes_the_formula_and_its_gradient(method, case):
    found = difference(method.on_page(_block(method), case), method.in_paper(case))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize(
    ("method", "name", "value"), ALTERATIONS, ids=[f"{_named(method)}-{name}" for method, name, _ in ALTERATIONS]
)
def test_an_altered_formula_is_seen(method, name, value):
    assert value is not NotImplemented, f"say in Method.altered what {name} may be altered to"
    block = _block(method)
    differences = (difference(method.on_page(block, c), method.in_paper(c, **{name: value})) for c in CASES)
    assert any(max(found.values()) > SEEN for found in differences), f"nothing depends on {name}"


@pytest.mark.parametrize("method", METHODS, ids=_named)
def test_something_can_be_altered(method):
    assert method.constants()


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


@pytest.mark.parametrize("rows", [methods_heads, methods_geometry, methods_pairs], ids=lambda rows: rows.__name__)
def test_the_formulas_owe_nothing_to_the_package(rows):
    assert not re.search(r"hyperkernels|\bhk\b", Path(rows.__file__).read_text())
