"""The geometry of docs/methods.md as its papers write it, point by point."""

from method_rows import Method

METHODS: list[Method] = []
