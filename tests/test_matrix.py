"""tools/matrix.py: what it counts, which wheels it takes for the same one, and that it notices a page that is stale."""

import base64
import copy
import hashlib
import subprocess
import sys
import zipfile

import pytest

from tests.support import ROOT
from tools import matrix

KIND = {"passed": 3, "skipped": 0, "failed": 0, "failures": [], "seconds": 1, "cpu_seconds": 2}
ROWS = [
    {"row": row.name, **row._asdict(), "wheel": "w", "library": "l", "machine": "x86_64", "glibc": "2.28",
     "instructions": "avx2", "kinds": {kind.name: KIND for kind in matrix.KINDS}}
    for row in matrix.ROWS
]  # fmt: skip


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page that says what ROWS say."""
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "page.md")
    matrix.PAGE.write_text("before\n<!-- matrix -->\n<!-- end -->\nafter\n")
    found = {"rows": copy.deepcopy(ROWS)}
    matrix.write_page(found)
    assert not matrix.disagreements(found)
    return found


def test_a_figure_that_changed_is_noticed(page):
    page["rows"][0]["kinds"]["ops"]["passed"] = 4
    assert ["is not what" in said for said in matrix.disagreements(page)] == [True]


def test_rows_of_several_wheels_are_noticed(page):
    page["rows"][0]["wheel"] = "another"
    assert any("not all of one wheel" in said for said in matrix.disagreements(page))


def test_a_row_that_is_missing_is_noticed(page):
    del page["rows"][0]
    assert any("other rows" in said for said in matrix.disagreements(page))


def test_bounds_below_what_is_tested_are_noticed(page, monkeypatch):
    monkeypatch.setattr(matrix, "ROWS", [row for row in matrix.ROWS if row.torch > "2.11"])
    assert any('"torch>=2.11"' in said for said in matrix.disagreements(page))


def test_failures_are_named(page):
    failures = [f"tests.test_a::test_b[{i}]: ValueError: no" for i in range(2)]
    page["rows"][0]["kinds"]["ops"] |= {"failed": 2, "failures": failures}
    text = matrix.table(page)
    assert "| 3, **2 failed** |" in text
    assert f"- 2 of torch {ROWS[0]['torch']}, ops, `tests.test_a::test_b`: `ValueError: no`\n" in text


TESTS = """
import pytest
def test_passes(): pass
def test_is_skipped(): pytest.skip("why")
def test_fails(): assert 1 == 2
@pytest.fixture
def broken(): raise OSError("broken")
def test_errs(broken): pass
"""


def outcome_of(tmp_path, text, *options):
    (tmp_path / "test_it.py").write_text(text)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *options, "test_it.py"]
    return matrix.outcome(report, subprocess.run(command, cwd=tmp_path, capture_output=True).returncode)


def test_what_is_counted(tmp_path):
    found = outcome_of(tmp_path, TESTS)
    assert (found["passed"], found["skipped"], found["failed"]) == (1, 1, 2)
    assert found["failures"][0].startswith("test_it::test_fails: assert 1 == 2")
    assert "broken" in found["failures"][1]


@pytest.mark.parametrize("text", ["import nothing_of_that_name", "def test_a(): pass"])
def test_a_run_without_a_test_is_a_failure(tmp_path, text):
    assert outcome_of(tmp_path, text, "-k", "other")["failed"] == 1


def test_a_run_that_died_is_a_failure(tmp_path):
    assert outcome_of(tmp_path, "import os\nos._exit(3)") == {
        "passed": 0, "skipped": 0, "failed": 1, "failures": ["pytest ended with 3"],
    }  # fmt: skip


def wheel_of(path, library, year):
    digest = base64.urlsafe_b64encode(hashlib.sha256(library).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("hyperkernels/libhyperkernels.so", library),
            ("it.dist-info/RECORD", f"hyperkernels/libhyperkernels.so,sha256={digest},1\nit.dist-info/RECORD,,\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), content)
    return matrix.record_of(path)


def test_a_wheel_is_known_by_its_content(tmp_path):
    one, later, other = (
        wheel_of(tmp_path / "a", b"x", 2020), wheel_of(tmp_path / "b", b"x", 2021), wheel_of(tmp_path / "c", b"y", 2020)
    )  # fmt: skip
    assert one == later and one[0] != other[0]
    assert one[1] == hashlib.sha256(b"x").hexdigest()


def test_the_probe_refuses_a_package_that_is_not_installed():
    """Here it is the source tree's, unless an environment was made of a wheel."""
    code = f"import sys; sys.prefix = '/nowhere'\n{matrix.PROBE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "AssertionError" in done.stderr


@pytest.mark.parametrize("kind", matrix.KINDS, ids=lambda kind: kind.name)
def test_the_files_of_a_kind_are_there(kind):
    files = [argument.split("::")[0] for argument in kind.arguments if argument.startswith("tests/")]
    assert files and all((ROOT / file).exists() for file in files)
