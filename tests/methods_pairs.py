"""The pair losses of docs/methods.md as their papers write them, over the full N x M matrix."""

from method_rows import Method

METHODS: list[Method] = []
