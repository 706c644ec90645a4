"""A module's constant stands on the right of a tensor: on its left the interpreters of Triton 3.7 and 3.8 make a
constant of the result, which no comparison takes."""

import ast

import pytest

from tests.support import ROOT

FOLDER = ROOT / "hyperkernels" / "kernels"
FILES = sorted(FOLDER.glob("*/triton/*.py"))


def constants_of(tree):
    """The names that the module binds to a tl.constexpr."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("tl.constexpr("):
            yield node.targets[0].id


EVERYWHERE = {name for file in FILES for name in constants_of(ast.parse(file.read_text()))}


def on_the_left(text):
    """What has such a name, its own or imported, on the left of anything but a number."""
    tree = ast.parse(text)
    imported = {name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    names = {*constants_of(tree)} | (imported & EVERYWHERE)
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Name) and node.left.id in names
        and not isinstance(node.right, ast.Constant)
    ]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_no_constant_on_the_left(file):
    assert on_the_left(file.read_text()) == []


def test_one_on_the_left_is_noticed():
    text = "from .rows import PI\nA = tl.constexpr(2.0)\ndef kernel(x):\n    return x * A + A * x + A / 2 + PI * x"
    assert sorted(on_the_left(text)) == ["A * x", "PI * x"]
